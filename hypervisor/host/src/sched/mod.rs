//! The scheduler: decides which vCPU runs on which CPU, and runs it.
//!
//! [`queue`] decides which vCPU comes next, and is pure. Every CPU that has time calls [`Scheduler::schedule`], which
//! runs that vCPU for a time slice. A vCPU that halts gives up its CPU, and waits in the queue for its timer or for a
//! waker ([`vcpu::Waker`]). The parts of a guest's end that may wait for other CPUs are left to [`ends`].

mod attached;
pub mod ends;
mod equipment;
mod functions;
pub mod guest;
mod help;
mod idle;
mod lock;
pub mod lost;
mod networks;
pub mod queue;
mod runner;
mod slice;
mod sockets;

use alloc::{
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

pub use attached::FunctionCounts;
pub use equipment::{Fixture, FixtureUse, PortFacts};
pub use virtio::net::Count as PortCount;

use config::Smt;
use seam::abi::Gprs;
use sync::IrqsOff;
use vcpu::{End, Event, Executor, Stop, VcpuState, Waker};

use self::{
    guest::Guest,
    idle::IdleCpus,
    lock::{QueueLock, Scheduled},
    networks::Networks,
    queue::{Back, Next, RunQueue, Settings, Ticks, Times, VcpuId},
    slice::Slice,
    sockets::Sockets,
};
use crate::{
    platform::Running,
    td::{Td, life::State, vcpu::Refused},
};

/// Microseconds for which a vCPU is put off if it can't run now for a transient reason.
const PAUSE_US: u64 = 1_000;

/// Serves one of the host's own hypercalls, made by a vCPU of the TD with these registers ([`crate::hypercall`]).
pub type Hypercall = fn(&Td, &mut Gprs);

/// Runs vCPUs on a machine.
pub struct Scheduler<'p, P> {
    platform: &'p P,
    hypercall: Hypercall,
    queue: QueueLock,
    /// Set when a guest has ended and that end has not been handled yet.
    ended: AtomicBool,
    /// The TD whose console is being watched.
    watched: AtomicU32,
    networks: Networks,
    sockets: Sockets,
    /// True once a TD has had physical functions.
    has_functions: AtomicBool,
    /// Time-stamp counter at the next look at their errors.
    functions_due: AtomicU64,
    idle: IdleCpus,
    /// True if a CPU may work for any TD: the threads of a core need not keep to one.
    helps: bool,
}

impl<'p, P: Running> Scheduler<'p, P> {
    /// Creates a scheduler for all CPUs of this machine, with the configured slice and period for caps. `hypercall`
    /// serves the host's own calls.
    #[must_use]
    pub fn new(platform: &'p P, config: &config::Host, hypercall: Hypercall) -> Self {
        let ticks = |ms: u32| (u128::from(ms) * u128::from(platform.tsc_hz()) / 1000) as Ticks;
        let cpus = platform.cpus().iter().map(|place| place.cpu + 1);
        let cpus = cpus.max().unwrap_or(1);
        let queue = RunQueue::new(Settings {
            slice: ticks(config.slice_ms),
            period: ticks(config.cap_period_ms),
            cpus: cpus as usize,
        });
        let queue = match config.smt {
            Smt::Share => queue,
            Smt::SameTd => {
                let cores: Vec<u32> = (0..cpus).map(|cpu| platform.core_of(cpu)).collect();
                queue.with_cores(&cores)
            }
        };
        Self {
            platform,
            hypercall,
            queue: QueueLock::new(queue),
            ended: AtomicBool::new(false),
            watched: AtomicU32::new(0),
            networks: Networks::default(),
            sockets: Sockets::default(),
            has_functions: AtomicBool::new(false),
            functions_due: AtomicU64::new(0),
            idle: IdleCpus::new(cpus),
            helps: config.smt == Smt::Share,
        }
    }

    /// Adds the networks of the host's TDs.
    #[must_use]
    pub fn with_networks(self, networks: &[config::Network]) -> Self {
        let networks = Networks::new(networks);
        Self { networks, ..self }
    }

    /// Returns the networks of the host's TDs, in the order of the configuration.
    pub fn networks(&self) -> impl Iterator<Item = &config::Network> {
        self.networks.all()
    }

    /// Calls `see` with each virtual function of a TD that runs or has run.
    pub fn fixtures(&self, id: u32, see: &mut dyn FnMut(FixtureUse<'_>)) {
        let Some(guest) = self.guest(id) else {
            return;
        };
        let bus = guest.vm().devices().pci();
        for fixture in guest.fixtures() {
            let usage = bus.usage(fixture.device).unwrap_or_default();
            see(FixtureUse { fixture, usage });
        }
        // News may have come meanwhile.
        self.serve_devices(&guest);
    }

    /// Returns the guest of a TD that runs or has run.
    #[must_use]
    pub fn guest(&self, id: u32) -> Option<Arc<Guest>> {
        self.with_queue(|scheduled| scheduled.guests.get(&id).cloned())
    }

    /// Returns why the TD has ended, if it has. A reset does not count.
    #[must_use]
    pub fn problem(&self, id: u32) -> Option<String> {
        let guest = self.guest(id)?;
        let end = guest.vm().end()?;
        // A guest that asked for a reset is about to be rebuilt.
        (*end != End::Reset).then(|| end.to_string())
    }

    /// Returns how a vCPU's time was spent, in microseconds.
    #[must_use]
    pub fn times_us(&self, td: u32, vcpu: u16) -> Option<Times> {
        let now = self.platform.tsc();
        let times = self.with_queue(|scheduled| scheduled.queue.times(VcpuId { td, vcpu }, now))?;
        let hz = u128::from(self.platform.tsc_hz().max(1));
        let us = |ticks: Ticks| (u128::from(ticks) * 1_000_000 / hz) as u64;
        Some(Times {
            run: us(times.run),
            wait: us(times.wait),
            steal: us(times.steal),
        })
    }

    /// Runs a vCPU on the calling CPU for one time slice. Returns `false` if none is ready; the CPU's timer is then set to
    /// the next time at which one may be.
    pub fn schedule(&self) -> bool {
        let _off = IrqsOff::new();
        let platform = self.platform;
        let cpu = platform.this_cpu();
        // Requests that arrive from here on are seen at the next call.
        platform.attention(cpu).clear();
        self.idle.leave(cpu);
        if platform.shutdown().is_down() {
            platform.set_timer(None);
            return false;
        }
        let next = self.with_queue(|scheduled| scheduled.queue.pick(cpu, platform.tsc()));
        match next {
            Next::Run { id, until } => {
                self.run(cpu, id, until);
                true
            }
            Next::Idle { until } => {
                platform.set_timer(until);
                false
            }
        }
    }

    /// Makes idle CPUs look for work.
    pub fn wake_idle(&self) {
        let idle = self.with_queue(|scheduled| scheduled.queue.idle());
        self.poke(&idle);
    }

    /// Types a byte on the console of a TD. Returns `false` if the byte is lost: the buffer is full, or the TD does not
    /// run.
    pub fn type_byte(&self, id: u32, byte: u8) -> bool {
        let Some(guest) = self.guest(id) else {
            return false;
        };
        let fits = guest.vm().console().type_byte(byte);
        if guest.vm().console().has_virtio() {
            guest.vm().devices().pci().rouse();
            self.serve_devices(&guest);
        } else {
            vcpu::receive_typed(Waker::new(guest.vm(), self));
        }
        fits
    }

    /// Types a byte at the TD's port for scripts. Returns `false` if the byte is lost: the buffer is full, the TD has no such
    /// port, or it does not run.
    pub fn type_for_script(&self, id: u32, byte: u8) -> bool {
        let Some(guest) = self.guest(id) else {
            return false;
        };
        let Some(script) = guest.vm().console().script() else {
            return false;
        };
        let fits = script.type_byte(byte);
        guest.vm().devices().pci().rouse();
        self.serve_devices(&guest);
        fits
    }

    /// Posts an NMI to a vCPU. Returns `false` if there is no vCPU of that number.
    pub fn post_nmi(&self, id: u32, vcpu: u32) -> bool {
        let Some(guest) = self.guest(id) else {
            return false;
        };
        Waker::new(guest.vm(), self).wake(vcpu, Event::Nmi);
        guest.vm().vcpus().len() > vcpu as usize
    }

    /// Sets the TD whose console is being watched. The machine's console is woken whenever this TD writes.
    pub fn watch(&self, id: Option<u32>) {
        let watched = id.unwrap_or(0);
        if self.watched.swap(watched, SeqCst) == watched {
            return;
        }
        self.with_queue(|scheduled| {
            for (id, guest) in &scheduled.guests {
                guest.vm().console().set_watched(*id == watched);
            }
        });
    }

    fn with_queue<R>(&self, work: impl FnOnce(&mut Scheduled) -> R) -> R {
        self.queue.with(self.platform, work)
    }

    fn run(&self, cpu: u32, id: VcpuId, until: Ticks) {
        let guest = self.guest(id.td);
        let td = guest.as_ref().and_then(|guest| guest.td());
        let (Some(guest), Some(td)) = (guest, td) else {
            self.put(cpu, Back::Off);
            return;
        };
        let Some(state) = guest.vm().vcpus().get(usize::from(id.vcpu)) else {
            self.put(cpu, Back::Off);
            return;
        };
        match self.enter(&guest, &td, id.vcpu, until) {
            Ok(Stop::Yield) => self.put(cpu, Back::Ready),
            Ok(Stop::Halted) => {
                let vcpu = guest.vcpu(id.vcpu);
                let due = vcpu.and_then(|vcpu| vcpu.due(guest.vm()));
                self.sleep(cpu, state, due);
                // An event that came before the vCPU waited in the queue did not wake it.
                Waker::new(guest.vm(), self).recheck(id.vcpu.into());
            }
            Ok(Stop::Busy | Stop::OtherCpu) => self.put_off(cpu, state),
            Ok(Stop::Closed) => self.put(cpu, Back::Off),
            Ok(Stop::Ended) => {
                self.put_suspended(cpu, id.td, || true);
                self.note_ended();
            }
            // The TD may have been resumed meanwhile, and was started or will be.
            Err(Refused::State(_)) => {
                self.put_suspended(cpu, id.td, || td.state() != State::Runnable);
            }
            Err(Refused::InUse | Refused::NoVcpu) => self.put_off(cpu, state),
            Err(refused @ (Refused::NoAnswer(_) | Refused::Seam(_))) => {
                if !self.platform.shutdown().is_down() {
                    log::warn!("TD {}: vCPU {}: {refused}", td.config().name, id.vcpu);
                }
                self.put_off(cpu, state);
            }
        }
    }

    /// Runs a vCPU until it stops.
    fn enter(
        &self,
        guest: &Arc<Guest>,
        td: &Td,
        index: u16,
        until: Ticks,
    ) -> Result<Stop, Refused> {
        let cpu = self.platform.this_cpu();
        let held = td.hold(self.platform, index)?;
        let map = td.map().ok_or(Refused::NoVcpu)?;
        let slice = Slice {
            scheduler: self,
            cpu,
            guest,
            td,
            map,
            held: &held,
            tdh: self.platform.tdh(),
            attention: self.platform.attention(cpu),
            until,
            guest_due: Cell::new(None),
            work_due: Cell::new(None),
        };
        let tdvpr = held.tdvpr()?;
        let mut vcpu = guest.vcpu(index).ok_or(Refused::InUse)?;
        Ok(vcpu.run(guest.vm(), tdvpr, &slice))
    }

    /// Gives back the vCPU that ran on `cpu`.
    fn put(&self, cpu: u32, back: Back) {
        let now = self.platform.tsc();
        self.with_queue(|scheduled| scheduled.queue.put(cpu, back, now));
    }

    /// Gives back the vCPU that ran on `cpu`, and suspends its TD if `must_rest`, which is called with the lock of the run
    /// queue held.
    fn put_suspended(&self, cpu: u32, td: u32, must_rest: impl FnOnce() -> bool) {
        let now = self.platform.tsc();
        self.with_queue(|scheduled| {
            if must_rest() {
                scheduled.queue.suspend(td);
            }
            scheduled.queue.put(cpu, Back::Ready, now);
        });
    }

    /// Lets the vCPU that ran on `cpu` wait in the queue for an event, and until `due` at the latest.
    fn sleep(&self, cpu: u32, state: &VcpuState, due: Option<Ticks>) {
        let now = self.platform.tsc();
        self.with_queue(|scheduled| {
            scheduled.queue.put(cpu, Back::Halted(due), now);
            state.wait();
        });
    }

    /// Puts a vCPU off for a transient reason; others run meanwhile.
    fn put_off(&self, cpu: u32, state: &VcpuState) {
        let pause = PAUSE_US * self.platform.tsc_hz() / 1_000_000;
        self.sleep(cpu, state, Some(self.platform.tsc() + pause));
    }

    fn poke(&self, cpus: &[u32]) {
        cpus.iter().for_each(|cpu| poke(self.platform, *cpu));
    }

    /// Notes that a guest has ended.
    fn note_ended(&self) {
        self.ended.store(true, SeqCst);
    }

    /// Returns whether a guest has ended since the last call.
    fn take_ended(&self) -> bool {
        self.ended.swap(false, SeqCst)
    }

    /// Returns the first guest that has ended, by number: of those after `after`, if given.
    fn next_ended(&self, after: Option<u32>) -> Option<Arc<Guest>> {
        let from = after.map_or(0, |id| id + 1);
        self.with_queue(|scheduled| {
            let mut guests = scheduled.guests.range(from..);
            let ended = guests.find(|(_, guest)| guest.vm().end().is_some());
            ended.map(|(_, guest)| Arc::clone(guest))
        })
    }
}

impl<P: Running> Executor for Scheduler<'_, P> {
    fn notify(&self, cpu: u32) {
        if cpu != self.platform.this_cpu() {
            self.platform.notify(cpu);
        }
    }

    fn interrupt(&self, cpu: u32) {
        if cpu != self.platform.this_cpu() {
            self.platform.poke(cpu);
        }
    }

    fn woken(&self) {
        self.queue.note_woken(self.platform);
    }
}

/// Makes a CPU look for a vCPU to run.
fn poke<P: Running>(platform: &P, cpu: u32) {
    platform.attention(cpu).poke();
    if cpu != platform.this_cpu() {
        platform.poke(cpu);
    }
}

impl<P> core::fmt::Debug for Scheduler<'_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Scheduler").finish_non_exhaustive()
    }
}

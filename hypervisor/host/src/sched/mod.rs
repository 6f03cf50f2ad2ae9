//! The scheduler: decides which vCPU runs on which CPU, and runs it.
//!
//! [`queue`] decides whose turn it is, and is pure. [`Scheduler`] runs the turn on every CPU that asks for work
//! ([`Scheduler::schedule`]). A vCPU that halts gives up its CPU; a posted interrupt or its timer wakes it. The parts of a
//! guest's end that may wait for other CPUs are left to [`ends`].

pub mod ends;
pub mod guest;
pub mod lost;
pub mod queue;
mod runner;
mod session;

use alloc::{
    collections::BTreeMap,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use seam::abi::Gprs;
use sync::{IrqLock, IrqsOff};
use vcpu::{End, Notify, Stop};

use self::{
    guest::Guest,
    queue::{Back, Next, RunQueue, Settings, Ticks, Times, VcpuId},
    session::Session,
};
use crate::{
    platform::Running,
    td::{Td, vcpu::Refused},
};

/// Microseconds for which a vCPU is put off if it can't run now for a transient reason.
const PAUSE_US: u64 = 1_000;

/// Serves one of the host's own hypercalls, made by a vCPU of the TD with these registers ([`crate::hypercall`]).
pub type Hypercall = fn(&Td, &mut Gprs);

/// Runs vCPUs on a machine.
pub struct Scheduler<'p, P> {
    platform: &'p P,
    hypercall: Hypercall,
    queue: IrqLock<RunQueue>,
    guests: IrqLock<BTreeMap<u32, Arc<Guest>>>,
    /// Set when a guest has ended and that end has not been handled yet.
    ended: AtomicBool,
    /// The TD whose console is being watched.
    watched: AtomicU32,
}

impl<'p, P: Running> Scheduler<'p, P> {
    /// Creates a scheduler for all CPUs of this machine, with the configured slice and period for caps. `hypercall`
    /// serves the host's own calls.
    #[must_use]
    pub fn new(platform: &'p P, config: &config::Host, hypercall: Hypercall) -> Self {
        let ticks = |ms: u32| (u128::from(ms) * u128::from(platform.tsc_hz()) / 1000) as Ticks;
        let cpus = platform.cpus().iter().map(|place| place.cpu as usize + 1);
        Self {
            platform,
            hypercall,
            queue: IrqLock::new(RunQueue::new(Settings {
                slice: ticks(config.slice_ms),
                period: ticks(config.cap_period_ms),
                cpus: cpus.max().unwrap_or(1),
            })),
            guests: IrqLock::new(BTreeMap::new()),
            ended: AtomicBool::new(false),
            watched: AtomicU32::new(0),
        }
    }

    /// Returns the guest of a TD that runs or has run.
    #[must_use]
    pub fn guest(&self, id: u32) -> Option<Arc<Guest>> {
        self.guests.lock().get(&id).cloned()
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
        let times = self.queue.lock().times(VcpuId { td, vcpu }, now)?;
        let hz = u128::from(self.platform.tsc_hz().max(1));
        let us = |ticks: Ticks| (u128::from(ticks) * 1_000_000 / hz) as u64;
        Some(Times {
            run: us(times.run),
            wait: us(times.wait),
            steal: us(times.steal),
        })
    }

    /// Runs a vCPU on the calling CPU for one turn. Returns `false` if none is ready; the CPU's timer is then set to
    /// the next time at which one may be.
    pub fn schedule(&self) -> bool {
        let _off = IrqsOff::new();
        let platform = self.platform;
        let cpu = platform.this_cpu();
        // Requests that arrive from here on are seen at the next turn.
        platform.attention(cpu).clear();
        if platform.shutdown().is_down() {
            platform.set_timer(None);
            return false;
        }
        let next = self.queue.lock().pick(cpu, platform.tsc());
        match next {
            Next::Run { id, until } => {
                self.play(cpu, id, until);
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
        let idle = self.queue.lock().idle();
        self.poke(&idle);
    }

    /// Types a byte on the console of a TD. Returns `false` if the byte is lost: the buffer is full, or the TD does not
    /// run.
    pub fn type_byte(&self, id: u32, byte: u8) -> bool {
        let Some(guest) = self.guest(id) else {
            return false;
        };
        let fits = guest.vm().console().type_byte(byte);
        guest.vm().receive_typed(&Bell {
            scheduler: self,
            guest: &guest,
        });
        fits
    }

    /// Posts an NMI to a vCPU. Returns `false` if there is no vCPU of that number.
    pub fn post_nmi(&self, id: u32, vcpu: u32) -> bool {
        let Some(guest) = self.guest(id) else {
            return false;
        };
        let there = guest.vm().vcpus().len() > vcpu as usize;
        guest.vm().post_nmi(
            &Bell {
                scheduler: self,
                guest: &guest,
            },
            vcpu,
        );
        there
    }

    /// Sets the TD whose console is being watched. The machine's console is woken whenever this TD writes.
    pub fn watch(&self, id: Option<u32>) {
        self.watched.store(id.unwrap_or(0), SeqCst);
    }

    fn console_written(&self, id: u32) {
        if self.watched.load(SeqCst) == id {
            self.platform.wake_console();
        }
    }

    fn play(&self, cpu: u32, id: VcpuId, until: Ticks) {
        let guest = self.guest(id.td);
        let td = guest.as_ref().and_then(|guest| guest.td());
        let (Some(guest), Some(td)) = (guest, td) else {
            self.put(cpu, Back::Off);
            return;
        };
        match self.run(cpu, &guest, &td, id.vcpu, until) {
            Ok(Stop::Yield) => self.put(cpu, Back::Ready),
            Ok(Stop::Halted) => self.halt(cpu, &guest, id),
            Ok(Stop::Busy | Stop::OtherCpu) => self.put_off(cpu),
            Ok(Stop::Closed) => self.put(cpu, Back::Off),
            Ok(Stop::Ended) => {
                self.queue.lock().suspend(id.td);
                self.put(cpu, Back::Ready);
                self.ended.store(true, SeqCst);
            }
            Err(Refused::State(_)) => {
                self.queue.lock().suspend(id.td);
                self.put(cpu, Back::Ready);
            }
            Err(Refused::InUse | Refused::NoVcpu) => self.put_off(cpu),
            Err(refused @ (Refused::NoAnswer(_) | Refused::Seam(_))) => {
                if !self.platform.shutdown().is_down() {
                    log::warn!("TD {}: vCPU {}: {refused}", td.config().name, id.vcpu);
                }
                self.put_off(cpu);
            }
        }
    }

    fn run(
        &self,
        cpu: u32,
        guest: &Arc<Guest>,
        td: &Td,
        index: u16,
        until: Ticks,
    ) -> Result<Stop, Refused> {
        let held = td.hold(self.platform, index)?;
        let map = td.map().ok_or(Refused::NoVcpu)?;
        let session = Session {
            scheduler: self,
            guest,
            td,
            map,
            held: &held,
            tdh: self.platform.tdh(),
            attention: self.platform.attention(cpu),
            until,
            guest_due: Cell::new(None),
        };
        let tdvpr = held.tdvpr()?;
        guest
            .play(index, cpu, |vcpu| vcpu.run(guest.vm(), tdvpr, &session))
            .ok_or(Refused::InUse)
    }

    fn put(&self, cpu: u32, back: Back) {
        self.queue.lock().put(cpu, back, self.platform.tsc());
    }

    /// Puts a vCPU off for a transient reason; others run meanwhile.
    fn put_off(&self, cpu: u32) {
        let pause = PAUSE_US * self.platform.tsc_hz() / 1_000_000;
        self.put(cpu, Back::Halted(Some(self.platform.tsc() + pause)));
    }

    fn halt(&self, cpu: u32, guest: &Guest, id: VcpuId) {
        let index = u32::from(id.vcpu);
        let due = guest.play(id.vcpu, cpu, |vcpu| vcpu.due(guest.vm()));
        self.put(cpu, Back::Halted(due.flatten()));
        // An event posted before the vCPU was recorded as halted did not wake it.
        let state = guest.vm().vcpus().get(index as usize);
        if state.is_some_and(|state| !state.is_waiting()) {
            self.wake(id);
        }
    }

    /// Makes a vCPU leave the guest for a request that only its CPU can deliver.
    fn interrupt(&self, guest: &Guest, vcpu: u32) {
        match guest.cpu_of(vcpu) {
            // The CPU checks before it enters the guest again.
            Some(cpu) if cpu == self.platform.this_cpu() => {}
            Some(cpu) => self.platform.poke(cpu),
            None => self.notify(guest, vcpu),
        }
    }

    /// Notifies a vCPU that something was posted for it.
    fn notify(&self, guest: &Guest, vcpu: u32) {
        match guest.cpu_of(vcpu) {
            // The CPU checks before it enters the guest again.
            Some(cpu) if cpu == self.platform.this_cpu() => {}
            Some(cpu) => self.platform.notify(cpu),
            None => self.wake(VcpuId {
                td: guest.id(),
                vcpu: vcpu as u16,
            }),
        }
    }

    fn wake(&self, id: VcpuId) {
        let cpu = self.queue.lock().wake(id, self.platform.tsc());
        self.poke(cpu.as_slice());
    }

    /// Makes CPUs check whose turn it is.
    fn poke(&self, cpus: &[u32]) {
        let me = self.platform.this_cpu();
        for &cpu in cpus {
            self.platform.attention(cpu).poke();
            if cpu != me {
                self.platform.poke(cpu);
            }
        }
    }

    /// Returns the guests that have ended, if any has ended since the last call.
    fn take_ended(&self) -> Vec<Arc<Guest>> {
        if !self.ended.swap(false, SeqCst) {
            return Vec::new();
        }
        let guests = self.guests.lock();
        let ended = guests.values().filter(|guest| guest.vm().end().is_some());
        ended.cloned().collect()
    }
}

/// Notifies a guest's vCPUs from outside any vCPU's turn.
struct Bell<'a, 'p, P> {
    scheduler: &'a Scheduler<'p, P>,
    guest: &'a Guest,
}

impl<P: Running> Notify for Bell<'_, '_, P> {
    fn notify(&self, vcpu: u32) {
        self.scheduler.notify(self.guest, vcpu);
    }

    fn interrupt(&self, vcpu: u32) {
        self.scheduler.interrupt(self.guest, vcpu);
    }
}

impl<P> core::fmt::Debug for Scheduler<'_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Scheduler").finish_non_exhaustive()
    }
}

//! Who runs TDs' vCPUs, where and when.
//!
//! [`queue`] says whose turn it is, and is pure; [`Scheduler`] does it, on every CPU that asks for something to do
//! ([`Scheduler::turn`]). A vCPU that halts gives its CPU away; an interrupt posted to it, or its timer, brings it back. What
//! a TD's end needs of others, who may wait for CPUs, is left to [`ends`].

pub mod ends;
pub mod guest;
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
    queue::{Back, Member, Next, Queue, Settings, Ticks, Times},
    session::Session,
};
use crate::{
    platform::Running,
    td::{Td, vcpu::Refused},
};

/// How long a vCPU stays out that can't run now for a reason that passes, in microseconds.
const PAUSE_US: u64 = 1_000;

/// Serves a hypercall of the host's own that a vCPU of the TD made with these registers ([`crate::hypercall`]).
pub type Hypercall = fn(&Td, &mut Gprs);

/// Runs vCPUs on a machine.
pub struct Scheduler<'p, P> {
    platform: &'p P,
    hypercall: Hypercall,
    queue: IrqLock<Queue>,
    guests: IrqLock<BTreeMap<u32, Arc<Guest>>>,
    /// A TD has come to its end, and nobody has dealt with that yet.
    ended: AtomicBool,
    /// The TD whose console somebody watches.
    watched: AtomicU32,
}

impl<'p, P: Running> Scheduler<'p, P> {
    /// For all CPUs of this machine, with the slice and the period for caps that its operator wants. `hypercall` serves the
    /// host's own calls.
    #[must_use]
    pub fn new(platform: &'p P, config: &config::Host, hypercall: Hypercall) -> Self {
        let ticks = |ms: u32| (u128::from(ms) * u128::from(platform.tsc_hz()) / 1000) as Ticks;
        let cpus = platform.cpus().iter().map(|place| place.cpu as usize + 1);
        Self {
            platform,
            hypercall,
            queue: IrqLock::new(Queue::new(Settings {
                slice: ticks(config.slice_ms),
                period: ticks(config.cap_period_ms),
                cpus: cpus.max().unwrap_or(1),
            })),
            guests: IrqLock::new(BTreeMap::new()),
            ended: AtomicBool::new(false),
            watched: AtomicU32::new(0),
        }
    }

    /// What there is to see of a TD that runs or ran.
    #[must_use]
    pub fn guest(&self, id: u32) -> Option<Arc<Guest>> {
        self.guests.lock().get(&id).cloned()
    }

    /// Why the TD came to its end, if it has: a reset is none.
    #[must_use]
    pub fn problem(&self, id: u32) -> Option<String> {
        let guest = self.guest(id)?;
        let end = guest.board().end()?;
        // One that asked for a reset is about to go on.
        (*end != End::Reset).then(|| end.to_string())
    }

    /// Where a vCPU's time has gone, in microseconds.
    #[must_use]
    pub fn times_us(&self, td: u32, vcpu: u16) -> Option<Times> {
        let now = self.platform.tsc();
        let times = self.queue.lock().times(Member { td, vcpu }, now)?;
        let hz = u128::from(self.platform.tsc_hz().max(1));
        let us = |ticks: Ticks| (u128::from(ticks) * 1_000_000 / hz) as u64;
        Some(Times {
            run: us(times.run),
            wait: us(times.wait),
            steal: us(times.steal),
        })
    }

    /// The calling CPU runs a vCPU for a while. `false` when none wants it: then its timer is set to the next time at which
    /// one may.
    pub fn turn(&self) -> bool {
        let _off = IrqsOff::new();
        let platform = self.platform;
        let cpu = platform.this_cpu();
        // What comes from here on is seen at the next turn.
        platform.attention(cpu).clear();
        if platform.shutdown().is_down() {
            platform.set_timer(None);
            return false;
        }
        let next = self.queue.lock().pick(cpu, platform.tsc());
        match next {
            Next::Run { member, until } => {
                self.play(cpu, member, until);
                true
            }
            Next::Idle { until } => {
                platform.set_timer(until);
                false
            }
        }
    }

    /// Makes CPUs look for work that have none.
    pub fn wake_idle(&self) {
        let idle = self.queue.lock().idle();
        self.poke(&idle);
    }

    /// Types a byte on the console of a TD. `false` when it is lost: too many wait, or the TD does not run.
    pub fn type_byte(&self, id: u32, byte: u8) -> bool {
        let Some(guest) = self.guest(id) else {
            return false;
        };
        let fits = guest.board().console().type_byte(byte);
        guest.board().receive_typed(&Bell {
            scheduler: self,
            guest: &guest,
        });
        fits
    }

    /// Posts an NMI to a vCPU. `false` when there is none of that number.
    pub fn post_nmi(&self, id: u32, vcpu: u32) -> bool {
        let Some(guest) = self.guest(id) else {
            return false;
        };
        let there = guest.board().stations().len() > vcpu as usize;
        guest.board().post_nmi(
            &Bell {
                scheduler: self,
                guest: &guest,
            },
            vcpu,
        );
        there
    }

    /// The TD whose console somebody watches, from now on: who looks at the machine's console is told when it writes.
    pub fn watch(&self, id: Option<u32>) {
        self.watched.store(id.unwrap_or(0), SeqCst);
    }

    fn console_written(&self, id: u32) {
        if self.watched.load(SeqCst) == id {
            self.platform.wake_console();
        }
    }

    fn play(&self, cpu: u32, member: Member, until: Ticks) {
        let guest = self.guest(member.td);
        let td = guest.as_ref().and_then(|guest| guest.td());
        let (Some(guest), Some(td)) = (guest, td) else {
            self.put(cpu, Back::Off);
            return;
        };
        match self.run(cpu, &guest, &td, member.vcpu, until) {
            Ok(Stop::Yield) => self.put(cpu, Back::Ready),
            Ok(Stop::Halted) => self.halt(cpu, &guest, member),
            Ok(Stop::Busy | Stop::OtherCpu) => self.put_off(cpu),
            Ok(Stop::Closed) => self.put(cpu, Back::Off),
            Ok(Stop::Ended) => {
                self.queue.lock().suspend(member.td);
                self.put(cpu, Back::Ready);
                self.ended.store(true, SeqCst);
            }
            Err(Refused::State(_)) => {
                self.queue.lock().suspend(member.td);
                self.put(cpu, Back::Ready);
            }
            Err(Refused::InUse | Refused::NoVcpu) => self.put_off(cpu),
            Err(refused @ (Refused::NoAnswer(_) | Refused::Seam(_))) => {
                if !self.platform.shutdown().is_down() {
                    log::warn!("TD {}: vCPU {}: {refused}", td.config().name, member.vcpu);
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
            .play(index, cpu, |vcpu| vcpu.run(guest.board(), tdvpr, &session))
            .ok_or(Refused::InUse)
    }

    fn put(&self, cpu: u32, back: Back) {
        self.queue.lock().put(cpu, back, self.platform.tsc());
    }

    /// What keeps it from running passes by itself: others run meanwhile.
    fn put_off(&self, cpu: u32) {
        let pause = PAUSE_US * self.platform.tsc_hz() / 1_000_000;
        self.put(cpu, Back::Halted(Some(self.platform.tsc() + pause)));
    }

    fn halt(&self, cpu: u32, guest: &Guest, member: Member) {
        let index = u32::from(member.vcpu);
        let due = guest.play(member.vcpu, cpu, |vcpu| vcpu.due(guest.board()));
        self.put(cpu, Back::Halted(due.flatten()));
        // Whoever posted before it was written down as halted rang no bell.
        let station = guest.board().stations().get(index as usize);
        if station.is_some_and(|station| !station.is_waiting()) {
            self.wake(member);
        }
    }

    /// Makes a vCPU leave the guest for something that only its CPU can hand in.
    fn interrupt(&self, guest: &Guest, vcpu: u32) {
        match guest.cpu_of(vcpu) {
            // It looks before it enters the guest again.
            Some(cpu) if cpu == self.platform.this_cpu() => {}
            Some(cpu) => self.platform.poke(cpu),
            None => self.notify(guest, vcpu),
        }
    }

    /// Tells a vCPU that something was posted for it.
    fn notify(&self, guest: &Guest, vcpu: u32) {
        match guest.cpu_of(vcpu) {
            // It looks before it enters the guest again.
            Some(cpu) if cpu == self.platform.this_cpu() => {}
            Some(cpu) => self.platform.notify(cpu),
            None => self.wake(Member {
                td: guest.id(),
                vcpu: vcpu as u16,
            }),
        }
    }

    fn wake(&self, member: Member) {
        let cpu = self.queue.lock().wake(member, self.platform.tsc());
        self.poke(cpu.as_slice());
    }

    /// Makes CPUs look at whose turn it is.
    fn poke(&self, cpus: &[u32]) {
        let me = self.platform.this_cpu();
        for &cpu in cpus {
            self.platform.attention(cpu).poke();
            if cpu != me {
                self.platform.poke(cpu);
            }
        }
    }

    /// The numbers of the TDs whose guests came to an end since this was asked last.
    fn take_ended(&self) -> Vec<Arc<Guest>> {
        if !self.ended.swap(false, SeqCst) {
            return Vec::new();
        }
        let guests = self.guests.lock();
        let ended = guests
            .values()
            .filter(|guest| guest.board().end().is_some());
        ended.cloned().collect()
    }
}

/// Rings for a guest's vCPUs from outside of any.
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

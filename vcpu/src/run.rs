//! The run loop: enter, decode, serve, enter again.

use seam::abi::{Gprs, metadata::vp};
use seam::address::Gpa;
use seam::error::Recovery;
use seam::tdh::{EnterFlags, Tdvpr};

use crate::board::{Board, End, Halt, Station};
use crate::exit::{Exit, Obstacle};
use crate::host::Host;
use crate::msr::Msrs;

/// How often an entry is tried that something busy prevents, before others get their turn.
const ENTRY_TRIES: u32 = 64;

/// Why a vCPU came back from [`Vcpu::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The host wanted it back ([`Host::must_leave`]).
    Yield,
    /// It waits for an interrupt, its timer ([`Vcpu::due`]) or an NMI: [`Station::is_waiting`] tells for how long.
    Halted,
    /// It is associated with another CPU: TDH.VP.FLUSH there comes first.
    OtherCpu,
    /// Something is busy for so long that others should run meanwhile.
    Busy,
    /// The TD is being terminated: nothing of it can be used any more.
    Closed,
    /// The TD has come to its end: [`Board::end`] tells why.
    Ended,
}

/// One virtual CPU, as it is between two runs. Its registers are the module's; here is what the host keeps for it.
#[derive(Clone, Debug)]
pub struct Vcpu {
    pub(crate) index: u32,
    pub(crate) regs: Gprs,
    pub(crate) msrs: Msrs,
}

impl Vcpu {
    /// The TD's vCPU number `index`, which has x2APIC id `apic_id`, before its first run.
    #[must_use]
    pub fn new(index: u32, apic_id: u32) -> Self {
        Self {
            index,
            regs: Gprs::default(),
            msrs: Msrs::new(apic_id, index == 0),
        }
    }

    /// Its number.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// The host's time-stamp counter at which its timer goes off: it is to run then, halted or not. `None` while it sleeps
    /// with interrupts off, which its timer does not end.
    #[must_use]
    pub fn due(&self, board: &Board) -> Option<u64> {
        let station = board.stations().get(self.index as usize)?;
        match station.halt() {
            Halt::Blocked => None,
            Halt::No | Halt::Interruptible => self.timer_due(board),
        }
    }

    fn timer_due(&self, board: &Board) -> Option<u64> {
        self.msrs.apic.due().map(|due| board.clock().host(due))
    }

    /// Runs it on this CPU, until there is something for who schedules it. With interrupts off from beginning to end, but
    /// where the host takes them itself. One that halted with interrupts off comes back at once unless it has an NMI: no
    /// interrupt and no timer wakes it, and neither does a scheduler that lets it run for them.
    pub fn run<H: Host>(&mut self, board: &Board, tdvpr: &Tdvpr, host: &H) -> Stop {
        let Some(station) = board.stations().get(self.index as usize) else {
            return Stop::Ended;
        };
        let mut session = Session {
            vcpu: self,
            board,
            station,
            tdvpr,
            host,
            tries: 0,
        };
        if session.sleeps_on() {
            return Stop::Halted;
        }
        station.set_halt(Halt::No);
        session.arm_timer();
        let stop = session.run();
        host.wake_at(None);
        stop
    }
}

/// A vCPU that has a CPU.
pub(crate) struct Session<'a, H> {
    pub vcpu: &'a mut Vcpu,
    pub board: &'a Board,
    pub station: &'a Station,
    pub tdvpr: &'a Tdvpr,
    pub host: &'a H,
    tries: u32,
}

impl<H: Host> Session<'_, H> {
    /// Whether it stays halted. The end of its TD is found by [`Self::run`].
    fn sleeps_on(&self) -> bool {
        let station = self.station;
        station.halt() == Halt::Blocked && station.is_waiting() && self.board.end().is_none()
    }

    fn run(&mut self) -> Stop {
        loop {
            if self.host.must_leave() {
                return Stop::Yield;
            }
            if self.board.end().is_some() {
                return Stop::Ended;
            }
            self.expire_timer();
            if let Some(stop) = self.hand_in() {
                return stop;
            }
            let exit = match self.enter() {
                Ok(exit) => exit,
                Err(error) => return self.end(End::Seam(error)),
            };
            let stop = match exit {
                Exit::Call => {
                    self.tries = 0;
                    self.station.tally().calls.add();
                    self.serve_call()
                }
                other => self.serve(other),
            };
            if let Some(stop) = stop {
                return stop;
            }
        }
    }

    fn enter(&mut self) -> Result<Exit, seam::error::Error> {
        self.station.tally().entries.add();
        let tdh = self.host.tdh();
        let status = tdh.vp_enter(self.tdvpr, EnterFlags::default(), &mut self.vcpu.regs)?;
        let shared = self.board.shared().shared_bit();
        Ok(Exit::decode(status, &self.vcpu.regs, shared))
    }

    /// Sees to it that what was posted reaches the guest with this entry.
    fn hand_in(&mut self) -> Option<Stop> {
        if self.station.has_nmi()
            && let Some(stop) = self.inject_nmi()
        {
            return Some(stop);
        }
        if self.station.descriptor().is_outstanding() {
            // Interrupts are off: it arrives in the guest, where the CPU takes what was posted.
            self.station.tally().posted.add();
            self.host.notify_here();
        }
        None
    }

    #[cold]
    fn inject_nmi(&mut self) -> Option<Stop> {
        if !self.station.take_nmi() {
            return None;
        }
        match self.host.tdh().vp_wr(self.tdvpr, vp::PEND_NMI.id, 1, 1) {
            Ok(_) => {
                self.station.tally().nmis_in.add();
                None
            }
            Err(error) if error.recovery() == Recovery::Retry => {
                self.station.put_nmi();
                Some(Stop::Busy)
            }
            Err(error) => Some(self.end(End::Seam(error))),
        }
    }

    /// Serves a fault on a shared address of which the guest could not be told: there must be something now.
    #[cold]
    fn serve_shared(&mut self, gpa: Gpa) -> Option<Stop> {
        let Some(_same) = self.board.conversions.try_read() else {
            // Whoever converts memory may wait for this CPU. The guest runs into it again.
            self.station.tally().retries.add();
            self.host.breathe();
            return None;
        };
        let is_there = self.board.shared().has(self.host.frames(), gpa);
        (!is_there).then(|| self.end(End::NothingShared(gpa)))
    }

    /// Serves what is not a call.
    fn serve(&mut self, exit: Exit) -> Option<Stop> {
        let tally = self.station.tally();
        if !matches!(exit, Exit::NotEntered(_)) {
            self.tries = 0;
        }
        match exit {
            Exit::Call => return self.serve_call(),
            Exit::Interrupt { vector } => {
                tally.interrupts.add();
                self.host.serve_interrupt(vector);
            }
            Exit::Nmi => {
                tally.nmis.add();
                self.host.serve_nmi();
            }
            Exit::Private(fault) => return self.serve_fault(fault),
            Exit::Shared { gpa } => return self.serve_shared(gpa),
            Exit::Misconfigured { gpa } => return Some(self.end(End::Misconfigured(gpa))),
            Exit::BusLock => tally.bus_locks.add(),
            Exit::Notify => tally.notifies.add(),
            Exit::Passed => tally.passed.add(),
            // The guest's TDCALL is executed again; the host has done meanwhile what it asked for.
            Exit::HostHadPriority => tally.priority.add(),
            Exit::NotEntered(obstacle) => return self.overcome(obstacle),
            Exit::MachineCheck(status) => {
                self.host.serve_machine_check();
                return Some(self.end(End::MachineCheck(status)));
            }
            Exit::TripleFault => {
                let vcpu = self.vcpu.index;
                return Some(self.end(End::TripleFault { vcpu }));
            }
            Exit::Lost(status) => return Some(self.end(End::Lost(status))),
            Exit::Unknown(status) => return Some(self.end(End::Unknown(status))),
        }
        None
    }

    #[cold]
    fn overcome(&mut self, obstacle: Obstacle) -> Option<Stop> {
        match obstacle {
            Obstacle::Busy(_) => {
                self.station.tally().retries.add();
                self.tries += 1;
                if self.tries == ENTRY_TRIES {
                    return Some(Stop::Busy);
                }
                self.host.breathe();
                None
            }
            Obstacle::OtherCpu => Some(Stop::OtherCpu),
            Obstacle::Refused(status) => Some(self.end(End::Lost(status))),
        }
    }

    /// The TD has come to its end.
    #[cold]
    pub(crate) fn end(&self, why: End) -> Stop {
        self.board.end_with(why);
        // The reason is the last line there.
        self.host.console_written();
        Stop::Ended
    }

    /// Lets the host's timer stand for the guest's.
    pub(crate) fn arm_timer(&self) {
        self.host.wake_at(self.vcpu.timer_due(self.board));
    }

    /// Posts the timer's interrupt, if its time has come.
    fn expire_timer(&mut self) {
        if self.vcpu.msrs.apic.due().is_none() {
            return;
        }
        let clock = self.board.clock();
        let now = clock.guest(self.host.tsc());
        if self.vcpu.msrs.apic.due().is_some_and(|due| due <= now) {
            self.station.tally().timers.add();
            if let Some(vector) = self.vcpu.msrs.apic.expire(now, clock) {
                // It is here, so that nobody need be told.
                _ = self.station.descriptor().post(vector);
            }
            self.arm_timer();
        }
    }
}

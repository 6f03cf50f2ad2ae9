//! The run loop: enter, decode, serve, enter again.

use seam::abi::{Gprs, metadata::vp};
use seam::address::Gpa;
use seam::error::Recovery;
use seam::tdh::{EnterFlags, Tdvpr};

use crate::board::{Board, End, Halt, Station};
use crate::exit::{Exit, Obstacle};
use crate::host::Host;
use crate::msr::Msrs;

/// Number of tries to enter while a resource is busy, before the vCPU yields its CPU.
const ENTRY_TRIES: u32 = 64;

/// The reason why [`Vcpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The host requested it ([`Host::must_leave`]).
    Yield,
    /// The vCPU waits for an interrupt, its timer ([`Vcpu::due`]) or an NMI. [`Station::is_waiting`] tells how long.
    Halted,
    /// The vCPU is associated with another CPU, which must execute TDH.VP.FLUSH first.
    OtherCpu,
    /// A resource is busy for so long that other vCPUs should run meanwhile.
    Busy,
    /// The TD is being terminated. No vCPU of it can be entered any more.
    Closed,
    /// The TD has ended. [`Board::end`] has the reason.
    Ended,
}

/// The host's state of one virtual CPU between two runs. The module holds the vCPU's own registers.
#[derive(Clone, Debug)]
pub struct Vcpu {
    pub(crate) index: u32,
    pub(crate) regs: Gprs,
    pub(crate) msrs: Msrs,
}

impl Vcpu {
    /// Creates vCPU number `index` of a TD, with x2APIC id `apic_id`, before its first run.
    #[must_use]
    pub fn new(index: u32, apic_id: u32) -> Self {
        Self {
            index,
            regs: Gprs::default(),
            msrs: Msrs::new(apic_id, index == 0),
        }
    }

    /// Returns the vCPU's number in its TD.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Returns the host TSC value at which the vCPU's timer expires. The vCPU must run then, halted or not. `None`
    /// while the vCPU is halted with interrupts disabled, because its timer does not wake it.
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

    /// Runs the vCPU on this CPU until the scheduler has to act. Interrupts are disabled throughout, except where the
    /// host serves them itself. A vCPU that halted with interrupts disabled returns at once unless it has an NMI:
    /// interrupts, its timer and the scheduler do not wake it.
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

/// A vCPU that is running on a CPU.
pub(crate) struct Session<'a, H> {
    pub vcpu: &'a mut Vcpu,
    pub board: &'a Board,
    pub station: &'a Station,
    pub tdvpr: &'a Tdvpr,
    pub host: &'a H,
    tries: u32,
}

impl<H: Host> Session<'_, H> {
    /// Returns whether the vCPU stays halted. If the TD has ended, [`Self::run`] finds that.
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

    /// Ensures that posted interrupts and NMIs reach the guest with the next entry.
    fn hand_in(&mut self) -> Option<Stop> {
        if self.station.has_nmi()
            && let Some(stop) = self.inject_nmi()
        {
            return Some(stop);
        }
        if self.station.descriptor().is_outstanding() {
            // Interrupts are disabled, so this one is delivered in the guest, where the CPU takes the posted vectors.
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

    /// Serves a fault on a shared address for which the guest could not receive #VE. The address must be mapped by now.
    #[cold]
    fn serve_shared(&mut self, gpa: Gpa) -> Option<Stop> {
        let Some(_same) = self.board.conversions.try_read() else {
            // The CPU that converts memory may wait for this CPU. The guest faults again.
            self.station.tally().retries.add();
            self.host.breathe();
            return None;
        };
        let is_there = self.board.shared().has(self.host.frames(), gpa);
        (!is_there).then(|| self.end(End::NothingShared(gpa)))
    }

    /// Serves an exit other than a call.
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
            // The guest executes its TDCALL again. The host has made its own calls meanwhile.
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

    /// Ends the TD for this reason.
    #[cold]
    pub(crate) fn end(&self, why: End) -> Stop {
        self.board.end_with(why);
        // The reason is the console's last line.
        self.host.console_written();
        Stop::Ended
    }

    /// Programs the host timer for the guest's timer.
    pub(crate) fn arm_timer(&self) {
        self.host.wake_at(self.vcpu.timer_due(self.board));
    }

    /// Posts the timer's interrupt if the timer is due.
    fn expire_timer(&mut self) {
        if self.vcpu.msrs.apic.due().is_none() {
            return;
        }
        let clock = self.board.clock();
        let now = clock.guest(self.host.tsc());
        if self.vcpu.msrs.apic.due().is_some_and(|due| due <= now) {
            self.station.tally().timers.add();
            if let Some(vector) = self.vcpu.msrs.apic.expire(now, clock) {
                // The vCPU is on this CPU, so no notification is needed.
                _ = self.station.descriptor().post(vector);
            }
            self.arm_timer();
        }
    }
}

//! The run loop: enter, decode, serve, enter again.

use seam::abi::{Status, metadata::vp};
use seam::address::Gpa;
use seam::error::Recovery;
use seam::tdh::{EnterFlags, Tdvpr};

use crate::current::{Current, Stop};
use crate::end::End;
use crate::exit::{Exit, Obstacle};
use crate::serve::serve_devices;
use crate::slice::{PhysicalCpu, TimeSlice};
use crate::state::Halt;
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use crate::{fault, ghci};

/// Number of tries to enter while a resource is busy, before the vCPU yields its CPU.
const ENTRY_TRIES: u32 = 64;
/// Largest number of parts of the devices' work that a CPU does before it enters the guest. Four are the largest request to a
/// disk (256 KiB), or all that a driver puts into a card's queue of 256 pages: what one vCPU asks for is done at once, by the
/// CPU whose caches have the rings. It takes a part of a millisecond, beside time slices of ten.
const PARTS: u32 = 4;

impl Vcpu {
    /// Runs the vCPU on this CPU until the scheduler has to act. Interrupts are disabled throughout, except where the
    /// host serves them itself. A vCPU that halted with interrupts disabled returns at once unless it has an NMI:
    /// interrupts, its timer and the scheduler do not wake it.
    pub fn run<S: TimeSlice>(&mut self, vm: &Vm, tdvpr: &Tdvpr, slice: &S) -> Stop {
        let Some(state) = vm.vcpus().get(self.index as usize) else {
            return Stop::Ended;
        };
        let mut current = Current {
            vcpu: self,
            vm,
            state,
            tdvpr,
            slice,
            tries: 0,
        };
        if current.sleeps_on() {
            return Stop::Halted;
        }
        state.begin(slice.cpu_number());
        state.set_halt(Halt::No);
        current.arm_timer();
        let stop = current.run();
        slice.set_timer(None);
        state.leave();
        stop
    }
}

impl<S: TimeSlice> Current<'_, S> {
    /// Returns whether the vCPU stays halted. If the TD has ended, [`Self::run`] finds that.
    fn sleeps_on(&self) -> bool {
        let state = self.state;
        state.halt() == Halt::Blocked && state.is_waiting() && self.vm.end().is_none()
    }

    #[inline(never)]
    fn run(&mut self) -> Stop {
        let has_begun = self.vcpu.owes_windows || self.vcpu.mapping.is_some();
        if has_begun && let Some(stop) = self.go_on() {
            return stop;
        }
        loop {
            if self.slice.must_leave() {
                return Stop::Yield;
            }
            if self.vm.end().is_some() {
                return Stop::Ended;
            }
            self.expire_timer();
            if self.vm.devices().pci().has_work() && !self.serve_devices() {
                continue;
            }
            if let Some(stop) = self.hand_in() {
                return stop;
            }
            let status = match self.enter() {
                Ok(status) => status,
                Err(stop) => return stop,
            };
            if Exit::is_call(status) {
                self.tries = 0;
                self.state.tally().calls.add();
                if let Err(stop) = ghci::serve(self) {
                    return stop;
                }
            } else if let Some(stop) = self.serve(status) {
                return stop;
            }
        }
    }

    /// Goes on with what was begun when the vCPU left its CPU, before it is entered again.
    #[cold]
    #[inline(never)]
    fn go_on(&mut self) -> Option<Stop> {
        if self.vm.end().is_some() {
            return Some(Stop::Ended);
        }
        if self.vcpu.owes_windows
            && let Some(stop) = self.move_windows()
        {
            return Some(stop);
        }
        match self.vcpu.mapping {
            Some(_) => ghci::go_on_mapping(self).err(),
            None => None,
        }
    }

    /// Lets the devices do a few parts of their work with the guest's memory. The guest is entered before more is done, so that
    /// one whose other vCPUs make work without end gets ahead. Returns `false` if the vCPU must leave the CPU.
    #[cold]
    #[inline(never)]
    fn serve_devices(&self) -> bool {
        let cpu = self.slice.cpu();
        let begin = cpu.tsc();
        let (mut left, mut stays) = (PARTS, true);
        let is_done = serve_devices(self.waker(), cpu, || {
            cpu.take_interrupts();
            stays = !self.slice.must_leave() && self.vm.end().is_none();
            left -= 1;
            stays && left > 0
        });
        if !is_done && stays {
            self.slice.leave_work(cpu.tsc().saturating_sub(begin));
        }
        is_done || stays
    }

    fn enter(&mut self) -> Result<Status, Stop> {
        self.state.tally().entries.add();
        let tdh = self.slice.tdh();
        let status = tdh.vp_enter(self.tdvpr, EnterFlags::default(), &mut self.vcpu.regs);
        status.map_err(|error| self.end(End::Seam(error)))
    }

    /// Ensures that posted interrupts and NMIs reach the guest with the next entry.
    fn hand_in(&mut self) -> Option<Stop> {
        if self.state.has_nmi()
            && let Some(stop) = self.inject_nmi()
        {
            return Some(stop);
        }
        if self.state.descriptor().is_outstanding() {
            // Interrupts are disabled, so this one is delivered in the guest, where the CPU takes the posted vectors.
            self.state.tally().posted.add();
            self.slice.cpu().notify(self.slice.cpu_number());
        }
        None
    }

    #[cold]
    fn inject_nmi(&mut self) -> Option<Stop> {
        if !self.state.take_nmi() {
            return None;
        }
        match self.slice.tdh().vp_wr(self.tdvpr, vp::PEND_NMI.id, 1, 1) {
            Ok(_) => {
                self.state.tally().nmis_in.add();
                None
            }
            Err(error) if error.recovery() == Recovery::Retry => {
                self.state.put_nmi();
                Some(Stop::Busy)
            }
            Err(error) => Some(self.end(End::Seam(error))),
        }
    }

    /// Serves a fault on a shared address for which the guest could not receive #VE. The address must be mapped by now.
    #[cold]
    fn serve_shared(&mut self, gpa: Gpa) -> Option<Stop> {
        let Some(_same) = self.vm.conversions.try_read() else {
            // The CPU that converts memory may wait for this CPU. The guest faults again.
            self.state.tally().retries.add();
            self.slice.cpu().take_interrupts();
            return None;
        };
        let frames = self.slice.cpu().shared_frames();
        let is_there = self.vm.shared().is_mapped(frames, gpa);
        (!is_there).then(|| self.end(End::NothingShared(gpa)))
    }

    /// Serves an exit other than a call.
    #[inline(never)]
    fn serve(&mut self, status: Status) -> Option<Stop> {
        let shared = self.vm.shared().shared_bit();
        let exit = Exit::decode(status, &self.vcpu.regs, shared);
        let tally = self.state.tally();
        if !matches!(exit, Exit::NotEntered(_)) {
            self.tries = 0;
        }
        match exit {
            Exit::Call => return ghci::serve(self).err(),
            Exit::Interrupt { vector } => {
                tally.interrupts.add();
                self.slice.cpu().serve_interrupt(vector);
            }
            Exit::Nmi => {
                tally.nmis.add();
                self.slice.cpu().serve_nmi();
            }
            Exit::Private(fault) => return fault::serve(self, fault),
            Exit::Shared { gpa } => return self.serve_shared(gpa),
            Exit::Misconfigured { gpa } => return Some(self.end(End::Misconfigured(gpa))),
            Exit::BusLock => tally.bus_locks.add(),
            Exit::Notify => tally.notifies.add(),
            Exit::Passed => tally.passed.add(),
            // The guest executes its TDCALL again. The host has made its own calls meanwhile.
            Exit::HostHadPriority => tally.priority.add(),
            Exit::NotEntered(obstacle) => return self.overcome(obstacle),
            Exit::MachineCheck(status) => {
                // The TD's other vCPUs find it lost from now on, and the first reason is final.
                let stop = self.end(End::MachineCheck(status));
                self.slice.cpu().serve_machine_check();
                return Some(stop);
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
                self.state.tally().retries.add();
                self.tries += 1;
                if self.tries == ENTRY_TRIES {
                    return Some(Stop::Busy);
                }
                self.slice.cpu().take_interrupts();
                None
            }
            Obstacle::OtherCpu => Some(Stop::OtherCpu),
            Obstacle::Refused(status) => Some(self.end(End::Lost(status))),
        }
    }
}

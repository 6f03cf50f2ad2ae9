//! The vCPU that the calling CPU runs, and the operations that every handler of an exit may need.

use seam::tdh::Tdvpr;

use crate::end::End;
use crate::slice::{PhysicalCpu, TimeSlice};
use crate::state::{Event, VcpuState};
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use crate::wake::Waker;

/// Number of tries to move the devices' memory before the vCPU yields its CPU.
const TRIES: u32 = 16;

/// The reason why [`Vcpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The host requested it ([`TimeSlice::must_leave`]).
    Yield,
    /// The vCPU waits for an interrupt, its timer ([`Vcpu::due`]) or an NMI. [`VcpuState::is_waiting`] tells how long.
    Halted,
    /// The vCPU is associated with another CPU, which must execute TDH.VP.FLUSH first.
    OtherCpu,
    /// A resource is busy for so long that other vCPUs should run meanwhile.
    Busy,
    /// The TD is being terminated. No vCPU of it can be entered any more.
    Closed,
    /// The TD has ended. [`Vm::end`] has the reason.
    Ended,
}

/// The vCPU that the calling CPU runs.
pub(crate) struct Current<'a, S> {
    pub vcpu: &'a mut Vcpu,
    pub vm: &'a Vm,
    pub state: &'a VcpuState,
    pub tdvpr: &'a Tdvpr,
    pub slice: &'a S,
    /// Number of tries to enter since the last exit.
    pub tries: u32,
}

impl<'a, S: TimeSlice> Current<'a, S> {
    /// Returns the door to the TD's vCPUs.
    pub fn waker(&self) -> Waker<'a> {
        Waker::new(self.vm, self.slice.executor())
    }

    /// Makes the machine's console show new output of the TD, if it is being watched.
    pub fn note_output(&self) {
        if self.vm.console().is_watched() {
            self.slice.cpu().wake_console();
        }
    }

    /// Ends the TD for this reason.
    #[cold]
    pub(crate) fn end(&self, why: End) -> Stop {
        self.vm.end_with(why);
        // The reason is the console's last line.
        self.note_output();
        Stop::Ended
    }

    /// Programs the host timer for the guest's timer.
    pub(crate) fn arm_timer(&self) {
        self.slice.set_timer(self.vcpu.timer_due(self.vm));
    }

    /// Posts the timer's interrupt if the timer is due.
    #[inline]
    pub(crate) fn expire_timer(&mut self) {
        if self.vcpu.msrs.apic.due().is_some() {
            self.expire_armed_timer();
        }
    }

    #[inline(never)]
    fn expire_armed_timer(&mut self) {
        let clock = self.vm.clock();
        let now = clock.guest(self.slice.cpu().tsc());
        if self.vcpu.msrs.apic.due().is_some_and(|due| due <= now) {
            self.state.tally().timers.add();
            if let Some(vector) = self.vcpu.msrs.apic.expire(now, clock) {
                self.waker().wake(self.vcpu.index, Event::Interrupt(vector));
            }
            self.arm_timer();
        }
    }

    /// Maps the devices' memory where the guest wants it. If other vCPUs or CPUs are in the way for too long, the vCPU
    /// goes on with this before it is entered again.
    #[cold]
    #[inline(never)]
    pub(crate) fn move_windows(&mut self) -> Option<Stop> {
        self.vcpu.owes_windows = true;
        for _ in 0..TRIES {
            if self.vm.end().is_some() {
                return Some(Stop::Ended);
            }
            if self.try_to_move_windows() {
                self.vcpu.owes_windows = false;
                return None;
            }
            self.state.tally().retries.add();
            self.slice.cpu().take_interrupts();
            if self.slice.must_leave() {
                return Some(Stop::Yield);
            }
        }
        Some(Stop::Busy)
    }

    fn try_to_move_windows(&self) -> bool {
        // Another vCPU converts memory, or moves windows.
        let Some(mut windows) = self.vm.conversions.try_write() else {
            return false;
        };
        let frames = self.slice.cpu().shared_frames();
        let (bus, map) = (self.vm.devices().pci(), self.vm.shared());
        windows.follow(bus, map, frames, self.slice).is_ok()
    }
}

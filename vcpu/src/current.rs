//! The vCPU that the calling CPU runs, and the operations that every handler of an exit may need.

use seam::tdh::Tdvpr;

use crate::end::End;
use crate::host::Host;
use crate::vcpu::Vcpu;
use crate::vm::{VcpuState, Vm};

/// The reason why [`Vcpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The host requested it ([`Host::must_leave`]).
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
pub(crate) struct Current<'a, H> {
    pub vcpu: &'a mut Vcpu,
    pub vm: &'a Vm,
    pub state: &'a VcpuState,
    pub tdvpr: &'a Tdvpr,
    pub host: &'a H,
    /// Number of tries to enter since the last exit.
    pub tries: u32,
}

impl<H: Host> Current<'_, H> {
    /// Ends the TD for this reason.
    #[cold]
    pub(crate) fn end(&self, why: End) -> Stop {
        self.vm.end_with(why);
        // The reason is the console's last line.
        self.host.console_written();
        Stop::Ended
    }

    /// Programs the host timer for the guest's timer.
    pub(crate) fn arm_timer(&self) {
        self.host.wake_at(self.vcpu.timer_due(self.vm));
    }

    /// Posts the timer's interrupt if the timer is due.
    pub(crate) fn expire_timer(&mut self) {
        if self.vcpu.msrs.apic.due().is_none() {
            return;
        }
        let clock = self.vm.clock();
        let now = clock.guest(self.host.tsc());
        if self.vcpu.msrs.apic.due().is_some_and(|due| due <= now) {
            self.state.tally().timers.add();
            if let Some(vector) = self.vcpu.msrs.apic.expire(now, clock) {
                // The vCPU is on this CPU, so no notification is needed.
                _ = self.state.descriptor().post(vector);
            }
            self.arm_timer();
        }
    }
}

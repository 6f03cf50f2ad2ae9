//! One time slice of a vCPU on a CPU.

use core::cell::Cell;

use mm::{
    private::{Kick, NoAnswer, PrivateMap},
    shared::Flush,
};
use seam::{abi::Gprs, tdh::Tdh};
use vcpu::{Executor, TimeSlice};

use super::{Scheduler, queue::Ticks};
use crate::{
    platform::{Attention, Running},
    td::{Td, vcpu::Held},
};

/// A time slice. Interrupts are off for its whole duration.
pub(super) struct Slice<'a, P: Running> {
    pub scheduler: &'a Scheduler<'a, P>,
    /// The calling CPU's number.
    pub cpu: u32,
    pub td: &'a Td,
    pub map: &'a PrivateMap,
    pub held: &'a Held<'a>,
    pub tdh: Tdh<'a, P::Call, P::Wait>,
    pub attention: &'a Attention,
    /// End of the time slice.
    pub until: Ticks,
    /// Expiry of the guest's own timer.
    pub guest_due: Cell<Option<Ticks>>,
}

impl<P: Running> Slice<'_, P> {
    fn platform(&self) -> &P {
        self.scheduler.platform
    }

    fn arm_timer(&self) {
        let due = self.guest_due.get().unwrap_or(Ticks::MAX);
        self.platform().set_timer(Some(due.min(self.until)));
    }

    /// Determines whether an event requires the vCPU to leave the CPU. Re-arms the timer otherwise.
    #[cold]
    fn look(&self) -> bool {
        if self.attention.is_poked() || self.platform().tsc() >= self.until {
            return true;
        }
        // The guest's timer, or a timer that went off early.
        self.attention.take_timer();
        self.arm_timer();
        false
    }
}

impl<P: Running> Kick for Slice<'_, P> {
    fn kick(&self) -> Result<(), NoAnswer> {
        self.td.kick(self.platform()).kick()
    }
}

impl<P: Running> Flush for Slice<'_, P> {
    fn flush(&self) -> Result<(), NoAnswer> {
        let platform = self.platform();
        let cpus = self.td.vcpus().cpus();
        let answered = platform.on_all(cpus, &|_| platform.flush_shared_ept());
        answered.map_err(|silent| NoAnswer {
            cpu: silent.first().copied().unwrap_or(u32::MAX),
        })
    }
}

impl<P: Running> TimeSlice for Slice<'_, P> {
    type Call = P::Call;
    type Wait = P::Wait;
    type Pool = P::Pool;
    type Cpu = P;

    fn cpu(&self) -> &P {
        self.platform()
    }

    fn cpu_number(&self) -> u32 {
        self.cpu
    }

    fn executor(&self) -> &dyn Executor {
        self.scheduler
    }

    fn tdh(&self) -> &Tdh<'_, P::Call, P::Wait> {
        &self.tdh
    }

    fn private(&self) -> &PrivateMap {
        self.map
    }

    fn pool(&self) -> &P::Pool {
        self.platform().pool()
    }

    fn must_leave(&self) -> bool {
        !self.held.may_run() || self.attention.is_any() && self.look()
    }

    fn set_timer(&self, tsc: Option<u64>) {
        self.guest_due.set(tsc);
        self.arm_timer();
    }

    fn vendor_call(&self, regs: &mut Gprs) {
        (self.scheduler.hypercall)(self.td, regs);
    }
}

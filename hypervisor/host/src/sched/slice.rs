//! One time slice of a vCPU on a CPU.

use alloc::sync::Arc;
use core::cell::Cell;

use mm::{
    private::{Kick, NoAnswer, PrivateMap},
    shared::Flush,
};
use seam::{abi::Gprs, tdh::Tdh};
use vcpu::{Executor, TimeSlice};

use super::{Scheduler, guest::Guest, queue::Ticks};
use crate::{
    platform::{Attention, Running},
    td::{Td, vcpu::Held},
};

/// The least time in microseconds for which a guest runs between two rounds of its devices' work.
const LEAST_REST_US: u64 = 50;

/// A time slice. Interrupts are off for its whole duration.
pub(super) struct Slice<'a, P: Running> {
    pub scheduler: &'a Scheduler<'a, P>,
    /// The calling CPU's number.
    pub cpu: u32,
    pub guest: &'a Arc<Guest>,
    pub td: &'a Td,
    pub map: &'a PrivateMap,
    pub held: &'a Held<'a>,
    pub tdh: Tdh<'a, P::Call, P::Wait>,
    pub attention: &'a Attention,
    /// End of the time slice.
    pub until: Ticks,
    /// Expiry of the guest's own timer.
    pub guest_due: Cell<Option<Ticks>>,
    /// The time at which the vCPU goes on with its devices' work.
    pub work_due: Cell<Option<Ticks>>,
}

impl<P: Running> Slice<'_, P> {
    fn platform(&self) -> &P {
        self.scheduler.platform
    }

    fn arm_timer(&self) {
        let due = [self.guest_due.get(), self.work_due.get()];
        let due = due.into_iter().flatten().fold(self.until, Ticks::min);
        self.platform().set_timer(Some(due));
    }

    /// Determines whether an event requires the vCPU to leave the CPU. Re-arms the timer otherwise.
    #[cold]
    fn look(&self) -> bool {
        let now = self.platform().tsc();
        if self.attention.is_poked() || now >= self.until {
            return true;
        }
        // The guest's timer, work of its devices, or a timer that went off early.
        self.attention.take_timer();
        let later = self.work_due.get().filter(|due| *due > now);
        self.work_due.set(later);
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

    /// The guest gets as much time as the work took, and a little at least.
    fn leave_work(&self, ticks: u64) {
        let platform = self.platform();
        let least = LEAST_REST_US * platform.tsc_hz() / 1_000_000;
        self.work_due.set(Some(platform.tsc() + ticks.max(least)));
        self.arm_timer();
        self.scheduler.offer(self.guest, self.cpu);
    }

    fn vendor_call(&self, regs: &mut Gprs) {
        (self.scheduler.hypercall)(self.td, regs);
    }
}

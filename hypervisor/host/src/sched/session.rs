//! One turn of a vCPU on a CPU: the host as the vCPU sees it.

use alloc::sync::Arc;
use core::cell::Cell;

use mm::{
    private::{Kick, NoAnswer, PrivateMap},
    shared::Flush,
};
use seam::{abi::Gprs, tdh::Tdh};
use vcpu::{Host, Notify};

use super::{Scheduler, guest::Guest, queue::Ticks};
use crate::{
    platform::{Attention, Running},
    td::{Td, vcpu::Held},
};

/// A vCPU's turn. Interrupts are off for its whole duration.
pub(super) struct Session<'a, P: Running> {
    pub scheduler: &'a Scheduler<'a, P>,
    pub guest: &'a Arc<Guest>,
    pub td: &'a Td,
    pub map: &'a PrivateMap,
    pub held: &'a Held<'a>,
    pub tdh: Tdh<'a, P::Call, P::Wait>,
    pub attention: &'a Attention,
    /// End of the turn.
    pub until: Ticks,
    /// Expiry of the guest's own timer.
    pub guest_due: Cell<Option<Ticks>>,
}

impl<P: Running> Session<'_, P> {
    fn platform(&self) -> &P {
        self.scheduler.platform
    }

    fn set_timer(&self) {
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
        self.set_timer();
        false
    }
}

impl<P: Running> Notify for Session<'_, P> {
    fn notify(&self, vcpu: u32) {
        self.scheduler.notify(self.guest, vcpu);
    }

    fn interrupt(&self, vcpu: u32) {
        self.scheduler.interrupt(self.guest, vcpu);
    }
}

impl<P: Running> Kick for Session<'_, P> {
    fn kick(&self) -> Result<(), NoAnswer> {
        self.td.kick(self.platform()).kick()
    }
}

impl<P: Running> Flush for Session<'_, P> {
    fn flush(&self) -> Result<(), NoAnswer> {
        let platform = self.platform();
        let cpus = self.td.vcpus().cpus();
        let answered = platform.on_each(&cpus, &|_| platform.flush_shared_ept());
        answered.map_err(|silent| NoAnswer {
            cpu: silent.first().copied().unwrap_or(u32::MAX),
        })
    }
}

impl<P: Running> Host for Session<'_, P> {
    type Call = P::Call;
    type Wait = P::Wait;
    type Pool = P::Pool;
    type Frames = P::Frames;

    fn tdh(&self) -> &Tdh<'_, P::Call, P::Wait> {
        &self.tdh
    }

    fn private(&self) -> &PrivateMap {
        self.map
    }

    fn pool(&self) -> &P::Pool {
        self.platform().pool()
    }

    fn frames(&self) -> &P::Frames {
        self.platform().shared_frames()
    }

    fn tsc(&self) -> u64 {
        self.platform().tsc()
    }

    fn monotonic_us(&self) -> u64 {
        self.platform().now_us()
    }

    fn unix_seconds(&self) -> u64 {
        self.platform().unix_seconds()
    }

    fn must_leave(&self) -> bool {
        !self.held.may_run() || self.attention.is_any() && self.look()
    }

    fn wake_at(&self, tsc: Option<u64>) {
        self.guest_due.set(tsc);
        self.set_timer();
    }

    fn serve_interrupt(&self, vector: u8) {
        self.platform().serve_interrupt(vector);
    }

    fn serve_nmi(&self) {
        self.platform().serve_nmi();
    }

    fn serve_machine_check(&self) {
        self.platform().serve_machine_check();
    }

    fn breathe(&self) {
        self.platform().take_interrupts();
    }

    fn notify_here(&self) {
        self.platform().notify(self.platform().this_cpu());
    }

    fn console_written(&self) {
        self.scheduler.console_written(self.guest.id());
    }

    fn vendor_call(&self, _: u32, regs: &mut Gprs) {
        (self.scheduler.hypercall)(self.td, regs);
    }
}

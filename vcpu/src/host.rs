//! What a vCPU needs of the host that runs it.

use mm::private::{Kick, Pool, PrivateMap};
use mm::shared::{Flush, Frames};
use seam::abi::Gprs;
use seam::call::SeamCall;
use seam::retry::Wait;
use seam::tdh::Tdh;

/// Tells a vCPU that something waits for it.
pub trait Notify {
    /// Something was posted for the TD's vCPU number `vcpu`: the CPU that runs it gets the notification interrupt; if it
    /// is halted, it is made to run. Never waits.
    fn notify(&self, vcpu: u32);

    /// The same for what the CPU can't take by itself in the guest, an NMI: the CPU that runs the vCPU leaves the guest.
    fn interrupt(&self, vcpu: u32);
}

/// The host, as one vCPU on one CPU sees it. Everything is called with interrupts off, and returns so.
///
/// [`Kick`] and [`Flush`] take all of the TD's vCPUs out of the guest; while they wait for other CPUs they serve what
/// those want of this one.
pub trait Host: Notify + Kick + Flush {
    /// Executes SEAMCALL on this CPU.
    type Call: SeamCall;
    /// Spends the pauses between two tries.
    type Wait: Wait;
    /// The frames for private memory.
    type Pool: Pool;
    /// The frames for shared memory.
    type Frames: Frames;

    /// The module as this CPU calls it.
    fn tdh(&self) -> &Tdh<'_, Self::Call, Self::Wait>;

    /// The TD's private memory.
    fn private(&self) -> &PrivateMap;

    /// The frames for private memory.
    fn pool(&self) -> &Self::Pool;

    /// The frames for shared memory.
    fn frames(&self) -> &Self::Frames;

    /// This CPU's time-stamp counter.
    fn tsc(&self) -> u64;

    /// Microseconds since the host's start.
    fn monotonic_us(&self) -> u64;

    /// Seconds since 1970-01-01 00:00 UTC.
    fn unix_seconds(&self) -> u64;

    /// Whether the vCPU is to come back before its next entry: its time is over, or somebody wants it to stay out.
    fn must_leave(&self) -> bool;

    /// Interrupts this CPU when its time-stamp counter has reached `tsc`; `None` takes that back. What the host uses the
    /// same timer for is not lost.
    fn wake_at(&self, tsc: Option<u64>);

    /// Runs the handler of an interrupt that was acknowledged for the host by the TD's exit, and ends it.
    fn serve_interrupt(&self, vector: u8);

    /// Runs the handler of an NMI that the TD's exit consumed.
    fn serve_nmi(&self);

    /// Runs the machine-check handler: one happened in the TD.
    fn serve_machine_check(&self);

    /// Takes the interrupts that wait for this CPU, and spends a moment.
    fn breathe(&self);

    /// Sends this CPU the notification interrupt. It stays pending while interrupts are off, and arrives in the guest.
    fn notify_here(&self);

    /// Something was written to the TD's console, which has it in its ring: by the guest, or by the host about its end.
    fn console_written(&self) {}

    /// A call with R10 != 0: one of the host's own. It leaves its answers in the registers, its status in R10.
    fn vendor_call(&self, vcpu: u32, regs: &mut Gprs) {
        let _ = vcpu;
        regs.r10 = crate::ghci::Status::SubfunctionUnsupported as u64;
    }
}

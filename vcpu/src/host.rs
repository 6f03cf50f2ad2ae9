//! The interface that the host provides to a vCPU.

use mm::private::{Kick, Pool, PrivateMap};
use mm::shared::{Flush, Frames};
use seam::abi::Gprs;
use seam::call::SeamCall;
use seam::retry::Wait;
use seam::tdh::Tdh;

/// Notifies a vCPU of a pending event.
pub trait Notify {
    /// Notifies vCPU number `vcpu` of the TD that an interrupt was posted for it. If it runs, its CPU gets the
    /// notification interrupt; if it is halted, it is made runnable. Never waits.
    fn notify(&self, vcpu: u32);

    /// Notifies a vCPU of an event that the CPU can't deliver in the guest, an NMI: a CPU that runs the vCPU leaves the
    /// guest.
    fn interrupt(&self, vcpu: u32);
}

/// The host, as seen by one vCPU on one CPU. All methods are called, and return, with interrupts disabled.
///
/// [`Kick`] and [`Flush`] take all vCPUs of the TD out of the guest. While they wait for other CPUs, they serve
/// requests from those CPUs.
pub trait Host: Notify + Kick + Flush {
    /// Executes SEAMCALL on this CPU.
    type Call: SeamCall;
    /// Spends the pauses between tries.
    type Wait: Wait;
    /// The frame allocator for private memory.
    type Pool: Pool;
    /// The frame allocator for shared memory.
    type Frames: Frames;

    /// Returns the module interface of this CPU.
    fn tdh(&self) -> &Tdh<'_, Self::Call, Self::Wait>;

    /// Returns the TD's private memory.
    fn private(&self) -> &PrivateMap;

    /// Returns the frame allocator for private memory.
    fn pool(&self) -> &Self::Pool;

    /// Returns the frame allocator for shared memory.
    fn frames(&self) -> &Self::Frames;

    /// Returns this CPU's time-stamp counter.
    fn tsc(&self) -> u64;

    /// Returns the microseconds since the host's start.
    fn monotonic_us(&self) -> u64;

    /// Returns the seconds since 1970-01-01 00:00 UTC.
    fn unix_seconds(&self) -> u64;

    /// Returns whether the vCPU must leave the CPU before its next entry: its time slice is over, or it is being
    /// stopped.
    fn must_leave(&self) -> bool;

    /// Interrupts this CPU when its time-stamp counter reaches `tsc`; `None` cancels this. Other users of the same
    /// timer are unaffected.
    fn wake_at(&self, tsc: Option<u64>);

    /// Runs the handler of a host interrupt that the TD exit has acknowledged, and signals its end.
    fn serve_interrupt(&self, vector: u8);

    /// Runs the handler of an NMI that the TD's exit consumed.
    fn serve_nmi(&self);

    /// Runs the machine-check handler after a machine check in the TD.
    fn serve_machine_check(&self);

    /// Serves the interrupts pending on this CPU, and pauses briefly.
    fn breathe(&self);

    /// Sends this CPU the notification interrupt. It stays pending while interrupts are disabled, and is delivered in
    /// the guest.
    fn notify_here(&self);

    /// Tells the host that the TD's console has new output, from the guest or from the host about the TD's end.
    fn console_written(&self) {}

    /// Serves a vendor-specific call (R10 != 0). Writes the results to the registers, and the status to R10.
    fn vendor_call(&self, vcpu: u32, regs: &mut Gprs) {
        let _ = vcpu;
        regs.r10 = crate::branch::Status::SubfunctionUnsupported as u64;
    }
}

//! The interface between a vCPU and its host: what the machine gives, and what one time slice gives.

use mm::private::{Kick, Pool, PrivateMap};
use mm::shared::{Flush, Frames};
use seam::abi::Gprs;
use seam::call::SeamCall;
use seam::retry::Wait;
use seam::tdh::Tdh;

use crate::wake::Executor;

/// The calling CPU, its clocks and its interrupts, and the other services of the machine that every vCPU may use. All
/// methods are called, and return, with interrupts disabled.
pub trait PhysicalCpu {
    /// The frame allocator for shared memory.
    type Frames: Frames;

    /// Returns the frame allocator for shared memory.
    fn shared_frames(&self) -> &Self::Frames;

    /// Returns this CPU's time-stamp counter.
    fn tsc(&self) -> u64;

    /// Returns the microseconds since the host's start.
    fn monotonic_us(&self) -> u64;

    /// Returns the seconds since 1970-01-01 00:00 UTC.
    fn unix_seconds(&self) -> u64;

    /// Runs the handler of a host interrupt that the TD exit has acknowledged, and signals its end.
    fn serve_interrupt(&self, vector: u8);

    /// Runs the handler of an NMI that the TD's exit consumed.
    fn serve_nmi(&self);

    /// Runs the machine-check handler after a machine check in the TD.
    fn serve_machine_check(&self);

    /// Takes the interrupts pending on this CPU, and pauses briefly.
    fn take_interrupts(&self);

    /// Sends the notification interrupt to a CPU. If it is the calling one, the interrupt stays pending while
    /// interrupts are disabled, and is delivered in the guest.
    fn notify(&self, cpu: u32);

    /// Makes the CPU that serves the machine's console look at the consoles of TDs.
    fn wake_console(&self);
}

/// One time slice of a vCPU on a CPU, as its scheduler grants it. All methods are called, and return, with interrupts
/// disabled.
///
/// [`Kick`] and [`Flush`] take all vCPUs of the TD out of the guest. While they wait for other CPUs, they serve
/// requests from those CPUs.
pub trait TimeSlice: Kick + Flush {
    /// Executes SEAMCALL on this CPU.
    type Call: SeamCall;
    /// Spends the pauses between tries.
    type Wait: Wait;
    /// The frame allocator for private memory.
    type Pool: Pool;
    /// The machine.
    type Cpu: PhysicalCpu;

    /// Returns the calling CPU.
    fn cpu(&self) -> &Self::Cpu;

    /// Returns the number of the calling CPU.
    fn cpu_number(&self) -> u32;

    /// Returns the scheduler that runs the TD's vCPUs.
    fn executor(&self) -> &dyn Executor;

    /// Returns the module interface of this CPU.
    fn tdh(&self) -> &Tdh<'_, Self::Call, Self::Wait>;

    /// Returns the TD's private memory.
    fn private(&self) -> &PrivateMap;

    /// Returns the frame allocator for private memory.
    fn pool(&self) -> &Self::Pool;

    /// Returns whether the vCPU must leave the CPU before its next entry: its time slice is over, or it is being
    /// stopped.
    fn must_leave(&self) -> bool;

    /// Interrupts this CPU when its time-stamp counter reaches `tsc`; `None` cancels this. Other users of the same
    /// timer are unaffected.
    fn set_timer(&self, tsc: Option<u64>);

    /// Notes that work of the TD's devices is left, on which this CPU has just spent `ticks` of its time-stamp counter. A CPU
    /// that has nothing else to do may take it ([`help_devices`](crate::help_devices)), and the vCPU leaves the guest again
    /// soon, to go on if none does. By default, the work waits until the guest leaves by itself.
    fn leave_work(&self, ticks: u64) {
        let _ = ticks;
    }

    /// Serves a vendor-specific call (R10 != 0). Writes the results to the registers, and the status to R10.
    fn vendor_call(&self, regs: &mut Gprs) {
        regs.r10 = crate::branch::Status::SubfunctionUnsupported as u64;
    }
}

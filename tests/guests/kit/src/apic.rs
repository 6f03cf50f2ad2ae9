//! The vCPU's x2APIC. Some registers are the TD's own; the host emulates the others.
//!
//! Source: Intel SDM volume 3A, chapter 11.12; for native registers: TDX Module ABI 1.5, MSR virtualization.
#![expect(unsafe_code, reason = "writes MSRs of the virtual APIC")]

use crate::cpu;
use crate::trap::SPURIOUS;
use crate::vmcall::{self, Refused};

/// Registers, by MSR.
pub mod msr {
    pub use seam::abi::x86::msr::TSC_DEADLINE;
    pub use seam::abi::x86::msr::x2apic::{EOI, ICR, ID, LVT_TIMER, SELF_IPI, SVR as SPURIOUS};
}

/// The APIC is on.
const ENABLED: u64 = 1 << 8;
/// The timer fires when the time-stamp counter passes IA32_TSC_DEADLINE.
const DEADLINE_MODE: u64 = 2 << 17;

/// Interrupt command: the destination is all except the sender; delivery mode NMI.
const ALL_BUT_SELF: u64 = 3 << 18;
const NMI: u64 = 4 << 8;

/// Returns this vCPU's APIC id, which the host supplies.
///
/// # Errors
/// [`Refused`].
pub fn id() -> Result<u32, Refused> {
    vmcall::rdmsr(msr::ID).map(|id| id as u32)
}

/// Switches the APIC on.
///
/// # Errors
/// [`Refused`].
pub fn enable() -> Result<(), Refused> {
    vmcall::wrmsr(msr::SPURIOUS, ENABLED | u64::from(SPURIOUS))
}

/// Signals the end of the interrupt in service.
pub fn end_of_interrupt() {
    // SAFETY: it ends an interrupt, and does nothing if none is in service.
    unsafe { cpu::wrmsr(msr::EOI, 0) }
}

/// Sends an interrupt to this vCPU itself, without the host.
pub fn self_ipi(vector: u8) {
    // SAFETY: every vector has a handler.
    unsafe { cpu::wrmsr(msr::SELF_IPI, vector.into()) }
}

/// Sends an interrupt to the vCPU with APIC id `destination`.
///
/// # Errors
/// [`Refused`].
pub fn ipi(destination: u32, vector: u8) -> Result<(), Refused> {
    vmcall::wrmsr(msr::ICR, u64::from(destination) << 32 | u64::from(vector))
}

/// Sends an interrupt to all other vCPUs.
///
/// # Errors
/// [`Refused`].
pub fn ipi_to_others(vector: u8) -> Result<(), Refused> {
    vmcall::wrmsr(msr::ICR, ALL_BUT_SELF | u64::from(vector))
}

/// Sends an NMI to the vCPU with APIC id `destination`.
///
/// # Errors
/// [`Refused`].
pub fn nmi(destination: u32) -> Result<(), Refused> {
    vmcall::wrmsr(msr::ICR, u64::from(destination) << 32 | NMI)
}

/// Arms the timer: this vCPU is interrupted when the time-stamp counter passes `deadline`.
///
/// # Errors
/// [`Refused`].
pub fn timer(vector: u8, deadline: u64) -> Result<(), Refused> {
    vmcall::wrmsr(msr::LVT_TIMER, DEADLINE_MODE | u64::from(vector))?;
    vmcall::wrmsr(msr::TSC_DEADLINE, deadline)
}

//! VMX root operation, which SEAMCALL needs on every CPU.
//!
//! Source: Intel SDM volume 3C, section 24.7 ("Enabling and Entering VMX Operation") and appendix A.
#![expect(
    unsafe_code,
    reason = "VMXON has no safe intrinsic, and control registers are changed for it"
)]

use core::{arch::naked_asm, fmt};

use mca::capability::{Capability, LMCE_OPT_IN};
use mm::frames::ORDER_4K;
use seam::abi::x86::msr::{FEATURE_CONTROL, mc::MCG_CAP};
use x86_64::registers::control::{Cr0, Cr4, Cr4Flags};

use super::Cpu;
use crate::{exception, memory, msr};

/// CR4.VMXE.
pub const CR4_VMXE: u64 = Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits();

const VMX_BASIC: u32 = 0x480;
const CR0_FIXED0: u32 = 0x486;
const CR0_FIXED1: u32 = 0x487;
const CR4_FIXED0: u32 = 0x488;
const CR4_FIXED1: u32 = 0x489;
const LOCKED: u64 = 1;
const VMX_OUTSIDE_SMX: u64 = 1 << 2;

/// A CPU in VMX root operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vmx {
    /// Physical address of the VMXON region.
    pub region: u64,
}

/// The reason why a CPU did not enter VMX operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The CPU has no VMX.
    Absent,
    /// IA32_FEATURE_CONTROL is locked without VMX outside SMX.
    LockedOff,
    /// No memory for the VMXON region.
    NoMemory,
    /// The VMXON region is larger than 4 KiB; this is its size in bytes.
    Region(u64),
    /// VMXON failed with CF = 1 (VMfailInvalid).
    Refused,
    /// VMXON faulted with this vector.
    Fault(u8),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "no VMX"),
            Self::LockedOff => write!(f, "VMX is locked off by the firmware"),
            Self::NoMemory => write!(f, "no memory for the VMXON region"),
            Self::Region(bytes) => write!(f, "a VMXON region of {bytes} bytes is not supported"),
            Self::Refused => write!(f, "VMXON failed (VMfailInvalid)"),
            Self::Fault(vector) => write!(f, "VMXON faulted ({})", exception::name(*vector)),
        }
    }
}

/// Enters VMX operation on the running CPU and records the outcome.
pub fn enter_here(cpu: &Cpu) {
    let outcome = enter();
    *cpu.vmx.lock() = Some(outcome);
}

fn enter() -> Result<Vmx, Error> {
    if core::arch::x86_64::__cpuid(1).ecx & 1 << 5 == 0 {
        return Err(Error::Absent);
    }
    // A CPU without the register has no VMX that it could lock.
    if let Some(control) = msr::read(FEATURE_CONTROL)
        && let Some(unlocked) = feature_control(control, msr::read(MCG_CAP).unwrap_or(0))?
    {
        // SAFETY: the register is not locked, so that these bits are the program's to set, and the CPU has them.
        unsafe { msr::write(FEATURE_CONTROL, unlocked) };
    }
    let basic = msr::read(VMX_BASIC).ok_or(Error::Absent)?;
    let size = basic >> 32 & 0x1FFF;
    if size > 4096 {
        return Err(Error::Region(size));
    }
    let fixed = |value: u64, set: u32, clear: u32| {
        (value | msr::read(set).unwrap_or(0)) & msr::read(clear).unwrap_or(u64::MAX)
    };
    let region = memory::alloc_zeroed(ORDER_4K).ok_or(Error::NoMemory)?.pa;
    let revision = basic as u32 & 0x7FFF_FFFF;
    // SAFETY: the frame was allocated for this alone, and the direct map has it; the control registers get the bits
    // that the CPU demands in VMX operation, all of which hold in 64-bit mode with paging; VMXE is among them.
    let outcome = unsafe {
        (memory::direct(region) as *mut u32).write_volatile(revision);
        Cr0::write_raw(fixed(Cr0::read_raw(), CR0_FIXED0, CR0_FIXED1));
        Cr4::write_raw(fixed(Cr4::read_raw() | CR4_VMXE, CR4_FIXED0, CR4_FIXED1));
        vmxon(&region)
    };
    match outcome {
        ENTERED => Ok(Vmx { region }),
        FAILED => Err(Error::Refused),
        vector => Err(Error::Fault(vector as u8)),
    }
}

/// Returns the value to write to IA32_FEATURE_CONTROL, which holds `control`, or `None` if it is locked. Besides VMX, it
/// allows local machine checks if IA32_MCG_CAP has them (SDM volume 3B, section 16.3.1.5).
///
/// # Errors
/// [`Error::LockedOff`].
fn feature_control(control: u64, mcg_cap: u64) -> Result<Option<u64>, Error> {
    if control & LOCKED != 0 {
        return if control & VMX_OUTSIDE_SMX == 0 {
            Err(Error::LockedOff)
        } else {
            Ok(None)
        };
    }
    let has_local = Capability(mcg_cap).has_local();
    let local = if has_local { LMCE_OPT_IN } else { 0 };
    Ok(Some(control | LOCKED | VMX_OUTSIDE_SMX | local))
}

/// Executes INVEPT for all contexts: drops what this CPU has cached of every EPT, shared ones included. The CPU must
/// be in VMX operation.
pub fn forget_epts() {
    const ALL_CONTEXTS: u64 = 2;
    let descriptor = [0u64; 2];
    // SAFETY: INVEPT changes nothing but what the CPU has cached; every CPU with TDX has this type of it.
    unsafe {
        core::arch::asm!(
            "invept {kind}, [{descriptor}]",
            kind = in(reg) ALL_CONTEXTS,
            descriptor = in(reg) &raw const descriptor,
            options(nostack),
        );
    }
}

const ENTERED: u64 = 0x100;
const FAILED: u64 = 0x101;

/// Executes VMXON with the region whose physical address is at `region`. Returns 0x100, 0x101 if it failed, or the
/// vector of the fault.
#[unsafe(naked)]
unsafe extern "sysv64" fn vmxon(region: *const u64) -> u64 {
    naked_asm!(
        "2: vmxon [rdi]",
        "mov eax, {entered}",
        "ja 3f",
        "mov eax, {failed}",
        "3: ret",
        ".pushsection seamark_fixups, \"aR\", @progbits",
        ".balign 4",
        ".long 2b - .",
        ".long 3b - .",
        ".popsection",
        entered = const ENTERED,
        failed = const FAILED,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IA32_MCG_CAP: the CPU has local machine checks.
    const MCG_LMCE_P: u64 = 1 << 27;

    #[test]
    fn an_unlocked_register_is_locked_with_what_the_cpu_has() {
        assert_eq!(feature_control(0, 0), Ok(Some(5)));
        assert_eq!(feature_control(0, MCG_LMCE_P), Ok(Some(0x10_0005)));
        // Features that the firmware enabled, such as SGX, stay enabled.
        assert_eq!(feature_control(1 << 18, 0), Ok(Some(1 << 18 | 5)));
    }

    #[test]
    fn a_locked_register_is_not_written() {
        assert_eq!(feature_control(5, MCG_LMCE_P), Ok(None));
        assert_eq!(feature_control(1, MCG_LMCE_P), Err(Error::LockedOff));
        // Inside SMX is not enough.
        assert_eq!(feature_control(3, 0), Err(Error::LockedOff));
    }
}

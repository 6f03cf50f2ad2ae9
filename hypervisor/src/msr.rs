//! Model-specific registers and CPUID, and loads that may fault.
#![expect(
    unsafe_code,
    reason = "RDMSR, WRMSR and loads from unproven addresses are instructions without safe intrinsics"
)]

use core::arch::naked_asm;

use seam::platform::Registers;
use x86_64::registers::model_specific::Msr;

/// The fault of an instruction that is allowed to fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The exception's vector.
    pub vector: u8,
    /// The exception's error code.
    pub code: u64,
}

/// RAX holds the value, RDX success (all ones) or the error code of the fault whose vector is in RAX.
#[repr(C)]
struct Outcome {
    rax: u64,
    rdx: u64,
}

const NO_FAULT: u64 = u64::MAX;

impl Outcome {
    fn result(self) -> Result<u64, Fault> {
        match self.rdx {
            NO_FAULT => Ok(self.rax),
            code => Err(Fault {
                vector: self.rax as u8,
                code,
            }),
        }
    }
}

/// Executes RDMSR. Returns `None` if the CPU has no such MSR.
#[must_use]
pub fn read(msr: u32) -> Option<u64> {
    // SAFETY: reading an MSR has no effect on memory, and a fault is survived.
    unsafe { rdmsr(msr) }.result().ok()
}

/// Executes WRMSR.
///
/// # Safety
/// The CPU has the MSR and accepts this value, and nothing else relies on what it changes.
pub unsafe fn write(msr: u32, value: u64) {
    // SAFETY: as promised by the caller.
    unsafe { Msr::new(msr).write(value) }
}

/// Executes WRMSR, which may fault.
///
/// # Errors
/// The fault: the CPU has no such MSR, or refuses the value.
///
/// # Safety
/// Nothing relies on what the register changes if the CPU accepts this value.
pub unsafe fn try_write(msr: u32, value: u64) -> Result<(), Fault> {
    // SAFETY: as promised by the caller; a fault is survived.
    unsafe { wrmsr(msr, value) }.result().map(drop)
}

/// Loads 8 bytes from a virtual address that need not be mapped.
///
/// # Errors
/// The fault that the load caused.
pub fn load(va: u64) -> Result<u64, Fault> {
    // SAFETY: a load changes no memory of the program, and a fault is survived. The side effects of device registers
    // are the caller's business.
    unsafe { probe(va) }.result()
}

/// Loads 4 bytes as [`load`] does.
///
/// # Errors
/// The fault that the load caused.
pub fn load_u32(va: u64) -> Result<u32, Fault> {
    // SAFETY: as above.
    unsafe { probe_u32(va) }.result().map(|value| value as u32)
}

#[unsafe(naked)]
unsafe extern "sysv64" fn rdmsr(msr: u32) -> Outcome {
    naked_asm!(
        "mov ecx, edi",
        "2: rdmsr",
        "shl rdx, 32",
        "or rax, rdx",
        "mov rdx, -1",
        "3: ret",
        ".pushsection seamark_fixups, \"aR\", @progbits",
        ".balign 4",
        ".long 2b - .",
        ".long 3b - .",
        ".popsection",
    )
}

#[unsafe(naked)]
unsafe extern "sysv64" fn wrmsr(msr: u32, value: u64) -> Outcome {
    naked_asm!(
        "mov ecx, edi",
        "mov eax, esi",
        "mov rdx, rsi",
        "shr rdx, 32",
        "2: wrmsr",
        "mov rdx, -1",
        "3: ret",
        ".pushsection seamark_fixups, \"aR\", @progbits",
        ".balign 4",
        ".long 2b - .",
        ".long 3b - .",
        ".popsection",
    )
}

/// Returns true if the instruction at `rip` is the load of [`load`] or [`load_u32`], whose failure is survived.
#[must_use]
pub fn is_load(rip: u64) -> bool {
    [probe as *const (), probe_u32 as *const ()].contains(&(rip as *const ()))
}

#[unsafe(naked)]
unsafe extern "sysv64" fn probe(va: u64) -> Outcome {
    naked_asm!(
        "2: mov rax, [rdi]",
        "mov rdx, -1",
        "3: ret",
        ".pushsection seamark_fixups, \"aR\", @progbits",
        ".balign 4",
        ".long 2b - .",
        ".long 3b - .",
        ".popsection",
    )
}

#[unsafe(naked)]
unsafe extern "sysv64" fn probe_u32(va: u64) -> Outcome {
    naked_asm!(
        "2: mov eax, [rdi]",
        "mov rdx, -1",
        "3: ret",
        ".pushsection seamark_fixups, \"aR\", @progbits",
        ".balign 4",
        ".long 2b - .",
        ".long 3b - .",
        ".popsection",
    )
}

/// This CPU's registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisCpu;

impl Registers for ThisCpu {
    fn cpuid(&self, leaf: u32, sub_leaf: u32) -> [u32; 4] {
        let max = core::arch::x86_64::__cpuid(leaf & 0x8000_0000).eax;
        if leaf > max {
            // An Intel CPU repeats its last leaf beyond the maximum; that data is not wanted here.
            return [0; 4];
        }
        let r = core::arch::x86_64::__cpuid_count(leaf, sub_leaf);
        [r.eax, r.ebx, r.ecx, r.edx]
    }

    fn rdmsr(&self, msr: u32) -> Option<u64> {
        read(msr)
    }
}

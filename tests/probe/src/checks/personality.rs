//! CPUID and the registers that say what the processor is.

use crate::attempt::{GP, UD, rdmsr, vmmcall, wrmsr};
use crate::cpu::cpuid;
use crate::{Check, expect};

pub fn vendor_and_signature() -> Check {
    let [max, b, c, d] = cpuid(0, 0);
    expect("EBX", b.into(), u32::from_le_bytes(*b"Genu").into())?;
    expect("EDX", d.into(), u32::from_le_bytes(*b"ineI").into())?;
    expect("ECX", c.into(), u32::from_le_bytes(*b"ntel").into())?;
    expect("at least 0x1F basic leaves", u64::from(max >= 0x1F), 1)?;
    expect("the signature", cpuid(1, 0)[0].into(), 0x806F8)
}

pub fn features() -> Check {
    let ecx = cpuid(1, 0)[2];
    for (what, bit, value) in [
        ("VMX", 5, 1),
        ("x2APIC", 21, 1),
        ("TSC deadline", 24, 1),
        ("hypervisor", 31, 0),
    ] {
        expect(what, (ecx >> bit & 1).into(), value)?;
    }
    let [_, _, ecx, edx] = cpuid(7, 0);
    expect("MOVDIR64B", (ecx >> 28 & 1).into(), 1)?;
    expect("TME", (ecx >> 13 & 1).into(), 1)?;
    expect("ARCH_CAPABILITIES", (edx >> 29 & 1).into(), 1)?;
    expect("SVM", (cpuid(0x8000_0001, 0)[2] >> 2 & 1).into(), 0)
}

pub fn address_widths() -> Check {
    expect("EAX", (cpuid(0x8000_0008, 0)[0] & 0xFFFF).into(), 0x3034)
}

pub fn topology() -> Check {
    expect(
        "threads of 0xB and 0x1F",
        cpuid(0xB, 0)[0].into(),
        cpuid(0x1F, 0)[0].into(),
    )?;
    let [shift, _, kind, _] = cpuid(0x1F, 1);
    expect("the second level", (kind >> 8 & 0xFF).into(), 2)?;
    expect("the third level", cpuid(0x1F, 2)[2].into(), 2)?;
    let sharing = (cpuid(4, 3)[0] >> 14 & 0xFFF) + 1;
    expect(
        "who shares the last-level cache",
        sharing.into(),
        1 << shift.max(1),
    )
}

pub fn clock() -> Check {
    let [denominator, numerator, crystal, _] = cpuid(0x15, 0);
    expect("a ratio", u64::from(denominator != 0 && numerator != 0), 1)?;
    expect("a crystal", u64::from(crystal != 0), 1)
}

pub fn beyond_the_last_leaf() -> Check {
    expect("0x40000000", cpuid(0x4000_0000, 0)[1].into(), 0)?;
    expect("0x8000000A", cpuid(0x8000_000A, 0)[3].into(), 0)
}

pub fn feature_control() -> Check {
    expect("IA32_FEATURE_CONTROL", rdmsr(0x3A).unwrap_or(0), 5)?;
    expect("writing it", wrmsr(0x3A, 5).unwrap_err_or_zero(), GP)
}

pub fn tdx_host() -> Check {
    expect("SEAMRR in MTRRCAP", rdmsr(0xFE).unwrap_or(0) >> 15 & 1, 1)?;
    expect(
        "SEAMRR_PHYS_BASE.CONFIGURED",
        rdmsr(0x1400).unwrap_or(0) >> 3 & 1,
        1,
    )?;
    expect(
        "SEAMRR_PHYS_MASK.LOCK and VALID",
        rdmsr(0x1401).unwrap_or(0) >> 10 & 3,
        3,
    )?;
    expect("XAPIC_DISABLE_STATUS", rdmsr(0xBD).unwrap_or(0), 1)?;
    expect(
        "a register that no CPU has",
        rdmsr(0x1FFF).err().unwrap_or(0),
        GP,
    )
}

pub fn keyid_partition() -> Check {
    let partition = rdmsr(0x87).unwrap_or(0);
    let activate = rdmsr(0x982).unwrap_or(0);
    let shared_bits = (activate >> 32 & 0xF) - (activate >> 36 & 0xF);
    expect(
        "shared KeyIDs",
        partition & 0xFFFF_FFFF,
        (1 << shared_bits) - 1,
    )?;
    expect(
        "at least two private HKIDs",
        u64::from(partition >> 32 >= 2),
        1,
    )?;
    expect("TME_ACTIVATE.LOCK", activate & 1, 1)
}

pub fn svm_is_unknown() -> Check {
    expect("VM_CR", rdmsr(0xC001_0114).err().unwrap_or(0), GP)?;
    expect("VM_HSAVE_PA", rdmsr(0xC001_0117).err().unwrap_or(0), GP)
}

pub fn efer() -> Check {
    const EFER: u32 = 0xC000_0080;
    const SVME: u64 = 1 << 12;
    let value = rdmsr(EFER).unwrap_or(SVME);
    expect("SVME", value & SVME, 0)?;
    expect(
        "setting SVME",
        wrmsr(EFER, value | SVME).unwrap_err_or_zero(),
        GP,
    )?;
    expect(
        "writing EFER back",
        wrmsr(EFER, value).unwrap_err_or_zero(),
        0,
    )
}

pub fn svm_instructions() -> Check {
    expect("VMMCALL", vmmcall().unwrap_err_or_zero(), UD)
}

/// The vector of a fault, or zero if there was none.
pub trait Vector {
    /// See the trait.
    fn unwrap_err_or_zero(self) -> u64;
}

impl Vector for Result<(), u64> {
    fn unwrap_err_or_zero(self) -> u64 {
        self.err().unwrap_or(0)
    }
}

//! The boot CPU's identification registers, as the console reports them.

use console::host::{
    Hex,
    platform::{CpuidLeaf, MsrValue, Platform},
};
use seam::platform::Registers;

use crate::cpu::model;

/// The leafs of CPUID with their sub-leafs: identity, features, topology, clock, memory encryption, addresses.
const LEAFS: [(u32, u32); 17] = [
    (0, 0),
    (1, 0),
    (7, 0),
    (7, 1),
    (7, 2),
    (0xB, 0),
    (0xB, 1),
    (0xD, 0),
    (0xD, 1),
    (0x15, 0),
    (0x16, 0),
    (0x1F, 0),
    (0x1F, 1),
    (0x8000_0001, 0),
    (0x8000_0007, 0),
    (0x8000_0008, 0),
    (0x8000_001F, 0),
];

/// The registers that TDX, and the start of CPUs, depend on. Reading has no side effect.
const MSRS: [(&str, u32); 22] = [
    ("IA32_APIC_BASE", 0x1B),
    ("IA32_FEATURE_CONTROL", 0x3A),
    ("IA32_TSC_ADJUST", 0x3B),
    ("IA32_MKTME_KEYID_PARTITIONING", 0x87),
    ("IA32_BIOS_SIGN_ID", 0x8B),
    ("IA32_XAPIC_DISABLE_STATUS", 0xBD),
    ("IA32_CORE_CAPABILITIES", 0xCF),
    ("IA32_MTRRCAP", 0xFE),
    ("IA32_ARCH_CAPABILITIES", 0x10A),
    ("IA32_TSX_CTRL", 0x122),
    ("IA32_MCG_CAP", 0x179),
    ("IA32_MISC_ENABLE", 0x1A0),
    ("IA32_SMRR_PHYSBASE", 0x1F2),
    ("IA32_SMRR_PHYSMASK", 0x1F3),
    ("IA32_VMX_BASIC", 0x480),
    ("IA32_VMX_PROCBASED_CTLS2", 0x48B),
    ("IA32_TME_CAPABILITY", 0x981),
    ("IA32_TME_ACTIVATE", 0x982),
    ("IA32_TME_EXCLUDE_MASK", 0x983),
    ("IA32_TME_EXCLUDE_BASE", 0x984),
    ("IA32_SEAMRR_PHYS_BASE", 0x1400),
    ("IA32_SEAMRR_PHYS_MASK", 0x1401),
];

/// Reads the registers.
pub fn platform(registers: &impl Registers) -> Platform {
    let leaf = |(leaf, sub_leaf): (u32, u32)| {
        let [eax, ebx, ecx, edx] = registers
            .cpuid(leaf, sub_leaf)
            .map(|value| Hex(value.into()));
        CpuidLeaf {
            leaf: Hex(leaf.into()),
            sub_leaf: Hex(sub_leaf.into()),
            eax,
            ebx,
            ecx,
            edx,
        }
    };
    let msr = |(name, number): (&'static str, u32)| MsrValue {
        name,
        number: Hex(number.into()),
        value: registers.rdmsr(number).map(Hex),
    };
    Platform {
        cpu: model::here().into(),
        cpuid: LEAFS.map(leaf).to_vec(),
        msrs: MSRS.map(msr).to_vec(),
    }
}

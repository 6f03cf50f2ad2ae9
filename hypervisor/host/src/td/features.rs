//! The features that a TD's configuration names, as bits.

use config::{Paravirt, XfamFeature};
use seam::abi::Xfam;

/// Returns the bits of XFAM for a feature.
pub(super) const fn xfam(feature: XfamFeature) -> Xfam {
    match feature {
        XfamFeature::X87 => Xfam::X87,
        XfamFeature::Sse => Xfam::SSE,
        XfamFeature::Avx => Xfam::AVX,
        XfamFeature::Avx512 => Xfam::AVX512,
        XfamFeature::Pt => Xfam::PT,
        XfamFeature::Pkru => Xfam::PKRU,
        XfamFeature::Cet => Xfam::CET,
        XfamFeature::Uintr => Xfam::UINTR,
        XfamFeature::Lbr => Xfam::LBR,
        XfamFeature::Amx => Xfam::AMX,
        XfamFeature::Apx => Xfam::APX,
    }
}

/// Bits of a CPUID register, in the first sub-leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CpuidBits {
    /// The leaf.
    pub leaf: u32,
    /// The register: 0 to 3 are EAX to EDX.
    pub register: usize,
    /// The bits.
    pub bits: u32,
}

/// Returns the bits of CPUID by which a TD has a feature.
///
/// Source: TDX Module ABI 1.5 and 2.0, FEATURE_PARAVIRT_CTLS; Intel SDM volume 2A, CPUID.
pub(super) const fn cpuid_bits(feature: Paravirt) -> CpuidBits {
    const EBX: usize = 1;
    const ECX: usize = 2;
    const EDX: usize = 3;
    let (leaf, register, bits) = match feature {
        Paravirt::CoreCapabilities => (7, EDX, 1 << 30),
        Paravirt::Dca => (1, ECX, 1 << 18),
        Paravirt::Est => (1, ECX, 1 << 7),
        Paravirt::Mca => (1, EDX, 1 << 14 | 1 << 7),
        Paravirt::Mtrr => (1, EDX, 1 << 12),
        Paravirt::Pconfig => (7, EDX, 1 << 18),
        Paravirt::RdtA => (7, EBX, 1 << 15),
        Paravirt::RdtM => (7, EBX, 1 << 12),
        Paravirt::Acpi => (1, EDX, 1 << 22),
        Paravirt::Tm2 => (1, ECX, 1 << 8),
        Paravirt::Tme => (7, ECX, 1 << 13),
        Paravirt::TscDeadline => (1, ECX, 1 << 24),
    };
    CpuidBits {
        leaf,
        register,
        bits,
    }
}

/// Clears the bits of all features but `kept` in the registers of the leaf `leaf`.
pub(super) fn keep(kept: &[Paravirt], leaf: u32, registers: &mut [u32; 4]) {
    for feature in Paravirt::ALL {
        let place = cpuid_bits(*feature);
        if place.leaf == leaf && !kept.contains(feature) {
            registers[place.register] &= !place.bits;
        }
    }
}

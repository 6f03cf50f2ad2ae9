//! CPUID, leaf by leaf: QEMU's answer with corrections.
//!
//! Source of the layouts: Intel SDM volume 2, CPUID; of the TDX module's requirements: TDX Module 1.5, TDH.SYS.INIT.

use super::clock::Clock;
use super::topology::Shifts;
use super::{KEYID_BITS, MAX_PA};
use seam::abi::x86::cr4;

/// EAX, EBX, ECX and EDX of one sub-leaf.
pub type Leaf = [u32; 4];

/// The highest basic leaf.
const MAX_BASIC: u32 = 0x20;
/// The highest extended leaf.
const MAX_EXTENDED: u32 = 0x8000_0008;
/// Family 6, model 0x8F, stepping 8: Sapphire Rapids.
const SIGNATURE: u32 = 0x0008_06F8;
/// The signature that a TD reads: family 6, model 0x2C, stepping 2, a Westmere server.
///
/// Programs also select code by the model: libgcc's `__builtin_cpu_is`, which `target_clones` uses for an architecture,
/// checks nothing else. Every TD has all features of a Westmere, whatever its host configures. Westmere's successors
/// have AVX, which is the host's choice; those of Haswell have RDSEED; and the servers among them have AVX-512, which
/// TCG 7.2 does not execute.
pub const TD_SIGNATURE: u32 = 0x0002_06C2;
const BRAND: &[u8; 48] = b"Intel(R) Xeon(R) Platinum 8480+ (Seamark stub)\0\0";

/// The CR4 bits that this processor supports: those of TCG's `max` model except LA57, and VMXE.
pub const SUPPORTED_CR4: u64 = 0x0075_2FFF;

/// The inputs of CPUID besides leaf and sub-leaf.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// True if the machine has TDX.
    pub tdx: bool,
    /// CR4 as the software sees it.
    pub cr4: u64,
    /// The x2APIC id.
    pub apic_id: u32,
    /// The frequencies of the time-stamp counter and of the crystal.
    pub clock: Clock,
    /// The layout of x2APIC ids.
    pub shifts: Shifts,
}

impl Cpu {
    /// Returns CPUID as software sees it. `raw` is the instruction beneath.
    pub fn cpuid(&self, raw: impl Fn(u32, u32) -> Leaf, leaf: u32, sub_leaf: u32) -> Leaf {
        let leaf = match leaf {
            0..=MAX_BASIC | 0x8000_0000..=MAX_EXTENDED => leaf,
            _ => MAX_BASIC,
        };
        let beneath = || raw(leaf, sub_leaf);
        match leaf {
            0 => [
                MAX_BASIC,
                u32::from_le_bytes(*b"Genu"),
                u32::from_le_bytes(*b"ntel"),
                u32::from_le_bytes(*b"ineI"),
            ],
            1 => self.features(beneath()),
            2 => [0x00FE_FF01, 0, 0, 0],
            4 => self.cache(sub_leaf),
            5 | 0xD => beneath(),
            6 => [1 << 2, 0, 0, 0],
            7 if sub_leaf == 0 => self.structured_features(beneath()),
            0xB | 0x1F => self.topology(sub_leaf),
            0x15 => {
                let clock = self.clock;
                [clock.denominator, clock.numerator, clock.crystal_hz, 0]
            }
            0x16 => {
                let mhz = (self.clock.tsc_hz / 1_000_000) as u32;
                [mhz, mhz, 100, 0]
            }
            0x8000_0000 => [MAX_EXTENDED, 0, 0, 0],
            0x8000_0001 => {
                let [_, _, ecx, edx] = beneath();
                [0, 0, ecx & 0x121, edx & 0x2C10_0800]
            }
            0x8000_0002..=0x8000_0004 => {
                let part = &BRAND[(leaf - 0x8000_0002) as usize * 16..][..16];
                let word =
                    |i: usize| u32::from_le_bytes([part[i], part[i + 1], part[i + 2], part[i + 3]]);
                [word(0), word(4), word(8), word(12)]
            }
            0x8000_0006 => [0, 0, 0x0800_7040, 0],
            0x8000_0007 => [0, 0, 0, 1 << 8],
            0x8000_0008 => {
                let bits = if self.tdx {
                    MAX_PA
                } else {
                    MAX_PA - KEYID_BITS
                };
                [bits | 48 << 8, 1 << 9, 0, 0]
            }
            _ => [0; 4],
        }
    }

    /// Returns CPUID of the processor that TDs execute on, like [`cpuid`](Self::cpuid).
    pub fn td_cpuid(&self, raw: impl Fn(u32, u32) -> Leaf, leaf: u32, sub_leaf: u32) -> Leaf {
        let mut found = self.cpuid(raw, leaf, sub_leaf);
        if leaf == 1 {
            found[0] = TD_SIGNATURE;
        }
        found
    }

    fn features(&self, [_, ebx, ecx, edx]: Leaf) -> Leaf {
        const VMX: u32 = 1 << 5;
        const PDCM: u32 = 1 << 15;
        const PCID: u32 = 1 << 17;
        const X2APIC: u32 = 1 << 21;
        const TSC_DEADLINE: u32 = 1 << 24;
        const OSXSAVE: u32 = 1 << 27;
        const HYPERVISOR: u32 = 1 << 31;
        const ACPI_AND_TM: u32 = 1 << 22 | 1 << 29;
        let mut ecx = ecx & !(OSXSAVE | HYPERVISOR | PCID) | VMX | X2APIC | TSC_DEADLINE | PDCM;
        if self.cr4 & cr4::OSXSAVE != 0 {
            ecx |= OSXSAVE;
        }
        [SIGNATURE, ebx, ecx, edx & !ACPI_AND_TM]
    }

    fn structured_features(&self, [_, ebx, ecx, _]: Leaf) -> Leaf {
        const OSPKE: u32 = 1 << 4;
        const TME: u32 = 1 << 13;
        const LA57: u32 = 1 << 16;
        const MOVDIR64B: u32 = 1 << 28;
        const PKS: u32 = 1 << 31;
        const PCONFIG: u32 = 1 << 18;
        const ARCH_CAPABILITIES: u32 = 1 << 29;
        const CORE_CAPABILITIES: u32 = 1 << 30;
        let mut ecx = ecx & !(OSPKE | LA57 | PKS | TME) | MOVDIR64B;
        let mut edx = ARCH_CAPABILITIES | CORE_CAPABILITIES;
        if self.cr4 & cr4::PKE != 0 {
            ecx |= OSPKE;
        }
        if self.tdx {
            ecx |= TME;
            edx |= PCONFIG;
        }
        // Sub-leafs 1 and 2 exist, but are empty.
        [2, ebx, ecx, edx]
    }

    /// Returns leaf 4: caches of Sapphire Rapids. The package shares the last level, which makes the package WBINVD's
    /// scope. The leaf never reports a last level that belongs to a single id, because TDH.SYS.INIT would refuse a
    /// package of one processor then.
    fn cache(&self, sub_leaf: u32) -> Leaf {
        let (level, kind, ways, sets, sharing_bits) = match sub_leaf {
            0 => (1, 1, 12, 64, self.shifts.core),
            1 => (1, 2, 8, 64, self.shifts.core),
            2 => (2, 3, 16, 2048, self.shifts.core),
            3 => (3, 3, 15, 114_688, self.shifts.package.max(1)),
            _ => return [0; 4],
        };
        const SELF_INITIALISING: u32 = 1 << 8;
        let sharing = (1u32 << sharing_bits) - 1;
        let cores = (1u32 << (self.shifts.package - self.shifts.core)) - 1;
        [
            kind | level << 5 | SELF_INITIALISING | sharing << 14 | cores.min(63) << 26,
            63 | (ways - 1) << 22,
            sets - 1,
            0,
        ]
    }

    /// Returns leaves 0xB and 0x1F: threads, then cores. The remaining bits are the package.
    fn topology(&self, sub_leaf: u32) -> Leaf {
        let Shifts { core, package } = self.shifts;
        match sub_leaf {
            0 => [core, 1 << core, 1 << 8, self.apic_id],
            1 => [package, 1 << package, 2 << 8 | 1, self.apic_id],
            _ => [0, 0, sub_leaf & 0xFF, self.apic_id],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Cpu = Cpu {
        tdx: true,
        cr4: 0,
        apic_id: 5,
        clock: Clock {
            tsc_hz: 2_500_000_000,
            crystal_hz: 1_000_000_000,
            numerator: 5,
            denominator: 2,
        },
        shifts: Shifts {
            core: 1,
            package: 3,
        },
    };

    fn ask(cpu: &Cpu, leaf: u32, sub_leaf: u32) -> Leaf {
        cpu.cpuid(|_, _| [0xFFFF_FFFF; 4], leaf, sub_leaf)
    }

    #[test]
    fn the_cpu_is_intels_with_vmx_without_svm_or_hypervisor() {
        let [_, b, c, d] = ask(&CPU, 0, 0);
        assert_eq!([b, d, c].map(u32::to_le_bytes).concat(), b"GenuineIntel");
        let [eax, _, ecx, _] = ask(&CPU, 1, 0);
        assert_eq!(eax, 0x806F8);
        assert_eq!(
            ecx & (1 << 5 | 1 << 21 | 1 << 24 | 1 << 31),
            1 << 5 | 1 << 21 | 1 << 24
        );
        assert_eq!(ask(&CPU, 0x8000_0001, 0)[2] & 4, 0, "SVM");
    }

    #[test]
    fn a_td_has_the_same_features_with_another_model() {
        for leaf in [0, 1, 7, 0x8000_0001] {
            let [host, td] = [Cpu::cpuid, Cpu::td_cpuid]
                .map(|cpuid| cpuid(&CPU, |_, _| [0xFFFF_FFFF; 4], leaf, 0));
            assert_eq!(td[1..], host[1..]);
            assert_eq!(td[0] != host[0], leaf == 1, "leaf {leaf:#x}");
        }
        // The last server without AVX.
        let (family, model) = (
            TD_SIGNATURE >> 8 & 0xF,
            TD_SIGNATURE >> 12 & 0xF0 | TD_SIGNATURE >> 4 & 0xF,
        );
        assert_eq!((family, model), (6, 0x2C));
    }

    #[test]
    fn os_bits_follow_cr4() {
        assert_eq!(ask(&CPU, 1, 0)[2] & 1 << 27, 0);
        assert_eq!(ask(&CPU, 7, 0)[2] & 1 << 4, 0);
        let cpu = Cpu {
            cr4: cr4::OSXSAVE | cr4::PKE,
            ..CPU
        };
        assert_ne!(ask(&cpu, 1, 0)[2] & 1 << 27, 0);
        assert_ne!(ask(&cpu, 7, 0)[2] & 1 << 4, 0);
    }

    #[test]
    fn keyid_bits_exist_only_with_tdx() {
        assert_eq!(ask(&CPU, 0x8000_0008, 0)[0], 52 | 48 << 8);
        let cpu = Cpu { tdx: false, ..CPU };
        assert_eq!(ask(&cpu, 0x8000_0008, 0)[0], 48 | 48 << 8);
        assert_eq!(ask(&cpu, 7, 0)[2] & 1 << 13, 0, "TME");
    }

    #[test]
    fn the_last_level_cache_and_leaf_1f_agree_on_the_package() {
        let package = ask(&CPU, 0x1F, 1);
        assert_eq!(package, [3, 8, 0x201, 5]);
        assert_eq!((ask(&CPU, 4, 3)[0] >> 14 & 0xFFF) + 1, 1 << package[0]);
        assert_eq!(ask(&CPU, 4, 4), [0; 4]);
        let alone = Cpu {
            shifts: Shifts {
                core: 0,
                package: 0,
            },
            ..CPU
        };
        assert_eq!(ask(&alone, 4, 3)[0] >> 14 & 0xFFF, 1);
        assert_eq!(ask(&CPU, 0x1F, 2), [0, 0, 2, 5]);
    }

    #[test]
    fn the_clock_ratio_yields_the_frequency() {
        let [eax, ebx, ecx, _] = ask(&CPU, 0x15, 0);
        let hz = u64::from(ecx) * u64::from(ebx) / u64::from(eax);
        assert_eq!(hz, CPU.clock.tsc_hz);
    }

    #[test]
    fn leaves_beyond_the_last_read_as_the_last() {
        assert_eq!(ask(&CPU, 0x4000_0000, 0), [0; 4]);
        assert_eq!(ask(&CPU, 0x8000_000A, 0), [0; 4]);
    }
}

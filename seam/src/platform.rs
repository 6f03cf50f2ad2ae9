//! Detects the machine's TDX features, and reports precisely which are missing.
//!
//! The code is pure over [`Registers`]. No CPUID bit says "TDX is usable": the answer is in half a dozen places, and
//! the host should name each one that is wrong.

use core::fmt;

use arrayvec::ArrayVec;

/// Access to the CPU's identification registers.
pub trait Registers {
    /// Executes CPUID and returns EAX, EBX, ECX, EDX.
    fn cpuid(&self, leaf: u32, sub_leaf: u32) -> [u32; 4];
    /// Executes RDMSR. Returns `None` if the CPU has no such MSR (#GP).
    fn rdmsr(&self, msr: u32) -> Option<u64>;
}

/// MSR numbers (Intel SDM volume 4; Intel TDX CPU architectural extensions).
pub mod msr {
    /// IA32_FEATURE_CONTROL.
    pub const FEATURE_CONTROL: u32 = 0x3A;
    /// IA32_MKTME_KEYID_PARTITIONING: number of shared KeyIDs in bits 31:0, of private ones in bits 63:32.
    pub const KEYID_PARTITIONING: u32 = 0x87;
    /// IA32_XAPIC_DISABLE_STATUS.
    pub const XAPIC_DISABLE_STATUS: u32 = 0xBD;
    /// IA32_MTRRCAP.
    pub const MTRRCAP: u32 = 0xFE;
    /// IA32_TME_ACTIVATE.
    pub const TME_ACTIVATE: u32 = 0x982;
    /// IA32_SEAMRR_PHYS_BASE.
    pub const SEAMRR_BASE: u32 = 0x1400;
    /// IA32_SEAMRR_PHYS_MASK.
    pub const SEAMRR_MASK: u32 = 0x1401;
}

/// A requirement of TDX that this machine does not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The CPU is not Intel's.
    Vendor,
    /// CPUID 1 ECX bit 5 is clear.
    Vmx,
    /// IA32_FEATURE_CONTROL is locked without VMX outside SMX.
    VmxLockedOff,
    /// CPUID 1 ECX bit 21 is clear.
    X2apic,
    /// CPUID (7, 0) ECX bit 28 is clear.
    Movdir64b,
    /// IA32_MTRRCAP bit 15 is clear: the CPU has no SEAM.
    Seam,
    /// IA32_SEAMRR_PHYS_BASE or _MASK report that the range is not configured, locked and valid.
    Seamrr {
        /// IA32_SEAMRR_PHYS_BASE; `None` if the CPU has no such register.
        base: Option<u64>,
        /// IA32_SEAMRR_PHYS_MASK; `None` if the CPU has no such register.
        mask: Option<u64>,
    },
    /// IA32_TME_ACTIVATE, with this value, is not locked and enabled, or does not exist.
    Tme(Option<u64>),
    /// Fewer than two private KeyIDs. The module uses one, and each TD needs one.
    KeyIds(u32),
    /// The legacy xAPIC mode is not locked out (IA32_XAPIC_DISABLE_STATUS bit 0).
    XapicNotDisabled,
}

impl Missing {
    /// Returns true if no setting can change it: the machine needs another CPU.
    #[must_use]
    pub fn is_the_cpu(self) -> bool {
        matches!(self, Self::Vendor | Self::Seam)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CPUS: &str = "TDX needs an Intel Xeon of the 5th generation, a Xeon 6, or one of the 4th generation that \
                            was made for it";
        match self {
            Self::Vendor => write!(f, "the CPU is not an Intel CPU: {CPUS}"),
            Self::Vmx => write!(
                f,
                "no VMX (CPUID 1 ECX bit 5): enable \"Intel Virtualization Technology\" (VT-x, VMX) in the firmware's \
                 setup"
            ),
            Self::VmxLockedOff => write!(
                f,
                "VMX is locked off (IA32_FEATURE_CONTROL): enable \"Intel Virtualization Technology\" (VT-x, VMX) in the \
                 firmware's setup"
            ),
            Self::X2apic => write!(
                f,
                "no x2APIC (CPUID 1 ECX bit 21): enable \"x2APIC\" (Extended APIC) in the firmware's setup"
            ),
            Self::Movdir64b => write!(
                f,
                "no MOVDIR64B (CPUID 7 ECX bit 28): update the firmware and the CPU's microcode"
            ),
            Self::Seam => write!(f, "the CPU has no SEAM (IA32_MTRRCAP bit 15): {CPUS}"),
            Self::Seamrr { base, mask } => write!(
                f,
                "the SEAM range is not configured and locked (IA32_SEAMRR_PHYS_BASE {}, _MASK {}): enable \"Trust Domain \
                 Extension (TDX)\" and the \"SEAM Loader\" in the firmware's setup",
                Register(*base),
                Register(*mask)
            ),
            Self::Tme(value) => write!(
                f,
                "memory encryption is not activated and locked (IA32_TME_ACTIVATE {}): enable \"Total Memory Encryption \
                 (TME)\" and \"Total Memory Encryption Multi-Tenant (TME-MT)\" in the firmware's setup",
                Register(*value)
            ),
            Self::KeyIds(count) => write!(
                f,
                "{count} private KeyIDs (MSR 0x87), at least 2 are needed: set \"TME-MT/TDX key split\" to another value \
                 than zero in the firmware's setup"
            ),
            Self::XapicNotDisabled => write!(
                f,
                "legacy xAPIC mode is not locked off (MSR 0xBD): enable \"x2APIC\" (Extended APIC) in the firmware's \
                 setup, and disable \"X2APIC Opt Out\""
            ),
        }
    }
}

/// The value of an MSR that may not exist.
struct Register(Option<u64>);

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "{value:#x}"),
            None => f.write_str("absent"),
        }
    }
}

/// The KeyIDs of the machine, and their position in a physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyIds {
    /// Number of shared (MKTME) KeyIDs beyond KeyID 0.
    pub shared: u32,
    /// Number of private (TDX) KeyIDs. The first is `shared + 1`.
    pub private: u32,
    /// Number of physical-address bits, KeyID bits included.
    pub max_pa: u32,
    /// Number of KeyID bits, at the top of those.
    pub bits: u32,
}

impl KeyIds {
    /// Returns the first private KeyID.
    #[must_use]
    pub fn first_private(&self) -> u32 {
        self.shared + 1
    }
}

/// Number of requirements that can be missing.
pub const MAX_MISSING: usize = 10;

/// The result of the detection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The missing requirements; empty if the machine meets all of them.
    pub missing: ArrayVec<Missing, MAX_MISSING>,
    /// The KeyIDs; `None` if the machine has no partition for TDX.
    pub key_ids: Option<KeyIds>,
}

/// Examines this CPU.
///
/// The requirements come in the order in which a firmware's setup offers them, since one may hide the next. A CPU that
/// can't have TDX lacks that alone: what else it lacks is of no interest.
pub fn detect(registers: &impl Registers) -> Report {
    if let Some(missing) = missing_in_cpu(registers) {
        return Report {
            missing: ArrayVec::from_iter([missing]),
            key_ids: None,
        };
    }
    let msr = |number| registers.rdmsr(number).unwrap_or(0);
    let ecx1 = registers.cpuid(1, 0)[2];
    let mut missing = ArrayVec::new();
    let mut need = |there: bool, what: Missing| {
        if !there {
            missing.push(what);
        }
    };
    let vmx = ecx1 & CPUID_1_ECX_VMX != 0;
    need(vmx, Missing::Vmx);
    let has = |register: Option<u64>, bits: u64| register.is_some_and(|r| r & bits == bits);
    let control = msr(msr::FEATURE_CONTROL);
    let allowed = control & LOCKED == 0 || control & VMX_OUTSIDE_SMX != 0;
    need(!vmx || allowed, Missing::VmxLockedOff);
    let x2apic = ecx1 & CPUID_1_ECX_X2APIC != 0;
    need(x2apic, Missing::X2apic);
    let xapic_disabled = msr(msr::XAPIC_DISABLE_STATUS) & 1 != 0;
    need(!x2apic || xapic_disabled, Missing::XapicNotDisabled);
    let tme = registers.rdmsr(msr::TME_ACTIVATE);
    need(has(tme, 3), Missing::Tme(tme));
    let partition = msr(msr::KEYID_PARTITIONING);
    let private = (partition >> 32) as u32;
    need(private >= 2, Missing::KeyIds(private));
    let base = registers.rdmsr(msr::SEAMRR_BASE);
    let mask = registers.rdmsr(msr::SEAMRR_MASK);
    let configured = has(base, SEAMRR_CONFIGURED) && has(mask, SEAMRR_LOCK_VALID);
    need(configured, Missing::Seamrr { base, mask });
    let movdir64b = registers.cpuid(7, 0)[2] & CPUID_7_ECX_MOVDIR64B != 0;
    need(movdir64b, Missing::Movdir64b);
    let key_ids = (private > 0).then(|| KeyIds {
        shared: partition as u32,
        private,
        max_pa: registers.cpuid(0x8000_0008, 0)[0] & 0xFF,
        bits: (tme.unwrap_or(0) >> 32) as u32 & 0xF,
    });
    Report { missing, key_ids }
}

/// Returns what no setting can give to this CPU.
fn missing_in_cpu(registers: &impl Registers) -> Option<Missing> {
    let [_, b, c, d] = registers.cpuid(0, 0);
    if [b, d, c] != VENDOR_INTEL {
        return Some(Missing::Vendor);
    }
    let capabilities = registers.rdmsr(msr::MTRRCAP).unwrap_or(0);
    (capabilities & MTRRCAP_SEAMRR == 0).then_some(Missing::Seam)
}

/// "GenuineIntel" in EBX, EDX, ECX.
const VENDOR_INTEL: [u32; 3] = [0x756E_6547, 0x4965_6E69, 0x6C65_746E];
const CPUID_1_ECX_VMX: u32 = 1 << 5;
const CPUID_1_ECX_X2APIC: u32 = 1 << 21;
const CPUID_7_ECX_MOVDIR64B: u32 = 1 << 28;
const LOCKED: u64 = 1;
const VMX_OUTSIDE_SMX: u64 = 1 << 2;
const MTRRCAP_SEAMRR: u64 = 1 << 15;
const SEAMRR_CONFIGURED: u64 = 1 << 3;
const SEAMRR_LOCK_VALID: u64 = 3 << 10;

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// A machine that meets all requirements, except those that a test takes away.
    struct Machine {
        ecx1: u32,
        ecx7: u32,
        msrs: Vec<(u32, u64)>,
    }

    impl Machine {
        fn complete() -> Self {
            Self {
                ecx1: CPUID_1_ECX_VMX | CPUID_1_ECX_X2APIC,
                ecx7: CPUID_7_ECX_MOVDIR64B,
                msrs: Vec::from([
                    (msr::FEATURE_CONTROL, 5),
                    (msr::MTRRCAP, MTRRCAP_SEAMRR),
                    (msr::SEAMRR_BASE, 0x7000_0008),
                    (msr::SEAMRR_MASK, 0xF_FE00_0C00),
                    (msr::TME_ACTIVATE, 4 << 32 | 3),
                    (msr::KEYID_PARTITIONING, 8 << 32 | 7),
                    (msr::XAPIC_DISABLE_STATUS, 1),
                ]),
            }
        }

        fn with(mut self, number: u32, value: u64) -> Self {
            self.msrs.retain(|(n, _)| *n != number);
            self.msrs.push((number, value));
            self
        }
    }

    impl Registers for Machine {
        fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
            match leaf {
                0 => [0x1F, VENDOR_INTEL[0], VENDOR_INTEL[2], VENDOR_INTEL[1]],
                1 => [0, 0, self.ecx1, 0],
                7 => [0, 0, self.ecx7, 0],
                0x8000_0008 => [0x3034, 0, 0, 0],
                _ => [0; 4],
            }
        }
        fn rdmsr(&self, msr: u32) -> Option<u64> {
            self.msrs.iter().find(|(n, _)| *n == msr).map(|(_, v)| *v)
        }
    }

    #[test]
    fn a_complete_machine_lacks_nothing() {
        let report = detect(&Machine::complete());
        assert!(report.missing.is_empty());
        let keys = report.key_ids.unwrap();
        assert_eq!(
            (keys.first_private(), keys.private, keys.max_pa, keys.bits),
            (8, 8, 52, 4)
        );
    }

    #[test]
    fn a_cpu_that_can_not_have_tdx_lacks_that_alone() {
        let bare = Machine {
            ecx1: 0,
            ecx7: 0,
            msrs: Vec::new(),
        };
        assert_eq!(detect(&bare).missing[..], [Missing::Seam]);
        assert_eq!(detect(&bare).key_ids, None);
        struct Amd(Machine);
        impl Registers for Amd {
            fn cpuid(&self, leaf: u32, sub_leaf: u32) -> [u32; 4] {
                match leaf {
                    0 => [0x10, 0x6874_7541, 0x444D_4163, 0x6974_6E65],
                    _ => self.0.cpuid(leaf, sub_leaf),
                }
            }
            fn rdmsr(&self, msr: u32) -> Option<u64> {
                self.0.rdmsr(msr)
            }
        }
        for machine in [bare, Machine::complete()] {
            assert_eq!(detect(&Amd(machine)).missing[..], [Missing::Vendor]);
        }
    }

    #[test]
    fn a_machine_as_it_was_delivered_lacks_each_setting() {
        let delivered = Machine {
            ecx1: CPUID_1_ECX_X2APIC,
            ecx7: CPUID_7_ECX_MOVDIR64B,
            msrs: Vec::from([(msr::MTRRCAP, MTRRCAP_SEAMRR)]),
        };
        let missing = detect(&delivered).missing;
        assert_eq!(
            missing[..],
            [
                Missing::Vmx,
                Missing::XapicNotDisabled,
                Missing::Tme(None),
                Missing::KeyIds(0),
                Missing::Seamrr {
                    base: None,
                    mask: None
                },
            ]
        );
        for missing in missing {
            let text = alloc::format!("{missing}");
            assert!(text.contains("in the firmware's setup"), "{text}");
            assert!(!text.contains("opt-out protection"), "{text}");
        }
    }

    #[test]
    fn a_register_that_does_not_exist_is_absent_and_not_zero() {
        let without = |number| {
            let mut machine = Machine::complete();
            machine.msrs.retain(|(msr, _)| *msr != number);
            let report = detect(&machine);
            alloc::format!("{}", report.missing[0])
        };
        let seamrr = without(msr::SEAMRR_MASK);
        assert!(
            seamrr.contains("_BASE 0x70000008, _MASK absent"),
            "{seamrr}"
        );
        let tme = without(msr::TME_ACTIVATE);
        assert!(tme.contains("IA32_TME_ACTIVATE absent"), "{tme}");
    }

    #[test]
    fn each_thing_that_firmware_left_undone_is_named() {
        let cases = [
            (msr::FEATURE_CONTROL, 1, Missing::VmxLockedOff),
            (
                msr::SEAMRR_MASK,
                0x400,
                Missing::Seamrr {
                    base: Some(0x7000_0008),
                    mask: Some(0x400),
                },
            ),
            (msr::TME_ACTIVATE, 2, Missing::Tme(Some(2))),
            (msr::KEYID_PARTITIONING, 1 << 32, Missing::KeyIds(1)),
            (msr::KEYID_PARTITIONING, 63, Missing::KeyIds(0)),
            (msr::XAPIC_DISABLE_STATUS, 0, Missing::XapicNotDisabled),
        ];
        for (number, value, missing) in cases {
            let report = detect(&Machine::complete().with(number, value));
            assert_eq!(report.missing[..], [missing]);
        }
    }

    #[test]
    fn an_unlocked_feature_control_is_the_hosts_to_set() {
        let machine = Machine::complete().with(msr::FEATURE_CONTROL, 0);
        assert!(detect(&machine).missing.is_empty());
    }
}

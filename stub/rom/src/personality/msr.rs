//! Constant model-specific registers, and those that software may access in the hardware beneath.
//!
//! Sources: Intel SDM volume 4; TDX Module 1.5, TDH.SYS.INIT and TDH.SYS.LP.INIT, for the requirements on each
//! processor.

use super::{
    KEYID_BITS, MAX_PA, SUPPORTED_CR4, VMCS_REVISION, mktme_keyids, tdx_reserved_keyid_bits,
};

/// The inputs of the constants.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// True if the machine has TDX.
    pub tdx: bool,
    /// Private HKIDs.
    pub hkids: u32,
    /// Base and size of the SEAM range in bytes.
    pub seamrr: (u64, u64),
    /// MTRRCAP as QEMU reports it.
    pub mtrrcap: u64,
}

/// Returns the value of a register that software can't change; `None` for other registers.
#[must_use]
pub fn constant(msr: u32, facts: &Facts) -> Option<u64> {
    Some(match msr {
        // IA32_PLATFORM_ID, MSR_PLATFORM_INFO.
        0x17 | 0xCE => 0,
        // IA32_FEATURE_CONTROL: locked, VMX outside SMX.
        0x3A => 5,
        // IA32_CORE_CAPABILITIES.
        0xCF => 0,
        // IA32_MTRRCAP.
        0xFE => {
            const SMRR: u64 = 1 << 11;
            const SMRR_LOCK: u64 = 1 << 14;
            const SEAMRR: u64 = 1 << 15;
            facts.mtrrcap
                | if facts.tdx {
                    SMRR | SMRR_LOCK | SEAMRR
                } else {
                    0
                }
        }
        // IA32_ARCH_CAPABILITIES: nothing to mitigate; XAPIC_DISABLE_STATUS exists with TDX.
        0x10A => 0xFD6B | if facts.tdx { 1 << 21 } else { 0 },
        // IA32_PERF_CAPABILITIES: full-width writes.
        0x345 => 1 << 13,
        0x480..=0x492 => vmx_capability(msr),
        _ if facts.tdx => return tdx_constant(msr, facts),
        _ => return None,
    })
}

fn tdx_constant(msr: u32, facts: &Facts) -> Option<u64> {
    const LOCK: u64 = 1 << 10;
    const VALID: u64 = 1 << 11;
    let range_mask = |size: u64| ((1 << MAX_PA) - 1) & !(size - 1);
    Some(match msr {
        // IA32_MKTME_KEYID_PARTITIONING.
        0x87 => u64::from(facts.hkids) << 32 | u64::from(mktme_keyids(facts.hkids)),
        // IA32_MISC_PACKAGE_CTLS: energy filtering; IA32_XAPIC_DISABLE_STATUS: x2APIC mode is locked.
        0xBC | 0xBD => 1,
        // IA32_SMRR_PHYSBASE and PHYSMASK: 8 MiB of write-back memory inside the hole below 4 GiB.
        0x1F2 => 0xFD00_0006,
        0x1F3 => 0xFF80_0000 | LOCK | VALID,
        // IA32_TME_CAPABILITY: AES-XTS-128 and -256, with and without integrity; KeyID bits and KeyIDs.
        0x981 => {
            let keyids = (1u64 << KEYID_BITS) - 1;
            0b1111 | u64::from(KEYID_BITS) << 32 | keyids << 36
        }
        // IA32_TME_ACTIVATE: locked, enabled, AES-XTS-256; KeyID bits, TDX KeyID bits, all four algorithms allowed.
        0x982 => {
            let reserved = u64::from(tdx_reserved_keyid_bits(facts.hkids));
            0b11 | 2 << 4 | u64::from(KEYID_BITS) << 32 | reserved << 36 | 0b1111 << 48
        }
        // IA32_TME_EXCLUDE_MASK and BASE.
        0x983 | 0x984 => 0,
        // IA32_SEAMRR_PHYS_BASE (configured) and PHYS_MASK.
        0x1400 => facts.seamrr.0 | 1 << 3,
        0x1401 => range_mask(facts.seamrr.1) | LOCK | VALID,
        _ => return None,
    })
}

/// Returns a register that only SEAM mode reads: MSR_WBINVDP and MSR_WBNOINVDP, the sub-blocks of the package's caches.
#[must_use]
pub fn seam_only(msr: u32) -> Option<u64> {
    matches!(msr, 0x98 | 0x99).then_some(u64::from(crate::WBINVD_SUB_BLOCKS))
}

/// Returns IA32_VMX_BASIC to IA32_VMX_PROCBASED_CTLS3. All defined features are allowed. VMLAUNCH never enters a VM
/// here, so these registers describe the processor to a TDX module, not to a hypervisor.
fn vmx_capability(msr: u32) -> u64 {
    /// 4 KiB regions, write-back, INS/OUTS information, TRUE controls, exceptions without error code.
    const BASIC: u64 = 0x01DA_1000_0000_0000 | VMCS_REVISION as u64;
    match msr {
        0x480 => BASIC,
        0x481 => 0x0000_00FF_0000_0016,
        0x482 => 0xFFFB_FFFE_0401_E172,
        0x483 => 0xFFFF_FFFF_0003_6DFF,
        0x484 => 0x00FF_FFFF_0000_11FF,
        0x485 => 0x7004_C1E7,
        0x486 => 0x8000_0021,
        0x487 => 0xFFFF_FFFF,
        0x488 => 0x2000,
        0x489 => SUPPORTED_CR4,
        0x48A => 0x2E,
        0x48B => 0xFFFF_FFFF_0000_0000,
        0x48C => 0x0000_0F01_0673_4141,
        0x48D => 0x0000_00FF_0000_0016,
        0x48E => 0xFFFB_FFFE_0400_6172,
        0x48F => 0xFFFF_FFFF_0003_6DFB,
        0x490 => 0x00FF_FFFF_0000_11FB,
        0x491 => 1,
        _ => 0xFF,
    }
}

/// Returns whether software may access this register in the hardware beneath, without an exit.
#[must_use]
pub fn is_native(msr: u32) -> bool {
    matches!(msr,
        0x10                            // IA32_TIME_STAMP_COUNTER
        | 0x174..=0x176                 // IA32_SYSENTER_*
        | 0x179..=0x17B                 // IA32_MCG_*
        | 0x1D9                         // IA32_DEBUGCTL
        | 0x200..=0x20F | 0x250 | 0x258 | 0x259 | 0x268..=0x26F | 0x277 | 0x2FF // MTRRs and PAT
        | 0x400..=0x427                 // machine-check banks
        | 0xC000_0081..=0xC000_0084     // STAR, LSTAR, CSTAR, FMASK
        | 0xC000_0100..=0xC000_0103     // FS, GS, KERNEL_GS_BASE, TSC_AUX
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        tdx: true,
        hkids: 12,
        seamrr: (0x7C00_0000, 0x200_0000),
        mtrrcap: 0x508,
    };

    #[test]
    fn a_machine_without_tdx_has_none_of_its_registers() {
        let facts = Facts {
            tdx: false,
            ..FACTS
        };
        for msr in [0x87, 0xBC, 0xBD, 0x981, 0x982, 0x1400, 0x1401] {
            assert!(constant(msr, &FACTS).is_some(), "{msr:#x}");
            assert_eq!(constant(msr, &facts), None, "{msr:#x}");
        }
        assert_eq!(constant(0xFE, &facts), Some(0x508));
        assert_eq!(constant(0x10A, &facts).map(|v| v & 1 << 21), Some(0));
    }

    #[test]
    fn arch_capabilities_satisfy_sys_init() {
        let value = constant(0x10A, &FACTS).unwrap();
        for bit in [0, 1, 3, 5, 6, 8, 10, 11, 12, 13, 14, 15, 21] {
            assert_ne!(value & 1 << bit, 0, "bit {bit}");
        }
        assert_eq!(value & 1 << 2, 0);
    }

    #[test]
    fn keyid_counts_agree_with_tme_activate() {
        let activate = constant(0x982, &FACTS).unwrap();
        let partitioning = constant(0x87, &FACTS).unwrap();
        let bits = (activate >> 32 & 0xF) - (activate >> 36 & 0xF);
        assert_eq!(partitioning & 0xFFFF_FFFF, (1 << bits) - 1);
        assert_eq!(partitioning >> 32, 12);
    }

    #[test]
    fn seamrr_is_locked_valid_and_covers_its_size() {
        assert_eq!(constant(0x1400, &FACTS), Some(0x7C00_0008));
        assert_eq!(constant(0x1401, &FACTS), Some(0x000F_FFFF_FE00_0C00));
    }

    #[test]
    fn required_one_controls_are_allowed_one_controls() {
        for msr in [0x481, 0x482, 0x483, 0x484, 0x48D, 0x48E, 0x48F, 0x490] {
            let value = constant(msr, &FACTS).unwrap();
            assert_eq!(value as u32 & !((value >> 32) as u32), 0, "{msr:#x}");
        }
    }
}

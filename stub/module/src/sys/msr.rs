//! MSR requirements of the module: the checks of TDH.SYS.INIT, and the comparison of TDH.SYS.LP.INIT.

use seam::abi::Status;

use crate::{Change, Platform, Release};

pub(super) const TSC_ADJUST: u32 = 0x3b;
pub(super) const MISC_ENABLE: u32 = 0x1a0;
const KEYID_PARTITIONING: u32 = 0x87;
const WBINVDP: u32 = 0x98;
const WBNOINVDP: u32 = 0x99;
const MISC_PACKAGE_CTLS: u32 = 0xbc;
const XAPIC_DISABLE_STATUS: u32 = 0xbd;
const CORE_CAPABILITIES: u32 = 0xcf;
const MTRRCAP: u32 = 0xfe;
const ARCH_CAPABILITIES: u32 = 0x10a;
const SMRR: [(u32, u32); 2] = [(0x1f2, 0x1f3), (0x1f6, 0x1f7)];
const PERF_CAPABILITIES: u32 = 0x345;
const VMX_BASIC: u32 = 0x480;
const VMX_MISC: u32 = 0x485;
const VMX_CR0_FIXED0: u32 = 0x486;
const VMX_CR0_FIXED1: u32 = 0x487;
const VMX_CR4_FIXED0: u32 = 0x488;
const VMX_CR4_FIXED1: u32 = 0x489;
const VMX_PROC_BASED2: u32 = 0x48b;
const VMX_EPT_VPID_CAP: u32 = 0x48c;
const VMX_TRUE_PIN_BASED: u32 = 0x48d;
const VMX_TRUE_PROC_BASED: u32 = 0x48e;
const VMX_TRUE_EXIT: u32 = 0x48f;
const VMX_TRUE_ENTRY: u32 = 0x490;
const VMX_PROC_BASED3: u32 = 0x492;
const TME_CAPABILITY: u32 = 0x981;
const TME_ACTIVATE: u32 = 0x982;

/// MSRs compared before CPUID, in this order.
pub(super) const FIRST: [u32; 4] = [
    CORE_CAPABILITIES,
    ARCH_CAPABILITIES,
    MISC_PACKAGE_CTLS,
    XAPIC_DISABLE_STATUS,
];

/// MSRs compared after CPUID, in this order.
pub(super) const REST: [u32; 24] = [
    MTRRCAP,
    SMRR[0].0,
    SMRR[0].1,
    SMRR[1].0,
    SMRR[1].1,
    VMX_BASIC,
    VMX_TRUE_PIN_BASED,
    VMX_TRUE_PROC_BASED,
    VMX_PROC_BASED2,
    VMX_PROC_BASED3,
    VMX_TRUE_EXIT,
    VMX_TRUE_ENTRY,
    VMX_MISC,
    VMX_EPT_VPID_CAP,
    VMX_CR0_FIXED0,
    VMX_CR0_FIXED1,
    VMX_CR4_FIXED0,
    VMX_CR4_FIXED1,
    PERF_CAPABILITIES,
    TME_CAPABILITY,
    TME_ACTIVATE,
    KEYID_PARTITIONING,
    WBINVDP,
    WBNOINVDP,
];

/// IA32_ARCH_CAPABILITIES bits that must be 1. The bit that must be 0 follows.
const ARCH_CAPABILITIES_ONES: u64 = 0x20_fd6b;
const ARCH_CAPABILITIES_ZEROS: u64 = 1 << 2;
const FB_CLEAR_CTRL: u64 = 1 << 18;
/// IA32_PERF_CAPABILITIES bits that must be 1.
const FREEZE_WHILE_SMM: u64 = 1 << 12;
const FULL_WRITE: u64 = 1 << 13;
/// IA32_MISC_ENABLE: performance monitoring available; branch trace store unavailable.
const PERFMON_AVAILABLE: u64 = 1 << 7;
const BTS_UNAVAILABLE: u64 = 1 << 11;

/// A VMX control of TD VMCSs: its initial value, its variable bits, and the bits unknown to the module.
struct Control {
    msr: u32,
    initial: u64,
    variable: u64,
    unknown: u64,
}

const fn control(msr: u32, initial: u64, variable: u64, unknown: u64) -> Control {
    Control {
        msr,
        initial,
        variable,
        unknown,
    }
}

// Source: TDX module 1.5.01, `td_vmcs_ctl_values_e` and `td_l2_vmcs_ctl_values_e`.
const PIN_BASED: [Control; 2] = [
    control(VMX_TRUE_PIN_BASED, 0x29, 0x80, 0xffff_ff16),
    control(VMX_TRUE_PIN_BASED, 0x29, 0, 0xffff_ff16),
];
const PROC_BASED: [Control; 2] = [
    control(VMX_TRUE_PROC_BASED, 0x9122_0088, 0x2040_0c00, 0x0404_6173),
    control(VMX_TRUE_PROC_BASED, 0x9122_0088, 0x68d8_1e04, 0x0404_6173),
];
const PROC_BASED2: [Control; 2] = [
    control(VMX_PROC_BASED2, 0x133c_b3fa, 0xcc00_0400, 0),
    control(VMX_PROC_BASED2, 0x1338_b3fa, 0x0c51_3e0c, 0),
];
const PROC_BASED3: [Control; 2] = [
    control(VMX_PROC_BASED3, 0x80, 0x20, 0xffff_ffff_ffff_ff40),
    control(VMX_PROC_BASED3, 0x80, 0x2e, 0xffff_ffff_ffff_ff40),
];
const EXIT: Control = control(VMX_TRUE_EXIT, 0x1f3c_8204, 0x4000_1000, 0x0003_6dfb);
const ENTRY: Control = control(VMX_TRUE_ENTRY, 0x003e_c004, 0x0040_2200, 0xff80_11fb);
// Source: TDX module 1.5.16, the same types.
const STRICT_PROC_BASED_L2: Control =
    control(VMX_TRUE_PROC_BASED, 0x9122_0088, 0x68d9_9e04, 0x0404_6173);
const STRICT_PROC_BASED3: [Control; 2] = [
    control(VMX_PROC_BASED3, 0, 0x20, 0xffff_ffff_ffff_ff40),
    control(VMX_PROC_BASED3, 0, 0x2e, 0xffff_ffff_ffff_ff40),
];
const STRICT_EXIT: Control = control(VMX_TRUE_EXIT, 0x1f3c_9204, 0x4000_0000, 0x0003_6dfb);
const STRICT_ENTRY: Control = control(VMX_TRUE_ENTRY, 0x003e_e004, 0x0040_0200, 0xff80_11fb);
const CR0_INITIAL: u64 = 0x21;
const CR0_L2_VARIABLE: u64 = 0x8005_001f;
const CR4_INITIAL: u64 = 0x2040;

/// PROC_BASED2: user wait and pause, which follows CPUID's WAITPKG. ENCLV exiting, which is optional, follows.
const USER_WAIT: u64 = 1 << 26;
const ENCLV_EXITING: u64 = 1 << 28;

/// IA32_VMX_EPT_VPID_CAP bits that must be 1.
const EPT_VPID_CAP_ONES: u64 = 0x101_0633_4041;

impl Control {
    /// Returns whether the CPU supports all values that the module gives the control. The low half of `capability`
    /// holds the bits that must be 1, the high half those that may be 1.
    fn is_supported(&self, capability: u64) -> bool {
        let required = capability & 0xffff_ffff;
        let forbidden = !(capability >> 32) & 0xffff_ffff;
        required & !(self.initial | self.unknown) & 0xffff_ffff == 0
            && forbidden & self.initial == 0
            && (required | forbidden) & self.variable == 0
    }

    /// Does the same as [`Self::is_supported`], for a capability MSR that holds only the 64 bits that may be 1.
    fn is_allowed(&self, allowed: u64) -> bool {
        !allowed & (self.initial | self.variable) == 0
    }
}

fn incorrect(msr: u32) -> Status {
    Status::INCORRECT_MSR_VALUE.with_detail(msr)
}

fn require(holds: bool, msr: u32) -> Result<(), Status> {
    if holds { Ok(()) } else { Err(incorrect(msr)) }
}

/// Performs the checks of TDH.SYS.INIT that precede CPUID.
pub(super) fn check_features(release: Release, rdmsr: &impl Fn(u32) -> u64) -> Result<(), Status> {
    let is_strict = release.does(Change::STRICT_INIT);
    let zeros = if is_strict {
        ARCH_CAPABILITIES_ZEROS | FB_CLEAR_CTRL
    } else {
        ARCH_CAPABILITIES_ZEROS
    };
    let perf_ones = if is_strict {
        FULL_WRITE | FREEZE_WHILE_SMM
    } else {
        FULL_WRITE
    };
    let arch = rdmsr(ARCH_CAPABILITIES);
    require(
        arch & ARCH_CAPABILITIES_ONES == ARCH_CAPABILITIES_ONES && arch & zeros == 0,
        ARCH_CAPABILITIES,
    )?;
    require(rdmsr(XAPIC_DISABLE_STATUS) == 1, XAPIC_DISABLE_STATUS)?;
    require(rdmsr(MISC_PACKAGE_CTLS) & 1 != 0, MISC_PACKAGE_CTLS)?;
    require(
        rdmsr(PERF_CAPABILITIES) & perf_ones == perf_ones,
        PERF_CAPABILITIES,
    )
}

/// Checks that the CPU supports the VMCSs of TDs and of nested VMs.
pub(super) fn check_vmx(
    release: Release,
    rdmsr: &impl Fn(u32) -> u64,
    has_waitpkg: bool,
) -> Result<(), Status> {
    let basic = rdmsr(VMX_BASIC);
    require(
        basic >> 32 & 0x1fff <= 2048 && basic >> 54 & 3 == 3,
        VMX_BASIC,
    )?;
    let misc = rdmsr(VMX_MISC);
    const MISC_ONES: u64 = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 14 | 1 << 29;
    let cr0_fixed0 = rdmsr(VMX_CR0_FIXED0) & !(1 << 0 | 1 << 31);
    let (cr0_fixed1, cr4_fixed0, cr4_fixed1) = (
        rdmsr(VMX_CR0_FIXED1),
        rdmsr(VMX_CR4_FIXED0),
        rdmsr(VMX_CR4_FIXED1),
    );
    for nested in [0, 1] {
        check_controls(release, rdmsr, has_waitpkg, nested)?;
        if nested == 0 {
            require(
                misc & MISC_ONES == MISC_ONES && misc >> 16 & 0x1ff >= 4,
                VMX_MISC,
            )?;
            require(
                rdmsr(VMX_EPT_VPID_CAP) & EPT_VPID_CAP_ONES == EPT_VPID_CAP_ONES,
                VMX_EPT_VPID_CAP,
            )?;
            require(cr0_fixed0 & !CR0_INITIAL == 0, VMX_CR0_FIXED0)?;
            require(!cr0_fixed1 & CR0_INITIAL == 0, VMX_CR0_FIXED1)?;
            require(cr4_fixed0 & !CR4_INITIAL == 0, VMX_CR4_FIXED0)?;
            require(!cr4_fixed1 & CR4_INITIAL == 0, VMX_CR4_FIXED1)?;
        } else {
            require(
                (cr0_fixed0 | !cr0_fixed1) & CR0_L2_VARIABLE == 0,
                VMX_CR0_FIXED0,
            )?;
        }
    }
    Ok(())
}

fn check_controls(
    release: Release,
    rdmsr: &impl Fn(u32) -> u64,
    has_waitpkg: bool,
    nested: usize,
) -> Result<(), Status> {
    let check = |control: &Control| require(control.is_supported(rdmsr(control.msr)), control.msr);
    let is_strict = release.does(Change::STRICT_INIT);
    check(&PIN_BASED[nested])?;
    check(if is_strict && nested > 0 {
        &STRICT_PROC_BASED_L2
    } else {
        &PROC_BASED[nested]
    })?;
    let mut proc_based2 = control(
        VMX_PROC_BASED2,
        PROC_BASED2[nested].initial & !USER_WAIT,
        PROC_BASED2[nested].variable,
        PROC_BASED2[nested].unknown,
    );
    if has_waitpkg {
        proc_based2.initial |= USER_WAIT;
    }
    if rdmsr(VMX_PROC_BASED2) >> 32 & ENCLV_EXITING == 0 {
        proc_based2.initial &= !ENCLV_EXITING;
    }
    check(&proc_based2)?;
    let (proc_based3, exit, entry) = if is_strict {
        (&STRICT_PROC_BASED3[nested], &STRICT_EXIT, &STRICT_ENTRY)
    } else {
        (&PROC_BASED3[nested], &EXIT, &ENTRY)
    };
    require(
        proc_based3.is_allowed(rdmsr(VMX_PROC_BASED3)),
        VMX_PROC_BASED3,
    )?;
    check(exit)?;
    check(entry)
}

/// Checks that performance monitoring is available.
pub(super) fn check_perfmon(rdmsr: &impl Fn(u32) -> u64) -> Result<(), Status> {
    let available = PERFMON_AVAILABLE | BTS_UNAVAILABLE;
    require(
        rdmsr(MISC_ENABLE) & available == PERFMON_AVAILABLE,
        MISC_ENABLE,
    )
}

/// Checks memory encryption, KeyIDs and cache write-back.
pub(super) fn check_keys(
    rdmsr: &impl Fn(u32) -> u64,
    platform: &Platform<'_>,
) -> Result<(), Status> {
    let activate = rdmsr(TME_ACTIVATE);
    require(activate & 1 != 0, TME_ACTIVATE)?;
    // AES-XTS with 128 or 256 bits, with or without integrity.
    require(rdmsr(TME_CAPABILITY) & 0xf != 0, TME_CAPABILITY)?;
    require(activate >> 48 & 0xf != 0, TME_ACTIVATE)?;
    if platform.num_mktme_keyids + platform.num_tdx_keyids >= seam::abi::MAX_HKIDS as u32 {
        return Err(
            Status::NUM_ACTIVATED_HKIDS_NOT_SUPPORTED.with_detail(seam::abi::MAX_HKIDS as u32)
        );
    }
    require(rdmsr(WBNOINVDP) == rdmsr(WBINVDP), WBNOINVDP)
}

/// Checks that SMRAM is locked and lies in no CMR.
pub(super) fn check_smrrs(
    rdmsr: &impl Fn(u32) -> u64,
    platform: &Platform<'_>,
) -> Result<(), Status> {
    let capabilities = rdmsr(MTRRCAP);
    if capabilities >> 11 & 1 == 0 {
        return Err(Status::SMRR_NOT_SUPPORTED);
    }
    if capabilities >> 14 & 1 == 0 {
        return Err(Status::SMRR_LOCK_NOT_SUPPORTED);
    }
    let ranges = &SMRR[..num_smrrs(capabilities)];
    for (i, (_, mask)) in (0..).zip(ranges) {
        if rdmsr(*mask) >> 10 & 1 == 0 {
            return Err(Status::SMRR_NOT_LOCKED.with_detail(i));
        }
    }
    for (i, (base, mask)) in (0..).zip(ranges) {
        let mask = rdmsr(*mask);
        if mask >> 11 & 1 == 0 {
            continue;
        }
        const ADDRESS: u64 = 0xffff_f000;
        let (base, mask) = (rdmsr(*base) & ADDRESS, mask & ADDRESS);
        // The mask is one run of ones down to the size, and the base is aligned to the size.
        let size = (1 << 32) - mask;
        if mask == 0 || !u64::is_power_of_two(size) || base & !mask != 0 {
            return Err(Status::INVALID_SMRR_CONFIGURATION.with_detail(i));
        }
        for (j, (cmr, cmr_size)) in (0..).zip(platform.cmrs) {
            if *cmr_size != 0 && base < cmr + cmr_size && *cmr < base + size {
                return Err(Status::SMRR_OVERLAPS_CMR.with_detail(i | j << 8));
            }
        }
    }
    Ok(())
}

fn num_smrrs(mtrrcap: u64) -> usize {
    if mtrrcap >> 13 & 1 != 0 { 2 } else { 1 }
}

/// Returns whether a processor with this IA32_MTRRCAP has the MSR.
pub(super) fn exists(msr: u32, rdmsr: &impl Fn(u32) -> u64) -> bool {
    (msr != SMRR[1].0 && msr != SMRR[1].1) || num_smrrs(rdmsr(MTRRCAP)) > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_bit_that_the_cpu_forces_must_be_one_that_the_module_sets_or_does_not_know() {
        let control = control(0, 0b0001, 0b0100, 0b1000);
        assert!(control.is_supported(0xf << 32 | 0b1001));
        assert!(!control.is_supported(0xf << 32 | 0b0010));
        assert!(!control.is_supported(0xf << 32 | 0b0100));
        assert!(!control.is_supported(0b1110 << 32));
    }

    #[test]
    fn smm_memory_is_locked_and_aligned_to_its_size() {
        let platform = Platform {
            lp_to_package: &[0],
            cmrs: &[(0x7000_0000, 0x100_0000)],
            max_pa: 52,
            keyid_bits: 6,
            num_mktme_keyids: 31,
            num_tdx_keyids: 32,
            seamrr: (0, 0),
            wbinvd_sub_blocks: 1,
        };
        let check = |base: u64, mask: u64| {
            check_smrrs(
                &|msr| match msr {
                    MTRRCAP => 1 << 11 | 1 << 14,
                    0x1f2 => base,
                    _ => mask,
                },
                &platform,
            )
        };
        assert_eq!(check(0x6000_0006, 0xff80_0c00), Ok(()));
        assert_eq!(
            check(0x6000_0006, 0xff80_0800),
            Err(Status::SMRR_NOT_LOCKED)
        );
        assert_eq!(
            check(0x6010_0006, 0xff80_0c00),
            Err(Status::INVALID_SMRR_CONFIGURATION)
        );
        assert_eq!(
            check(0x7080_0006, 0xff80_0c00),
            Err(Status::SMRR_OVERLAPS_CMR)
        );
    }
}

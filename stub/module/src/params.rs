//! TD_PARAMS: the accepted configurations of a TD, and the values derived from them.

use seam::abi::{Attributes, ConfigFlags, Features0, Operand, Status, TDCS_PAGES, TdParams};

use crate::cpuid::{
    Choices, ConfigError, EAX, Features, NUM_ROWS, Native, Registers, TdConfig, virtualize,
};
use crate::metadata::ARCH_CAPABILITIES_CONFIGURABLE;
use crate::{Change, Release};

/// Returns the allowed ATTRIBUTES bits.
pub const fn attributes_allowed(release: Release) -> u64 {
    Attributes::DEBUG.bits()
        | Attributes::SEPT_VE_DISABLE.bits()
        | Attributes::MIGRATABLE.bits()
        | Attributes::PKS.bits()
        | Attributes::PERFMON.bits()
        | when(release.has(Features0::ICSSD), Attributes::ICSSD.bits())
}

/// Returns the allowed CONFIG_FLAGS bits.
pub const fn config_flags_allowed(release: Release) -> u64 {
    let physical = release.has(Features0::MAXPA_VIRT);
    let guest = release.has(Features0::MAXGPA_VIRT);
    ConfigFlags::GPAW.bits()
        | ConfigFlags::FLEXIBLE_PENDING_VE.bits()
        | ConfigFlags::NO_RBP_MOD.bits()
        | when(physical, ConfigFlags::MAXPA_VIRT.bits())
        | when(guest, ConfigFlags::MAXGPA_VIRT.bits())
}

const fn when(condition: bool, bits: u64) -> u64 {
    if condition { bits } else { 0 }
}

/// The vCPUs of a TD, in a release that limits them (MAX_VCPUS_PER_TD).
pub const MAX_VCPUS: u16 = 576;
/// Hz per unit of TSC_FREQUENCY.
const TSC_UNIT: u64 = 25_000_000;
/// The multiplier of an unscaled time-stamp counter.
const UNSCALED: u64 = 1 << 48;
/// TSC_FREQUENCY in units of 25 MHz.
const TSC_FREQUENCIES: core::ops::RangeInclusive<u16> = 4..=400;
/// Maximum number of L2 VMs of a TD.
const MAX_L2_VMS: u8 = 3;
/// IA32_TSC_ADJUST.
pub const TSC_ADJUST_MSR: u32 = 0x3B;
/// IA32_ARCH_CAPABILITIES.
const ARCH_CAPABILITIES_MSR: u32 = 0x10A;
/// IA32_ARCH_CAPABILITIES.TSX_CTRL.
const ARCH_TSX_CTRL: u64 = 1 << 7;
/// IA32_ARCH_CAPABILITIES bits that a TD reads as the CPU has them.
const ARCH_NATIVE: u64 = 0x0008_F16F;
/// IA32_ARCH_CAPABILITIES bit that a TD reads as 1 in later releases: IA32_XAPIC_DISABLE_STATUS exists.
const ARCH_FIXED: u64 = 1 << 21;

/// The reason why TD_PARAMS is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status of TDH.MNG.INIT.
    pub status: Status,
    /// Its RCX: leaf and sub-leaf of a refused CPUID configuration, else 0.
    pub rcx: u64,
}

impl From<Operand> for Refusal {
    fn from(operand: Operand) -> Self {
        Self {
            status: Status::OPERAND_INVALID.with(operand),
            rcx: 0,
        }
    }
}

/// The values that a TD's control structures are set to.
#[derive(Clone, Debug)]
pub struct Config {
    /// EPTP_CONTROLS, without an address.
    pub eptp: u64,
    /// 48.16 fixed-point factor from native to virtual TSC ticks.
    pub tsc_multiplier: u64,
    /// The offset of each extended-state component, and the total size.
    pub xbuff: ([u32; 19], u32),
    /// CPUID by row of the table.
    pub cpuid: [Registers; NUM_ROWS],
    /// The features in the TD's CPUID.
    pub features: Features,
    /// IA32_ARCH_CAPABILITIES as the TD reads it.
    pub arch_capabilities: u64,
    /// The physical address width that limits the TD's addresses (VIRT_MAXPA); zero if none does.
    pub virt_maxpa: u32,
    /// FIELD_SUPPORT_AT_INIT.
    pub field_support: u32,
}

/// The circumstances of TDH.MNG.INIT.
#[derive(Clone, Copy, Debug)]
pub struct Present {
    /// The number of TDCX pages.
    pub num_tdcx: u32,
    /// The current IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// True if the machine runs the TD's time-stamp counter at the requested frequency.
    pub scales_tsc: bool,
    /// MAX_VCPUS_PER_TD, in a release that has it.
    pub max_vcpus: u16,
}

impl Config {
    /// Checks TD_PARAMS in the order of the module's release. `copy_filters` takes the list of performance events.
    ///
    /// # Errors
    /// The first violated rule.
    pub fn new(
        release: Release,
        params: &TdParams,
        native: &Native,
        present: &Present,
        copy_filters: &mut dyn FnMut() -> Result<(), Status>,
    ) -> Result<Self, Refusal> {
        if !accepts_attributes(release, params.attributes.bits()) {
            return Err(Operand::ATTRIBUTES.into());
        }
        if !native.accepts_xfam(params.xfam.bits()) {
            return Err(Operand::XFAM.into());
        }
        let limited = release.does(Change::LIMITS_VCPUS);
        if params.max_vcpus == 0 || limited && params.max_vcpus > present.max_vcpus {
            return Err(Operand::MAX_VCPUS.into());
        }
        if params.num_l2_vms > MAX_L2_VMS {
            return Err(Operand::NUM_L2_VMS.into());
        }
        if present.num_tdcx < TDCS_PAGES.0 + u32::from(params.num_l2_vms) {
            return Err(Refusal {
                status: Status::TDCS_NOT_ALLOCATED,
                rcx: 0,
            });
        }
        if params.reserved_14 != [0; 4] {
            return Err(Operand::RDX.into());
        }
        let widths = ConfigFlags::MAXPA_VIRT | ConfigFlags::MAXGPA_VIRT;
        if params.config_flags.bits() & !config_flags_allowed(release) != 0
            || params.config_flags.contains(widths)
        {
            return Err(Operand::EXEC_CONTROLS.into());
        }
        let is_wide = params.config_flags.contains(ConfigFlags::GPAW);
        if !accepts_eptp(params.eptp_controls, is_wide, native) {
            return Err(Operand::EPTP_CONTROLS.into());
        }
        if !TSC_FREQUENCIES.contains(&params.tsc_frequency) {
            return Err(Operand::TSC_FREQUENCY.into());
        }
        if present.tsc_adjust != native.msrs.tsc_adjust {
            let status = Status::INCONSISTENT_MSR.with_detail(TSC_ADJUST_MSR);
            return Err(Refusal { status, rcx: 0 });
        }
        if params.reserved_2a != [0; 38]
            || params.msr_config_ctls & !1 != 0
            || params.reserved_e8 != [0; 24]
        {
            return Err(Operand::RDX.into());
        }
        copy_filters().map_err(|status| Refusal { status, rcx: 0 })?;
        let (configurable, rest) = params
            .cpuid_config
            .split_at(native.table.configurable.len());
        let cpuid = virtualize(
            native,
            &TdConfig {
                release,
                flags: params.config_flags,
                attributes: params.attributes.bits(),
                xfam: params.xfam.bits(),
                tsc_frequency: params.tsc_frequency,
                cpuid: configurable,
                has_tsx_ctrl: native.msrs.arch_capabilities & ARCH_TSX_CTRL != 0,
            },
        )
        .map_err(refuse_cpuid)?;
        if rest.iter().any(|entry| *entry != [0; 4]) {
            return Err(Operand::RDX.into());
        }
        let widths = native.table.find(0x8000_0008, 0);
        let widths = widths.map_or(0, |row| cpuid[row][EAX]);
        let virt_maxpa = match widths >> 16 & 0xFF {
            _ if !release.has(Features0::MAXPA_VIRT) => 0,
            0 => widths & 0xFF,
            guest => guest,
        };
        let features = Features::of(native.table, Choices::default(), |row| cpuid[row]);
        let arch_capabilities = arch_capabilities(release, params, native, features)?;
        if params.attributes.contains(Attributes::MIGRATABLE) && params.num_l2_vms > 0 {
            return Err(Operand::RDX.into());
        }
        let hz = u128::from(params.tsc_frequency) * u128::from(TSC_UNIT);
        let scaled = ((hz << 48) / u128::from(native.tsc_hz.max(1))) as u64;
        Ok(Self {
            eptp: params.eptp_controls,
            tsc_multiplier: if present.scales_tsc { scaled } else { UNSCALED },
            xbuff: native.xbuff(params.xfam.bits()),
            cpuid,
            features,
            arch_capabilities,
            virt_maxpa,
            field_support: 0,
        })
    }
}

/// Returns whether a TD may have these ATTRIBUTES. A migratable TD can be neither debugged nor profiled.
fn accepts_attributes(release: Release, bits: u64) -> bool {
    let open = Attributes::DEBUG.bits() | Attributes::PERFMON.bits();
    // The defence by instruction count needs a counter that a profiled TD owns.
    let counted = Attributes::ICSSD.bits() | Attributes::PERFMON.bits();
    bits & !attributes_allowed(release) == 0
        && bits & counted != counted
        && (bits & Attributes::MIGRATABLE.bits() == 0 || bits & open == 0)
}

/// Returns whether EPTP_CONTROLS request write-back and four or five levels that the CPU supports, and nothing else. A
/// wide guest-physical address needs five levels.
fn accepts_eptp(eptp: u64, is_wide: bool, native: &Native) -> bool {
    let has_five = native.msrs.has_five_level_ept() && native.max_pa > 48;
    match eptp {
        0x1E => !is_wide,
        0x26 => has_five,
        _ => false,
    }
}

fn refuse_cpuid(error: ConfigError) -> Refusal {
    match error {
        ConfigError::Value { row } => Refusal {
            status: Status::OPERAND_INVALID.with(Operand::CPUID_CONFIG),
            rcx: row,
        },
        ConfigError::PhysicalWidth => Operand::CPUID_CONFIG.into(),
        ConfigError::Topology => Refusal {
            status: Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED,
            rcx: 0,
        },
        ConfigError::TsxHalf => Operand::CPUID_CONFIG.into(),
        ConfigError::NoTsxCtrl => Refusal {
            status: Status::INCORRECT_MSR_VALUE.with_detail(ARCH_CAPABILITIES_MSR),
            rcx: 0,
        },
    }
}

/// Returns IA32_ARCH_CAPABILITIES as the TD reads it: SSB_NO (4), BHI_NO (20) and PBRSB_NO (24) only if requested,
/// RRSBA (19) if the CPU has it or if requested, TSX_CTRL with TSX.
fn arch_capabilities(
    release: Release,
    params: &TdParams,
    native: &Native,
    features: Features,
) -> Result<u64, Refusal> {
    const RRSBA: u64 = 1 << 19;
    let wanted = params.ia32_arch_capabilities_config;
    let configured = params.msr_config_ctls & 1 != 0;
    if wanted & !ARCH_CAPABILITIES_CONFIGURABLE != 0 || !configured && wanted != 0 {
        return Err(Operand::IA32_ARCH_CAPABILITIES_CONFIG.into());
    }
    let tsx = if features.tsx { ARCH_TSX_CTRL } else { 0 };
    let native = native.msrs.arch_capabilities & (ARCH_NATIVE | tsx | wanted);
    let fixed = when(release.does(Change::MORE_CPUID), ARCH_FIXED);
    Ok(native | fixed | wanted & RRSBA)
}

/// Returns the virtual TSC when the native one reads `native`.
pub fn virtual_tsc(native: u64, multiplier: u64, offset: u64) -> u64 {
    let scaled = ((u128::from(native) * u128::from(multiplier)) >> 48) as u64;
    scaled.wrapping_add(offset)
}

#[cfg(test)]
mod tests {
    use seam::abi::Xfam;
    use zerocopy::FromZeros;

    use super::*;
    use crate::cpuid::Table;

    const RELEASE: Release = Release::V1_5_01;
    const PRESENT: Present = Present {
        num_tdcx: 6,
        tsc_adjust: 0,
        scales_tsc: true,
        max_vcpus: MAX_VCPUS,
    };

    fn native() -> Native {
        let cpuid = |leaf, sub_leaf| match (leaf, sub_leaf) {
            (0xD, 0) => [0x6_02E7, 0x340, 0x2B00, 0],
            (0xD, 1) => [0x1F, 0x2B00, 0x1_DD00, 0],
            (0x15, _) => [1, 80, 25_000_000, 0],
            (0x8000_0008, _) => [0x3934, 0, 0, 0],
            _ => [0; 4],
        };
        let rdmsr = |msr| match msr {
            0x10A => 0x12A_FDEB,
            0x48C => 0xF01_06F3_41C1,
            _ => 0,
        };
        Native::sample(cpuid, rdmsr, 0x806F8, Table::of(RELEASE))
    }

    fn params() -> TdParams {
        let mut params = TdParams::new_zeroed();
        (params.xfam, params.max_vcpus) = (Xfam::X87 | Xfam::SSE, 1);
        (params.eptp_controls, params.tsc_frequency) = (0x1E, 100);
        params
    }

    fn refusal(change: impl FnOnce(&mut TdParams)) -> Status {
        let mut params = params();
        change(&mut params);
        Config::new(RELEASE, &params, &native(), &PRESENT, &mut || Ok(()))
            .unwrap_err()
            .status
    }

    #[test]
    fn each_rule_names_its_operand() {
        let invalid = |operand| Status::OPERAND_INVALID.with(operand);
        assert_eq!(
            refusal(|params| params.attributes = Attributes::from_bits_retain(2)),
            invalid(Operand::ATTRIBUTES)
        );
        let migratable_debug = Attributes::DEBUG | Attributes::MIGRATABLE;
        assert_eq!(
            refusal(|params| params.attributes = migratable_debug),
            invalid(Operand::ATTRIBUTES)
        );
        assert_eq!(
            refusal(|params| params.xfam = Xfam::X87),
            invalid(Operand::XFAM)
        );
        assert_eq!(
            refusal(|params| params.max_vcpus = 0),
            invalid(Operand::MAX_VCPUS)
        );
        assert_eq!(
            refusal(|params| params.num_l2_vms = 4),
            invalid(Operand::NUM_L2_VMS)
        );
        assert_eq!(
            refusal(|params| params.num_l2_vms = 1),
            Status::TDCS_NOT_ALLOCATED
        );
        assert_eq!(
            refusal(|params| params.config_flags = ConfigFlags::MAXPA_VIRT),
            invalid(Operand::EXEC_CONTROLS)
        );
        assert_eq!(
            refusal(|params| params.eptp_controls = 0x5E),
            invalid(Operand::EPTP_CONTROLS)
        );
        assert_eq!(
            refusal(|params| params.tsc_frequency = 3),
            invalid(Operand::TSC_FREQUENCY)
        );
        assert_eq!(
            refusal(|params| params.tsc_frequency = 401),
            invalid(Operand::TSC_FREQUENCY)
        );
        let arch = invalid(Operand::IA32_ARCH_CAPABILITIES_CONFIG);
        assert_eq!(
            refusal(|params| params.ia32_arch_capabilities_config = 1 << 4),
            arch
        );
    }

    #[test]
    fn a_wide_guest_address_needs_five_levels_but_not_the_other_way_round() {
        let wide = |params: &mut TdParams| params.config_flags = ConfigFlags::GPAW;
        assert_eq!(
            refusal(wide),
            Status::OPERAND_INVALID.with(Operand::EPTP_CONTROLS)
        );
        let mut five_levels = params();
        five_levels.eptp_controls = 0x26;
        assert!(Config::new(RELEASE, &five_levels, &native(), &PRESENT, &mut || Ok(())).is_ok());
    }

    #[test]
    fn the_virtual_tsc_runs_at_the_configured_frequency() {
        let config = Config::new(RELEASE, &params(), &native(), &PRESENT, &mut || Ok(())).unwrap();
        assert_eq!(config.tsc_multiplier, 0x0001_4000_0000_0000);
        assert_eq!(
            virtual_tsc(2_000_000_000, config.tsc_multiplier, 0),
            2_500_000_000
        );
    }

    #[test]
    fn a_changed_tsc_adjust_is_noticed() {
        let moved = Present {
            tsc_adjust: 1,
            ..PRESENT
        };
        let refused =
            Config::new(RELEASE, &params(), &native(), &moved, &mut || Ok(())).unwrap_err();
        assert_eq!(refused.status, Status::INCONSISTENT_MSR.with_detail(0x3B));
    }
}

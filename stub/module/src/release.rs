//! The releases of Intel's module that this one can behave as, and their differences.
//!
//! Each difference is stated once: as a bit of TDX_FEATURES0 where the module has one, otherwise as a [`Change`]. The
//! rest of the module asks for the difference and never for the version.

use core::fmt;
use core::str::FromStr;

use alloc::format;
use alloc::string::String;
use bitflags::bitflags;
use seam::abi::Features0;

/// A release of Intel's module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Release {
    /// 1.5.01 of November 2023.
    V1_5_01,
    /// 1.5.16 of February 2025.
    V1_5_16,
    /// 1.5.25 of September 2025.
    #[default]
    V1_5_25,
}

bitflags! {
    /// Differences between releases for which TDX_FEATURES0 has no bit. Each names the newer behaviour.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Change: u32 {
        /// The right to execute in user mode is a part of an S-EPT entry that the host sees.
        const SHOWS_USER_EXECUTE = 1 << 0;
        /// VCPU_STATE_INCORRECT has the vCPU's state as its detail.
        const TELLS_VCPU_STATE = 1 << 1;
        /// OP_STATE_INCORRECT has the TD's OP_STATE as its detail.
        const TELLS_OP_STATE = 1 << 2;
        /// A failed RDRAND or RDSEED is repeated.
        const RETRIES_ENTROPY = 1 << 3;
        /// TDH.MEM.RANGE.UNBLOCK names RCX when the TLBs are not tracked.
        const UNBLOCK_NAMES_RCX = 1 << 4;
        /// EPTP holds the TD's HKID from TDH.MNG.INIT on.
        const EPTP_WITH_HKID = 1 << 5;
        /// TDH.SYS.INIT returns zero in RDX in every case, and requires more of the processor.
        const STRICT_INIT = 1 << 6;
        /// A TDREPORT's hash of TDINFO is computed once and kept until an RTMR changes.
        const KEEPS_INFO_HASH = 1 << 7;
        /// A TDCALL that can't write to an unmapped page reports the write alone.
        const REPORTS_WRITE_ALONE = 1 << 8;
        /// TDG.VP.VEINFO.GET has a version 1, which returns the #VE's category.
        const VEINFO_KIND = 1 << 9;
        /// More leafs of CPUID are answered, and more of its bits are configurable.
        const MORE_CPUID = 1 << 10;
        /// MSRs of features that a TD does not have raise #GP instead of #VE.
        const STRICT_MSRS = 1 << 11;
        /// RBP survives asynchronous TD exits of a TD with NO_RBP_MOD.
        const KEEPS_RBP_ALWAYS = 1 << 12;
        /// The host may read and write fewer fields, or more.
        const REVISED_METADATA = 1 << 13;
        /// The controls of a new vCPU's VMCS.
        const REVISED_VMCS = 1 << 14;
        /// The number of vCPUs of a TD is limited by the module.
        const LIMITS_VCPUS = 1 << 15;
        /// TDG.VP.RD returns VCPU_STATE_DETAILS.
        const GUEST_STATE_DETAILS = 1 << 16;
        /// The host may write more of VM_CTLS; FIELD_SUPPORT_AT_INIT replaces some fields of a TD.
        const REVISED_TD_FIELDS = 1 << 18;
        /// The handoff data has version 1.
        const HANDOFF_1 = 1 << 17;
        /// TDH.SYS.CONFIG accepts the flag for dynamic PAMTs.
        const DYNAMIC_PAMT_FLAG = 1 << 21;
        /// MONITOR and MWAIT raise #UD in a TD without them, instead of #VE.
        const MONITOR_IS_INVALID = 1 << 19;
        /// A page that the guest can accept lifts the refusal to enter a vCPU that is being stepped.
        const PENDING_IS_PROGRESS = 1 << 20;
    }
}

/// The numbers by which a release identifies itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// UPDATE_VERSION.
    pub update: u64,
    /// BUILD_DATE, in decimal digits.
    pub build_date: u64,
    /// BUILD_NUM.
    pub build_num: u64,
}

impl Release {
    /// All releases, oldest first.
    pub const ALL: [Self; 3] = [Self::V1_5_01, Self::V1_5_16, Self::V1_5_25];

    /// Returns the version, as its publisher writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1_5_01 => "1.5.01",
            Self::V1_5_16 => "1.5.16",
            Self::V1_5_25 => "1.5.25",
        }
    }

    /// Returns the numbers of the recorded builds.
    pub const fn identity(self) -> Identity {
        let (update, build_date, build_num) = match self {
            Self::V1_5_01 => (1, 20_231_112, 0),
            Self::V1_5_16 => (16, 20_250_221, 869),
            Self::V1_5_25 => (25, 20_250_902, 954),
        };
        Identity {
            update,
            build_date,
            build_num,
        }
    }

    /// Returns the version of the data that the release hands over at an update (MODULE_HV).
    pub const fn handoff_version(self) -> u64 {
        self.does(Change::HANDOFF_1) as u64
    }

    /// Returns TDX_FEATURES0.
    pub const fn features(self) -> Features0 {
        let first = Features0::from_bits_retain(0xF_0FBF);
        let second = first
            .union(Features0::TOPOLOGY_ENUM)
            .union(Features0::PARTITIONED_TD_MIGRATION)
            .union(Features0::EVENT_FILTERING)
            .union(Features0::ICSSD)
            .union(Features0::FIXED_CTR12_PROF)
            .union(Features0::MAXPA_VIRT)
            .union(Features0::CPUID2_VIRT)
            .union(Features0::VE_REDUCTION)
            .union(Features0::MAXGPA_VIRT)
            .union(Features0::FATAL_DIAGNOSTICS);
        match self {
            Self::V1_5_01 => first,
            Self::V1_5_16 => second,
            Self::V1_5_25 => second
                .union(Features0::DYNAMIC_PAMT)
                .union(Features0::ENHANCED_INTR_STATE)
                .union(Features0::IMPORT_PAGE_STATUS)
                .union(Features0::VE_INFO_INTR_STATE)
                .union(Features0::UPDATE_COMPATIBILITY),
        }
    }

    /// Returns the differences that no bit of TDX_FEATURES0 announces.
    pub const fn changes(self) -> Change {
        let latest = Change::TELLS_OP_STATE
            .union(Change::GUEST_STATE_DETAILS)
            .union(Change::REVISED_TD_FIELDS)
            .union(Change::PENDING_IS_PROGRESS)
            .union(Change::HANDOFF_1);
        match self {
            Self::V1_5_01 => Change::empty(),
            Self::V1_5_16 => Change::all().difference(latest),
            Self::V1_5_25 => Change::all(),
        }
    }

    /// Returns whether the release announces a feature in TDX_FEATURES0.
    #[inline(always)]
    pub const fn has(self, feature: Features0) -> bool {
        self.features().contains(feature)
    }

    /// Returns whether the release has a change that TDX_FEATURES0 does not announce.
    #[inline(always)]
    pub const fn does(self, change: Change) -> bool {
        self.changes().contains(change)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Release {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|release| release.name() == text);
        known.ok_or_else(|| {
            let [first, second, third] = Self::ALL.map(Self::name);
            format!("the emulated module is {first}, {second} or {third}, not {text}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn the_announced_features_are_those_of_the_recordings() {
        let announced = Release::ALL.map(|release| release.features().bits());
        assert_eq!(announced, [0xF_0FBF, 0x22_6F3F_0FBF, 0xD132_6F3F_0FBF]);
    }

    #[test]
    fn a_release_is_named_by_its_version() {
        for release in Release::ALL {
            assert_eq!(release.to_string().parse(), Ok(release));
        }
        let error = "1.5.17".parse::<Release>().unwrap_err();
        assert!(error.contains("1.5.16") && error.contains("1.5.17"));
    }
}

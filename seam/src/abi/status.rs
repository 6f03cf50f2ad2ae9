//! Completion statuses of SEAMCALL and TDCALL in RAX: class, code and detail in one 64-bit word.

use core::fmt;

use super::Operand;

/// A completion status. Bits 63 (error), 62 (non-recoverable), 61 (fatal), 60 (host recoverability hint), 47:40
/// (class), 39:32 (code in the class) and 31:0 (detail: an operand, an MSR, an exit reason, indices).
///
/// Source: TDX Module ABI 1.5, "Function completion status codes".
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u64);

impl Status {
    /// Returns whether the function failed (bit 63). If the bit is clear and the code is not zero, the status is a
    /// success with further information, or a TD exit.
    pub const fn is_error(self) -> bool {
        self.0 >> 63 != 0
    }

    /// Returns whether repeating the call unchanged can't help (bit 62).
    pub const fn is_non_recoverable(self) -> bool {
        self.0 >> 62 & 1 != 0
    }

    /// Returns whether the TD can only be torn down (bit 61).
    pub const fn is_fatal(self) -> bool {
        self.0 >> 61 & 1 != 0
    }

    /// Returns the class of the code (bits 47:40).
    pub const fn class(self) -> u8 {
        (self.0 >> 40) as u8
    }

    /// Returns the detail (bits 31:0).
    pub const fn detail(self) -> u32 {
        self.0 as u32
    }

    /// Returns the code without its detail, for comparison with the constants.
    pub const fn code(self) -> Self {
        Self(self.0 & 0xffff_ffff_0000_0000)
    }

    /// Returns the same code with this detail.
    pub const fn with_detail(self, detail: u32) -> Self {
        Self(self.code().0 | detail as u64)
    }

    /// Returns the same code with this operand as its detail.
    pub const fn with(self, operand: Operand) -> Self {
        self.with_detail(operand.0)
    }

    /// Returns the code's name without the TDX_ prefix, or `None` for a code that module 1.5 does not have.
    pub fn name(self) -> Option<&'static str> {
        let code = self.code();
        NAMES
            .iter()
            .find(|(known, _)| *known == code)
            .map(|(_, name)| *name)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.detail()) {
            (Some(name), 0) => f.write_str(name),
            (Some(name), detail) => write!(f, "{name} ({detail:#x})"),
            (None, _) => write!(f, "{:#018x}", self.0),
        }
    }
}

macro_rules! codes {
    ($($name:ident = $value:literal;)*) => {
        impl Status {
            $(#[doc = concat!("`TDX_", stringify!($name), "`.")] pub const $name: Self = Self($value);)*
        }

        /// All codes that module 1.5 has, by ascending class.
        pub(crate) const NAMES: &[(Status, &str)] = &[$((Status::$name, stringify!($name)),)*];
    };
}

// Source: TDX module 1.5.01, `tdx_error_codes_defs.h`.
codes! {
    // Class 0x00: general / TD-exit.
    SUCCESS = 0x0000_0000_0000_0000;
    NON_RECOVERABLE_VCPU = 0x4000_0001_0000_0000;
    NON_RECOVERABLE_TD = 0x6000_0002_0000_0000;
    INTERRUPTED_RESUMABLE = 0x8000_0003_0000_0000;
    INTERRUPTED_RESTARTABLE = 0x8000_0004_0000_0000;
    NON_RECOVERABLE_TD_NON_ACCESSIBLE = 0x6000_0005_0000_0000;
    INVALID_RESUMPTION = 0xC000_0006_0000_0000;
    NON_RECOVERABLE_TD_WRONG_APIC_MODE = 0xE000_0007_0000_0000;
    CROSS_TD_FAULT = 0x8000_0008_0000_0000;
    CROSS_TD_TRAP = 0x9000_0009_0000_0000;
    NON_RECOVERABLE_TD_CORRUPTED_MD = 0x6000_000A_0000_0000;
    // Class 0x01: invalid operand.
    OPERAND_INVALID = 0xC000_0100_0000_0000;
    OPERAND_ADDR_RANGE_ERROR = 0xC000_0101_0000_0000;
    // Class 0x02: resource busy.
    OPERAND_BUSY = 0x8000_0200_0000_0000;
    PREVIOUS_TLB_EPOCH_BUSY = 0x8000_0201_0000_0000;
    SYS_BUSY = 0x8000_0202_0000_0000;
    RND_NO_ENTROPY = 0x8000_0203_0000_0000;
    OPERAND_BUSY_HOST_PRIORITY = 0x8000_0204_0000_0000;
    HOST_PRIORITY_BUSY_TIMEOUT = 0x9000_0205_0000_0000;
    // Class 0x03: page metadata.
    PAGE_METADATA_INCORRECT = 0xC000_0300_0000_0000;
    PAGE_ALREADY_FREE = 0x0000_0301_0000_0000;
    PAGE_NOT_OWNED_BY_TD = 0xC000_0302_0000_0000;
    PAGE_NOT_FREE = 0xC000_0303_0000_0000;
    // Class 0x04: dependent resources.
    TD_ASSOCIATED_PAGES_EXIST = 0xC000_0400_0000_0000;
    // Class 0x05: TDX module (SYS) state.
    SYS_INIT_NOT_PENDING = 0xC000_0500_0000_0000;
    SYS_LP_INIT_NOT_DONE = 0xC000_0502_0000_0000;
    SYS_LP_INIT_DONE = 0xC000_0503_0000_0000;
    SYS_NOT_READY = 0xC000_0505_0000_0000;
    SYS_SHUTDOWN = 0xC000_0506_0000_0000;
    SYS_KEY_CONFIG_NOT_PENDING = 0xC000_0507_0000_0000;
    SYS_STATE_INCORRECT = 0xC000_0508_0000_0000;
    SYS_INVALID_HANDOFF = 0xC000_0509_0000_0000;
    SYS_INCOMPATIBLE_SIGSTRUCT = 0xC000_050A_0000_0000;
    SYS_LP_INIT_NOT_PENDING = 0xC000_050B_0000_0000;
    SYS_CONFIG_NOT_PENDING = 0xC000_050C_0000_0000;
    INCOMPATIBLE_SEAM_CAPABILITIES = 0xC000_050D_0000_0000;
    // Class 0x06: TD state.
    TD_FATAL = 0xE000_0604_0000_0000;
    TD_NON_DEBUG = 0xC000_0605_0000_0000;
    TDCS_NOT_ALLOCATED = 0xC000_0606_0000_0000;
    LIFECYCLE_STATE_INCORRECT = 0xC000_0607_0000_0000;
    OP_STATE_INCORRECT = 0xC000_0608_0000_0000;
    NO_VCPUS = 0xC000_0609_0000_0000;
    TDCX_NUM_INCORRECT = 0xC000_0610_0000_0000;
    // Class 0x07: VCPU state.
    VCPU_STATE_INCORRECT = 0xC000_0700_0000_0000;
    VCPU_ASSOCIATED = 0x8000_0701_0000_0000;
    VCPU_NOT_ASSOCIATED = 0x8000_0702_0000_0000;
    NO_VALID_VE_INFO = 0xC000_0704_0000_0000;
    MAX_VCPUS_EXCEEDED = 0xC000_0705_0000_0000;
    TSC_ROLLBACK = 0xC000_0706_0000_0000;
    TD_VMCS_FIELD_NOT_INITIALIZED = 0xC000_0730_0000_0000;
    TD_VMCS_FIELD_ERROR = 0xC000_0731_0000_0000;
    // Class 0x08: key management.
    KEY_GENERATION_FAILED = 0x8000_0800_0000_0000;
    TD_KEYS_NOT_CONFIGURED = 0x8000_0810_0000_0000;
    KEY_STATE_INCORRECT = 0xC000_0811_0000_0000;
    KEY_CONFIGURED = 0x0000_0815_0000_0000;
    WBCACHE_NOT_COMPLETE = 0x8000_0817_0000_0000;
    HKID_NOT_FREE = 0xC000_0820_0000_0000;
    NO_HKID_READY_TO_WBCACHE = 0x0000_0821_0000_0000;
    WBCACHE_RESUME_ERROR = 0xC000_0823_0000_0000;
    FLUSHVP_NOT_DONE = 0x8000_0824_0000_0000;
    NUM_ACTIVATED_HKIDS_NOT_SUPPORTED = 0xC000_0825_0000_0000;
    // Class 0x09: platform state.
    INCORRECT_CPUID_VALUE = 0xC000_0900_0000_0000;
    LIMIT_CPUID_MAXVAL_SET = 0xC000_0901_0000_0000;
    INCONSISTENT_CPUID_FIELD = 0xC000_0902_0000_0000;
    CPUID_MAX_SUBLEAVES_UNRECOGNIZED = 0xC000_0903_0000_0000;
    CPUID_LEAF_1F_FORMAT_UNRECOGNIZED = 0xC000_0904_0000_0000;
    INVALID_WBINVD_SCOPE = 0xC000_0905_0000_0000;
    INVALID_PKG_ID = 0xC000_0906_0000_0000;
    ENABLE_MONITOR_FSM_NOT_SET = 0xC000_0907_0000_0000;
    CPUID_LEAF_NOT_SUPPORTED = 0xC000_0908_0000_0000;
    SMRR_NOT_LOCKED = 0xC000_0910_0000_0000;
    INVALID_SMRR_CONFIGURATION = 0xC000_0911_0000_0000;
    SMRR_OVERLAPS_CMR = 0xC000_0912_0000_0000;
    SMRR_LOCK_NOT_SUPPORTED = 0xC000_0913_0000_0000;
    SMRR_NOT_SUPPORTED = 0xC000_0914_0000_0000;
    INCONSISTENT_MSR = 0xC000_0920_0000_0000;
    INCORRECT_MSR_VALUE = 0xC000_0921_0000_0000;
    SEAMREPORT_NOT_AVAILABLE = 0xC000_0930_0000_0000;
    SEAMDB_GETREF_NOT_AVAILABLE = 0xC000_0931_0000_0000;
    SEAMDB_REPORT_NOT_AVAILABLE = 0xC000_0932_0000_0000;
    SEAMVERIFYREPORT_NOT_AVAILABLE = 0xC000_0933_0000_0000;
    // Class 0x0A: physical memory (TDMR/PAMT).
    INVALID_TDMR = 0xC000_0A00_0000_0000;
    NON_ORDERED_TDMR = 0xC000_0A01_0000_0000;
    TDMR_OUTSIDE_CMRS = 0xC000_0A02_0000_0000;
    TDMR_ALREADY_INITIALIZED = 0x0000_0A03_0000_0000;
    INVALID_PAMT = 0xC000_0A10_0000_0000;
    PAMT_OUTSIDE_CMRS = 0xC000_0A11_0000_0000;
    PAMT_OVERLAP = 0xC000_0A12_0000_0000;
    INVALID_RESERVED_IN_TDMR = 0xC000_0A20_0000_0000;
    NON_ORDERED_RESERVED_IN_TDMR = 0xC000_0A21_0000_0000;
    CMR_LIST_INVALID = 0xC000_0A22_0000_0000;
    // Class 0x0B: TD memory (S-EPT).
    EPT_WALK_FAILED = 0xC000_0B00_0000_0000;
    EPT_ENTRY_FREE = 0xC000_0B01_0000_0000;
    EPT_ENTRY_NOT_FREE = 0xC000_0B02_0000_0000;
    EPT_ENTRY_NOT_PRESENT = 0xC000_0B03_0000_0000;
    EPT_ENTRY_NOT_LEAF = 0xC000_0B04_0000_0000;
    EPT_ENTRY_LEAF = 0xC000_0B05_0000_0000;
    GPA_RANGE_NOT_BLOCKED = 0xC000_0B06_0000_0000;
    GPA_RANGE_ALREADY_BLOCKED = 0x0000_0B07_0000_0000;
    TLB_TRACKING_NOT_DONE = 0xC000_0B08_0000_0000;
    EPT_INVALID_PROMOTE_CONDITIONS = 0xC000_0B09_0000_0000;
    PAGE_ALREADY_ACCEPTED = 0x0000_0B0A_0000_0000;
    PAGE_SIZE_MISMATCH = 0xC000_0B0B_0000_0000;
    GPA_RANGE_BLOCKED = 0xC000_0B0C_0000_0000;
    EPT_ENTRY_STATE_INCORRECT = 0xC000_0B0D_0000_0000;
    EPT_PAGE_NOT_FREE = 0xC000_0B0E_0000_0000;
    L2_SEPT_WALK_FAILED = 0xC000_0B0F_0000_0000;
    L2_SEPT_ENTRY_NOT_FREE = 0xC000_0B10_0000_0000;
    PAGE_ATTR_INVALID = 0xC000_0B11_0000_0000;
    L2_SEPT_PAGE_NOT_PROVIDED = 0xC000_0B12_0000_0000;
    // Class 0x0C: metadata access.
    METADATA_FIELD_ID_INCORRECT = 0xC000_0C00_0000_0000;
    METADATA_FIELD_NOT_WRITABLE = 0xC000_0C01_0000_0000;
    METADATA_FIELD_NOT_READABLE = 0xC000_0C02_0000_0000;
    METADATA_FIELD_VALUE_NOT_VALID = 0xC000_0C03_0000_0000;
    METADATA_LIST_OVERFLOW = 0xC000_0C04_0000_0000;
    INVALID_METADATA_LIST_HEADER = 0xC000_0C05_0000_0000;
    REQUIRED_METADATA_FIELD_MISSING = 0xC000_0C06_0000_0000;
    METADATA_ELEMENT_SIZE_INCORRECT = 0xC000_0C07_0000_0000;
    METADATA_LAST_ELEMENT_INCORRECT = 0xC000_0C08_0000_0000;
    METADATA_FIELD_CURRENTLY_NOT_WRITABLE = 0xC000_0C09_0000_0000;
    METADATA_WR_MASK_NOT_VALID = 0xC000_0C0A_0000_0000;
    METADATA_FIRST_FIELD_ID_IN_CONTEXT = 0x0000_0C0B_0000_0000;
    METADATA_FIELD_SKIP = 0x0000_0C0C_0000_0000;
    // Class 0x0D: service TD.
    SERVTD_ALREADY_BOUND_FOR_TYPE = 0xC000_0D00_0000_0000;
    SERVTD_TYPE_MISMATCH = 0xC000_0D01_0000_0000;
    SERVTD_ATTR_MISMATCH = 0xC000_0D02_0000_0000;
    SERVTD_INFO_HASH_MISMATCH = 0xC000_0D03_0000_0000;
    SERVTD_UUID_MISMATCH = 0xC000_0D04_0000_0000;
    SERVTD_NOT_BOUND = 0xC000_0D05_0000_0000;
    SERVTD_BOUND = 0xC000_0D06_0000_0000;
    TARGET_UUID_MISMATCH = 0xC000_0D07_0000_0000;
    TARGET_UUID_UPDATED = 0xC000_0D08_0000_0000;
    // Class 0x0E: migration.
    INVALID_MBMD = 0xC000_0E00_0000_0000;
    INCORRECT_MBMD_MAC = 0xC000_0E01_0000_0000;
    NOT_WRITE_BLOCKED = 0xC000_0E02_0000_0000;
    ALREADY_WRITE_BLOCKED = 0x0000_0E03_0000_0000;
    NOT_EXPORTED = 0xC000_0E04_0000_0000;
    MIGRATION_STREAM_STATE_INCORRECT = 0xC000_0E05_0000_0000;
    MAX_MIGS_NUM_EXCEEDED = 0xC000_0E06_0000_0000;
    EXPORTED_DIRTY_PAGES_REMAIN = 0xC000_0E07_0000_0000;
    MIGRATION_DECRYPTION_KEY_NOT_SET = 0xC000_0E08_0000_0000;
    TD_NOT_MIGRATABLE = 0xC000_0E09_0000_0000;
    PREVIOUS_EXPORT_CLEANUP_INCOMPLETE = 0xC000_0E0A_0000_0000;
    NUM_MIGS_HIGHER_THAN_CREATED = 0xC000_0E0B_0000_0000;
    IMPORT_MISMATCH = 0xC000_0E0C_0000_0000;
    MIGRATION_EPOCH_OVERFLOW = 0xC000_0E0D_0000_0000;
    MAX_EXPORTS_EXCEEDED = 0xC000_0E0E_0000_0000;
    INVALID_PAGE_MAC = 0xC000_0E0F_0000_0000;
    MIGRATED_IN_CURRENT_EPOCH = 0xC000_0E10_0000_0000;
    DISALLOWED_IMPORT_OVER_REMOVED = 0xC000_0E11_0000_0000;
    SOME_VCPUS_NOT_MIGRATED = 0xC000_0E12_0000_0000;
    ALL_VCPUS_IMPORTED = 0xC000_0E13_0000_0000;
    MIN_MIGS_NOT_CREATED = 0xC000_0E14_0000_0000;
    VCPU_ALREADY_EXPORTED = 0xC000_0E15_0000_0000;
    INVALID_MIGRATION_DECRYPTION_KEY = 0xC000_0E16_0000_0000;
    // Class 0x10: attestation.
    INVALID_CPUSVN = 0xC000_1000_0000_0000;
    INVALID_REPORTMACSTRUCT = 0xC000_1001_0000_0000;
    // Class 0x11: TD partitioning (L2).
    L2_EXIT_HOST_ROUTED_ASYNC = 0x0000_1100_0000_0000;
    L2_EXIT_HOST_ROUTED_TDVMCALL = 0x0000_1101_0000_0000;
    L2_EXIT_PENDING_INTERRUPT = 0x0000_1102_0000_0000;
    PENDING_INTERRUPT = 0x0000_1120_0000_0000;
    TD_EXIT_BEFORE_L2_ENTRY = 0x0000_1140_0000_0000;
    TD_EXIT_ON_L2_VM_EXIT = 0x0000_1141_0000_0000;
    TD_EXIT_ON_L2_TO_L1 = 0x0000_1142_0000_0000;
    GLA_NOT_CANONICAL = 0xC000_1160_0000_0000;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_code_and_an_operand() {
        let status = Status::OPERAND_INVALID.with(Operand::R8);
        assert_eq!(status.0, 0xc000_0100_0000_0008);
        assert_eq!(status.code(), Status::OPERAND_INVALID);
        assert_eq!(status.name(), Some("OPERAND_INVALID"));
        assert!(status.is_error() && status.is_non_recoverable() && !status.is_fatal());
    }

    #[test]
    fn success_class_codes_are_not_errors() {
        for status in [
            Status::KEY_CONFIGURED,
            Status::GPA_RANGE_ALREADY_BLOCKED,
            Status::TDMR_ALREADY_INITIALIZED,
        ] {
            assert!(!status.is_error());
            assert_ne!(status, Status::SUCCESS);
        }
    }

    #[test]
    fn each_code_has_a_value_of_its_own() {
        for (i, (a, _)) in NAMES.iter().enumerate() {
            assert!(NAMES[..i].iter().all(|(b, _)| a != b), "{a:?}");
        }
    }
}

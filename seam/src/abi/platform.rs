//! Platform structures: convertible memory, TDMRs, the P-SEAMLDR, and the module's description of itself.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Number of CMR_INFO entries that TDH.SYS.INFO writes. Unused entries are zero.
pub const MAX_CMRS: usize = 32;
/// Maximum number of TDMRs that TDH.SYS.CONFIG accepts.
pub const MAX_TDMRS: usize = 64;
/// Number of reserved areas in a TDMR.
pub const MAX_RESERVED_PER_TDMR: usize = 16;
/// Size of a PAMT entry in bytes, the same for each page size.
pub const PAMT_ENTRY_SIZE: u64 = 16;
/// Alignment in bytes of each TDMR_INFO and of the array of their addresses.
pub const TDMR_INFO_ALIGNMENT: u64 = 512;
/// Maximum number of HKIDs, private and shared, that the module can track.
pub const MAX_HKIDS: usize = 2048;
/// Maximum number of packages that the module can track.
pub const MAX_PACKAGES: usize = 8;
/// Minimum and maximum number of 4 KiB pages of a TDCS.
pub const TDCS_PAGES: (u32, u32) = (6, 9);
/// Minimum and maximum number of 4 KiB pages of a TDVPS, TDVPR included.
pub const TDVPS_PAGES: (u32, u32) = (6, 15);

/// A convertible memory region (CMR_INFO).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CmrInfo {
    /// Start address, 4 KiB aligned.
    pub base: u64,
    /// Size in bytes, a multiple of 4 KiB; 0 in an unused entry.
    pub size: u64,
}

/// A reserved area of a TDMR.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ReservedArea {
    /// Start, relative to the TDMR's base, 4 KiB aligned.
    pub offset: u64,
    /// Size in bytes, a multiple of 4 KiB; 0 ends the list.
    pub size: u64,
}

/// The location of a PAMT.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PamtArea {
    /// Start address, 4 KiB aligned.
    pub base: u64,
    /// Size in bytes, a multiple of 4 KiB.
    pub size: u64,
}

/// A trust domain memory region (TDMR_INFO), the input of TDH.SYS.CONFIG.
///
/// Source: TDX Module ABI 1.5, TDMR_INFO.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TdmrInfo {
    /// Start address, 1 GiB aligned.
    pub base: u64,
    /// Size in bytes, a multiple of 1 GiB.
    pub size: u64,
    /// The PAMT for 1 GiB pages.
    pub pamt_1g: PamtArea,
    /// The PAMT for 2 MiB pages.
    pub pamt_2m: PamtArea,
    /// The PAMT for 4 KiB pages.
    pub pamt_4k: PamtArea,
    /// The areas that no TD may use, in ascending order.
    pub reserved: [ReservedArea; MAX_RESERVED_PER_TDMR],
}

/// A CPUID leaf with bits that the creator of a TD may configure (CPUID_CONFIG).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CpuidConfig {
    /// EAX input.
    pub leaf: u32,
    /// ECX input; all ones if the leaf has no sub-leafs.
    pub sub_leaf: u32,
    /// The configurable bits of EAX, EBX, ECX, EDX.
    pub registers: [u32; 4],
}

/// Number of CPUID_CONFIG entries that fit in a TDSYSINFO_STRUCT.
pub const MAX_CPUID_CONFIGS: usize = 37;

/// The description of the module that TDH.SYS.INFO returns (TDSYSINFO_STRUCT).
///
/// Source: TDX Module ABI 1.5, TDSYSINFO_STRUCT.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(
    missing_docs,
    reason = "the fields are those of the specification; reserved ones are zero"
)]
pub struct TdSysInfo {
    pub attributes: u32,
    pub vendor_id: u32,
    pub build_date: u32,
    pub build_num: u16,
    pub minor_version: u16,
    pub major_version: u16,
    pub sys_rd: u8,
    pub reserved_13: [u8; 13],
    pub max_tdmrs: u16,
    pub max_reserved_per_tdmr: u16,
    pub pamt_entry_size: u16,
    pub reserved_26: [u8; 10],
    pub tdcs_base_size: u16,
    pub reserved_32: [u8; 2],
    pub tdvps_base_size: u16,
    pub tdvps_xfam_dependent_size: u8,
    pub reserved_37: [u8; 9],
    pub attributes_fixed0: u64,
    pub attributes_fixed1: u64,
    pub xfam_fixed0: u64,
    pub xfam_fixed1: u64,
    pub reserved_60: [u8; 32],
    pub num_cpuid_config: u32,
    pub cpuid_configs: [CpuidConfig; MAX_CPUID_CONFIGS],
    pub reserved_3fc: [u8; 4],
}

/// The description of the P-SEAMLDR and its loaded module that SEAMLDR.INFO returns (SEAMLDR_INFO).
///
/// Source: Intel P-SEAMLDR specification, SEAMLDR_INFO.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(
    missing_docs,
    reason = "the fields are those of the specification; reserved ones are zero"
)]
pub struct SeamldrInfo {
    pub version: u32,
    pub attributes: u32,
    pub vendor_id: u32,
    pub build_date: u32,
    pub build_num: u16,
    pub minor_version: u16,
    pub major_version: u16,
    pub reserved_16: u16,
    pub acm_x2apic_id: u32,
    pub num_remaining_updates: u32,
    pub seam_valid: u64,
    pub tee_tcb_svn: [u8; 16],
    pub mrseam: [u8; 48],
    pub mrsigner: [u8; 48],
    pub seam_attributes: u64,
    pub seam_ready: u8,
    pub system_under_debug: u8,
    pub p_seamldr_ready: u8,
    pub reserved_a5: [u8; 5],
    pub features0: u64,
    pub reserved_b0: [u8; 80],
}

const _: () = {
    assert!(size_of::<CmrInfo>() == 16);
    assert!(size_of::<TdmrInfo>() == 0x140);
    assert!(size_of::<CpuidConfig>() == 24);
    assert!(size_of::<TdSysInfo>() == 1024);
    assert!(core::mem::offset_of!(TdSysInfo, num_cpuid_config) == 0x80);
    assert!(size_of::<SeamldrInfo>() == 256);
    assert!(core::mem::offset_of!(SeamldrInfo, features0) == 0xa8);
};

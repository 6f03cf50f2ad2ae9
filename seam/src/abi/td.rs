//! TD structures: creation parameters and attestation.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Attributes, ConfigFlags, Xfam};

/// Size of a SHA-384 measurement in bytes.
pub const MEASUREMENT_SIZE: usize = 48;

/// A SHA-384 measurement.
pub type Measurement = [u8; MEASUREMENT_SIZE];

/// Size of the CPUID_CONFIG area of [`TdParams`] in bytes.
pub const TD_PARAMS_CPUID_SIZE: usize = 0x300;

/// The parameters from which TDH.MNG.INIT initialises a TD (TD_PARAMS).
///
/// Source: TDX Module ABI 1.5, TD_PARAMS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(
    missing_docs,
    reason = "the fields are those of the specification; reserved ones are zero"
)]
pub struct TdParams {
    pub attributes: Attributes,
    pub xfam: Xfam,
    pub max_vcpus: u16,
    pub num_l2_vms: u8,
    pub msr_config_ctls: u8,
    pub reserved_14: [u8; 4],
    pub eptp_controls: u64,
    pub config_flags: ConfigFlags,
    pub tsc_frequency: u16,
    pub reserved_2a: [u8; 38],
    pub mrconfigid: Measurement,
    pub mrowner: Measurement,
    pub mrownerconfig: Measurement,
    pub ia32_arch_capabilities_config: u64,
    pub reserved_e8: [u8; 24],
    /// EAX, EBX, ECX, EDX for each CPUID_CONFIG entry of the module; the rest is zero.
    pub cpuid_config: [[u32; 4]; TD_PARAMS_CPUID_SIZE / 16],
}

/// The first part of a TDREPORT_STRUCT, which the MAC covers (REPORTMACSTRUCT).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(
    missing_docs,
    reason = "the fields are those of the specification; reserved ones are zero"
)]
pub struct ReportMac {
    /// Type, subtype, version, reserved.
    pub report_type: [u8; 4],
    pub reserved_04: [u8; 12],
    pub cpusvn: [u8; 16],
    pub tee_tcb_info_hash: Measurement,
    pub tee_info_hash: Measurement,
    pub report_data: [u8; 64],
    pub reserved_c0: [u8; 32],
    pub mac: [u8; 32],
}

/// The part of a report that describes the module (TEE_TCB_INFO). It is 239 bytes long, so it has no integer fields,
/// which would pad its size.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(
    missing_docs,
    reason = "the fields are those of the specification; reserved ones are zero"
)]
pub struct TeeTcbInfo {
    pub valid: [u8; 8],
    pub tee_tcb_svn: [u8; 16],
    pub mrseam: Measurement,
    pub mrsignerseam: Measurement,
    pub attributes: [u8; 8],
    pub reserved_80: [u8; 111],
}

/// The part of a report that describes the TD (TDINFO_STRUCT).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(
    missing_docs,
    reason = "the fields are those of the specification; reserved ones are zero"
)]
pub struct TdInfo {
    pub attributes: Attributes,
    pub xfam: Xfam,
    pub mrtd: Measurement,
    pub mrconfigid: Measurement,
    pub mrowner: Measurement,
    pub mrownerconfig: Measurement,
    pub rtmr: [Measurement; 4],
    pub servtd_hash: Measurement,
    pub reserved_1c0: [u8; 64],
}

/// The report that TDG.MR.REPORT writes (TDREPORT_STRUCT).
///
/// Source: TDX Module ABI 1.5, TDREPORT_STRUCT.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(
    missing_docs,
    reason = "the fields are those of the specification; reserved ones are zero"
)]
pub struct TdReport {
    pub report_mac: ReportMac,
    pub tee_tcb_info: TeeTcbInfo,
    pub reserved_1ef: [u8; 17],
    pub td_info: TdInfo,
}

const _: () = {
    assert!(size_of::<TdParams>() == 1024);
    assert!(core::mem::offset_of!(TdParams, mrconfigid) == 0x50);
    assert!(core::mem::offset_of!(TdParams, ia32_arch_capabilities_config) == 0xe0);
    assert!(core::mem::offset_of!(TdParams, cpuid_config) == 0x100);
    assert!(size_of::<ReportMac>() == 256);
    assert!(size_of::<TeeTcbInfo>() == 239);
    assert!(size_of::<TdInfo>() == 512);
    assert!(size_of::<TdReport>() == 1024);
    assert!(core::mem::offset_of!(TdReport, td_info) == 0x200);
};

//! A TD's fields: classes 0 to 2 lie in the TDR, the others in the TDCS.
//!
//! Source: TDX modules 1.5.01, 1.5.16 and 1.5.25, TDR and TDCS field table.

use seam::abi::Features0;
use seam::abi::metadata::{Field, FieldId, td};

use super::table::Presence::{Before, Between, Feature, Since};
use super::table::{NONE, R, RW, Row, part, row, rw};
use crate::Change;

/// CONFIG_FLAGS with its first id.
const FIRST_CONFIG_FLAGS: Field = Field {
    id: FieldId(0x1110_0003_0000_0016),
    ..td::CONFIG_FLAGS
};
/// TD_CTLS with its first id.
const FIRST_TD_CTLS: Field = Field {
    id: FieldId(0x1110_0003_0000_0017),
    ..td::TD_CTLS
};

#[rustfmt::skip]
/// The rows, in the order of the ids. The last three belong to one L2 VM each.
pub const ROWS: &[Row] = &[
    row(td::FATAL, 0x0000, R, R, NONE),
    row(td::NUM_TDCX, 0x0004, R, R, NONE),
    row(td::CHLDCNT, 0x0008, R, R, NONE),
    row(td::LIFECYCLE_STATE, 0x0010, R, R, NONE),
    row(td::TDCX_PA, 0x0018, R, R, NONE),
    row(td::TD_UUID, 0x0060, R, R, R),
    row(td::HKID, 0x0100, R, R, NONE),
    row(td::PKG_CONFIG_BITMAP, 0x0108, R, R, NONE),
    row(td::HANDOFF_VERSION, 0x0140, R, R, NONE),
    row(td::SEAMDB_INDEX, 0x0148, R, R, NONE),
    row(td::SEAMDB_NONCE, 0x0150, NONE, NONE, NONE).only(Before(Change::REVISED_TD_FIELDS)),
    row(td::NUM_VCPUS, 0x0000, R, R, R),
    row(td::NUM_ASSOC_VCPUS, 0x0004, R, R, NONE),
    row(td::OP_STATE, 0x0008, R, R, NONE),
    row(td::NUM_L2_VMS, 0x0010, R, R, R),
    row(td::ATTRIBUTES, 0x0080, R, R, R),
    row(td::XFAM, 0x0088, R, R, R),
    row(td::MAX_VCPUS, 0x0090, R, R, R),
    row(td::GPAW, 0x0094, R, R, R),
    row(td::EPTP, 0x0098, R, R, NONE),
    row(td::TSC_OFFSET, 0x00A8, R, R, NONE),
    row(td::TSC_MULTIPLIER, 0x00B0, R, R, NONE),
    row(td::TSC_FREQUENCY, 0x00B8, R, R, R),
    row(td::VIRTUAL_TSC, 0x00B8, NONE, NONE, NONE),
    row(td::NUM_CPUID_VALUES, 0x00B8, R, R, NONE),
    row(td::XBUFF_SIZE, 0x00DC, R, R, NONE),
    row(td::NOTIFY_ENABLES, 0x00E0, NONE, part(0x1), rw(0x1)),
    row(td::HP_LOCK_TIMEOUT, 0x00E8, RW, RW, NONE),
    row(td::VM_CTLS, 0x00F0, part(0x1), part(0x1), NONE).only(Before(Change::REVISED_TD_FIELDS)),
    row(td::VM_CTLS, 0x00F0, part(0xF), part(0xF), NONE).only(Since(Change::REVISED_TD_FIELDS)),
    row(FIRST_CONFIG_FLAGS, 0x0118, R, R, R).only(Before(Change::REVISED_METADATA)),
    row(FIRST_TD_CTLS, 0x0120, NONE, R, part(0x1)).only(Before(Change::REVISED_METADATA)),
    row(td::CONFIG_FLAGS, 0x0118, R, R, R).only(Since(Change::REVISED_METADATA)),
    row(td::TD_CTLS, 0x0120, NONE, R, rw(0x8000_0000_0000_000F)).only(Since(Change::REVISED_METADATA)),
    row(td::VIRT_MAXPA, 0x1D70, R, R, NONE).only(Feature(Features0::MAXPA_VIRT)),
    row(td::TOPOLOGY_ENUM_CONFIGURED, 0x1D71, R, R, R).only(Feature(Features0::TOPOLOGY_ENUM)),
    row(td::VE_REDUCTION_VALID, 0x1D72, R, R, R).only(Feature(Features0::VE_REDUCTION)),
    row(td::CPUID_FIXED0_BITMAP, 0x1D68, R, R, NONE).only(Feature(Features0::VE_REDUCTION)),
    row(td::FEATURE_PARAVIRT_CTLS, 0x1D60, NONE, R, rw(0xFFF)).only(Feature(Features0::VE_REDUCTION)),
    row(td::FILTERED_EVENTS_COUNT, 0x1D40, R, R, NONE).only(Feature(Features0::EVENT_FILTERING)),
    row(td::EVENT_FILTERS_NUM, 0x1D78, NONE, NONE, NONE).only(Between(Change::REVISED_METADATA, Change::REVISED_TD_FIELDS)),
    row(td::FIELD_SUPPORT_AT_INIT, 0x1D7C, R, R, NONE).only(Since(Change::REVISED_TD_FIELDS)),
    row(td::CPUID_VALID, 0x0134, NONE, R, NONE),
    row(td::CPUID4_NATIVE_VALUES, 0x1D00, NONE, R, NONE).only(Feature(Features0::VE_REDUCTION)),
    row(td::CPUID4_NATIVE_VALID, 0x1D74, NONE, NONE, NONE).only(Between(Change::REVISED_METADATA, Change::REVISED_TD_FIELDS)),
    row(td::XBUFF_OFFSETS, 0x0190, R, R, NONE),
    row(td::TD_EPOCH, 0x0200, R, R, NONE),
    row(td::REFCOUNT, 0x0208, R, R, NONE),
    row(td::MRTD, 0x0240, R, R, R),
    row(td::MRCONFIGID, 0x0270, R, R, R),
    row(td::MROWNER, 0x02A0, R, R, R),
    row(td::MROWNERCONFIG, 0x02D0, R, R, R),
    row(td::RTMR, 0x0300, NONE, R, R),
    row(td::CPUID_VALUES, 0x0800, R, R, NONE),
    row(td::VIRTUAL_IA32_ARCH_CAPABILITIES, 0x0778, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_BASIC, 0x0700, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_MISC, 0x0708, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_CR0_FIXED0, 0x0710, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_CR0_FIXED1, 0x0718, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_CR4_FIXED0, 0x0720, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_CR4_FIXED1, 0x0728, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_PROCBASED_CTLS2, 0x0730, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_EPT_VPID_CAP, 0x0738, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_TRUE_PINBASED_CTLS, 0x0740, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_TRUE_PROCBASED_CTLS, 0x0748, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_TRUE_EXIT_CTLS, 0x0750, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_TRUE_ENTRY_CTLS, 0x0758, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_VMFUNC, 0x0760, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_PROCBASED_CTLS3, 0x0768, NONE, R, NONE),
    row(td::VIRTUAL_IA32_VMX_EXIT_CTLS2, 0x0770, NONE, R, NONE),
    row(td::MIG_DEC_KEY_SET, 0x0580, R, R, NONE),
    row(td::EXPORT_COUNT, 0x0584, R, R, NONE),
    row(td::IMPORT_COUNT, 0x0588, R, R, NONE),
    row(td::MIG_EPOCH, 0x058C, R, R, NONE),
    row(td::BW_EPOCH, 0x0590, R, R, NONE),
    row(td::TOTAL_MB_COUNT, 0x0598, R, R, NONE),
    row(td::MIG_DEC_KEY, 0x05A0, NONE, R, NONE),
    row(td::MIG_DEC_WORKING_KEY, 0x05C0, NONE, R, NONE),
    row(td::MIG_ENC_KEY, 0x05E0, NONE, R, NONE),
    row(td::MIG_ENC_WORKING_KEY, 0x0600, NONE, R, NONE),
    row(td::MIG_VERSION, 0x0620, R, R, NONE),
    row(td::MIG_WORKING_VERSION, 0x0622, R, R, NONE),
    row(td::DIRTY_COUNT, 0x0628, R, R, NONE),
    row(td::MIG_COUNT, 0x0630, R, R, NONE),
    row(td::NUM_MIGS, 0x0638, R, R, NONE),
    row(td::NUM_MIGRATED_VCPUS, 0x063C, R, R, NONE),
    row(td::PRE_IMPORT_UUID, 0x0640, R, R, R),
    row(td::SERVTD_HASH, 0x0D00, R, R, R),
    row(td::SERVTD_NUM, 0x0D30, R, R, R),
    row(td::SERVTD_BINDINGS_TABLE, 0x0D90, R, R, R),
    row(td::MIGSC_LINKS, 0x5000, R, R, NONE),
    row(td::X2APIC_IDS, 0x1000, R, R, NONE).only(Feature(Features0::TOPOLOGY_ENUM)),
    row(td::MSR_BITMAPS, 0x2000, NONE, R, NONE),
    row(td::SEPT_ROOT, 0x3000, NONE, R, NONE),
    row(td::L2_SEPT_ROOT_1, 0x6000, NONE, R, NONE),
    row(td::L2_SEPT_ROOT_2, 0x7000, NONE, R, NONE),
    row(td::L2_SEPT_ROOT_3, 0x8000, NONE, R, NONE),
];

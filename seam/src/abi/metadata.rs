//! Metadata fields of the module, of a TD and of a vCPU, with ids, names and shapes. TDH.SYS.RD, TDH.MNG.RD/WR,
//! TDH.VP.RD/WR and their guest-side counterparts access them.

use core::fmt;

/// The identifier of a metadata field, of one element of it, or of a sequence of fields.
///
/// Source: TDX Module ABI 1.5, "Metadata Field Identifier" (MD_FIELD_ID).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FieldId(pub u64);

impl FieldId {
    /// "No field": the start and the end of a list.
    pub const NULL: Self = Self(u64::MAX);

    const CODE: u64 = 0xFF_FFFF;
    const CONTEXT: u64 = 7 << 52;
    const RESERVED: u64 = 0xFF << 24 | 7 << 47 | 1 << 55 | 1 << 62;

    /// Returns FIELD_CODE (bits 23:0), the field's number in its class.
    pub const fn code(self) -> u32 {
        (self.0 & Self::CODE) as u32
    }

    /// Returns the same id with another FIELD_CODE.
    pub const fn with_code(self, code: u32) -> Self {
        Self(self.0 & !Self::CODE | code as u64 & Self::CODE)
    }

    /// Returns ELEMENT_SIZE_CODE (bits 33:32): an element has 1 << code bytes.
    pub const fn element_size_code(self) -> u32 {
        (self.0 >> 32 & 3) as u32
    }

    /// Returns the size of an element in bytes: 1, 2, 4 or 8.
    pub const fn element_size(self) -> usize {
        1 << self.element_size_code()
    }

    /// Returns LAST_ELEMENT_IN_FIELD (bits 37:34), the number of elements in a field minus one.
    pub const fn last_element(self) -> u32 {
        (self.0 >> 34 & 0xF) as u32
    }

    /// Returns the same id with another LAST_ELEMENT_IN_FIELD.
    pub const fn with_last_element(self, last: u32) -> Self {
        Self(self.0 & !(0xF << 34) | (last as u64 & 0xF) << 34)
    }

    /// Returns LAST_FIELD_IN_SEQUENCE (bits 46:38), the number of fields in a sequence minus one.
    pub const fn last_field(self) -> u32 {
        (self.0 >> 38 & 0x1FF) as u32
    }

    /// Returns the same id with another LAST_FIELD_IN_SEQUENCE.
    pub const fn with_last_field(self, last: u32) -> Self {
        Self(self.0 & !(0x1FF << 38) | (last as u64 & 0x1FF) << 38)
    }

    /// Returns the increment of FIELD_CODE from one element to the next (INC_SIZE, bit 50): 1, or 2 for VMCS fields.
    pub const fn stride(self) -> u32 {
        (self.0 >> 50 & 1) as u32 + 1
    }

    /// Returns CONTEXT_CODE (bits 54:52), or `None` for an undefined code.
    pub const fn context(self) -> Option<Context> {
        match self.0 >> 52 & 7 {
            0 => Some(Context::Sys),
            1 => Some(Context::Td),
            2 => Some(Context::Vp),
            _ => None,
        }
    }

    /// Returns the same id in this context. Each leaf implies its own context and ignores that of the id.
    pub const fn in_context(self, context: Context) -> Self {
        Self(self.0 & !Self::CONTEXT | (context as u64) << 52)
    }

    /// Returns CLASS_CODE (bits 61:56), the structure within the context.
    pub const fn class(self) -> u8 {
        (self.0 >> 56 & 0x3F) as u8
    }

    /// Returns the same id in another class.
    pub const fn with_class(self, class: u8) -> Self {
        Self(self.0 & !(0x3F << 56) | (class as u64 & 0x3F) << 56)
    }

    /// Returns whether this is [`FieldId::NULL`] in any context.
    pub const fn is_null(self) -> bool {
        self.0 | Self::CONTEXT == u64::MAX
    }

    /// Returns whether all reserved bits are zero.
    pub const fn is_well_formed(self) -> bool {
        self.0 & Self::RESERVED == 0
    }

    /// Returns whether this id names a single element, as the RD and WR leafs require.
    pub const fn is_single_element(self) -> bool {
        self.is_well_formed() && self.last_element() == 0 && self.last_field() == 0
    }

    /// Returns the id of a VMCS field of a vCPU's TD VMCS, from its encoding in the SDM.
    pub const fn vmcs(encoding: u32) -> Self {
        let size = match encoding >> 13 & 3 {
            0 => 1,
            2 => 2,
            _ => 3,
        };
        Self(0x24 << 48 | size << 32 | encoding as u64)
    }

    /// Returns the id of half of a CPUID value that the TD sees: element 0 is EBX:EAX (EAX low), element 1 EDX:ECX.
    pub const fn cpuid_value(leaf: u32, sub_leaf: Option<u32>, element: u32) -> Self {
        let sub_leaf = match sub_leaf {
            Some(sub_leaf) => (sub_leaf & 0x7F) << 1,
            None => 0x1FE,
        };
        td::CPUID_VALUES
            .id
            .with_code(element | sub_leaf | (leaf & 0x7F) << 9 | leaf >> 31 << 16)
    }
}

impl fmt::Debug for FieldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// The owner of a metadata field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Context {
    /// The TDX module.
    Sys = 0,
    /// A TD: its TDR and TDCS.
    Td = 1,
    /// A vCPU: its TDVPS, TD VMCS included.
    Vp = 2,
}

/// A field, or a sequence of similar fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Id of the first element of the first field.
    pub id: FieldId,
    /// The module's name of the field.
    pub name: &'static str,
    /// Number of fields, with consecutive codes.
    pub fields: u16,
    /// Number of elements per field.
    pub elements: u16,
}

impl Field {
    /// Returns the id of element `index`, counted across all the fields.
    pub const fn element(&self, index: u32) -> FieldId {
        self.id.with_code(self.id.code() + index * self.id.stride())
    }

    /// Returns whether `id` is an element of this field. The context is ignored.
    pub const fn contains(&self, id: FieldId) -> bool {
        let first = self.id.code();
        let end = first + self.fields as u32 * self.elements as u32 * self.id.stride();
        id.class() == self.id.class() && id.code() >= first && id.code() < end
    }
}

macro_rules! fields {
    ($($name:ident = $id:literal, $fields:literal x $elements:literal;)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`.")]
            pub const $name: Field = Field {
                id: FieldId($id),
                name: stringify!($name),
                fields: $fields,
                elements: $elements,
            };
        )*

        /// All fields of this context, in the order of their ids.
        pub const ALL: &[Field] = &[$($name,)*];
    };
}

/// Fields of the module.
///
/// Source: TDX module 1.5.25, global metadata.
pub mod sys {
    use super::{Field, FieldId};

    fields! {
        NUM_PKGS = 0x0002_0000_0000, 1 x 1;
        PKG_FMS = 0x0002_0000_0001, 8 x 1;
        VENDOR_ID = 0x0800_0002_0000_0000, 1 x 1;
        BUILD_DATE = 0x8800_0002_0000_0001, 1 x 1;
        BUILD_NUM = 0x8800_0001_0000_0002, 1 x 1;
        MINOR_VERSION = 0x0800_0001_0000_0003, 1 x 1;
        MAJOR_VERSION = 0x0800_0001_0000_0004, 1 x 1;
        UPDATE_VERSION = 0x0800_0001_0000_0005, 1 x 1;
        INTERNAL_VERSION = 0x0800_0001_0000_0006, 1 x 1;
        MODULE_HV = 0x8900_0001_0000_0000, 1 x 1;
        MIN_UPDATE_HV = 0x8900_0001_0000_0001, 1 x 1;
        NO_DOWNGRADE = 0x8900_0000_0000_0002, 1 x 1;
        NUM_HANDOFF_PAGES = 0x8900_0001_0000_0003, 1 x 1;
        HANDOFF_DATA_VALID = 0x8900_0000_0000_0004, 1 x 1;
        HANDOFF_DATA_HV = 0x8900_0001_0000_0005, 1 x 1;
        HANDOFF_DATA_SIZE = 0x8900_0002_0000_0006, 1 x 1;
        SYS_ATTRIBUTES = 0x0A00_0002_0000_0000, 1 x 1;
        NUM_TDX_FEATURES = 0x0A00_0000_0000_0001, 1 x 1;
        TDX_FEATURES0 = 0x0A00_0003_0000_0008, 1 x 1;
        NUM_CMRS = 0x9000_0001_0000_0000, 1 x 1;
        CMR_BASE = 0x9000_0003_0000_0080, 32 x 1;
        CMR_SIZE = 0x9000_0003_0000_0100, 32 x 1;
        MAX_TDMRS = 0x9100_0001_0000_0008, 1 x 1;
        MAX_RESERVED_PER_TDMR = 0x9100_0001_0000_0009, 1 x 1;
        PAMT_4K_ENTRY_SIZE = 0x9100_0001_0000_0010, 1 x 1;
        PAMT_2M_ENTRY_SIZE = 0x9100_0001_0000_0011, 1 x 1;
        PAMT_1G_ENTRY_SIZE = 0x9100_0001_0000_0012, 1 x 1;
        PAMT_PAGE_BITMAP_ENTRY_BITS = 0x9100_0000_0000_0013, 1 x 1;
        MIN_DYNAMIC_PAMT_NUM_HKID_BITS = 0x9100_0000_0000_0014, 1 x 1;
        TDR_BASE_SIZE = 0x9800_0001_0000_0000, 1 x 1;
        TDCS_BASE_SIZE = 0x9800_0001_0000_0100, 1 x 1;
        TDCS_SIZE_PER_L2_VM = 0x9800_0001_0000_0101, 1 x 1;
        TDVPS_BASE_SIZE = 0x9800_0001_0000_0200, 1 x 1;
        TDVPS_SIZE_PER_L2_VM = 0x9800_0001_0000_0201, 1 x 1;
        ATTRIBUTES_FIXED0 = 0x1900_0003_0000_0000, 1 x 1;
        ATTRIBUTES_FIXED1 = 0x1900_0003_0000_0001, 1 x 1;
        XFAM_FIXED0 = 0x1900_0003_0000_0002, 1 x 1;
        XFAM_FIXED1 = 0x1900_0003_0000_0003, 1 x 1;
        NUM_CPUID_CONFIG = 0x9900_0001_0000_0004, 1 x 1;
        CONFIG_FLAGS_FIXED0 = 0x9900_0003_0000_0006, 1 x 1;
        CONFIG_FLAGS_FIXED1 = 0x9900_0003_0000_0007, 1 x 1;
        MAX_VCPUS_PER_TD = 0x9900_0001_0000_0008, 1 x 1;
        MIN_VIRT_MAXPA = 0x9900_0000_0000_0009, 1 x 1;
        MAX_EVENT_FILTERS = 0x9900_0001_0000_000A, 1 x 1;
        CPUID_CONFIG_LEAVES = 0x9900_0003_0000_0400, 32 x 1;
        CPUID_CONFIG_VALUES = 0x9900_0003_0000_0500, 32 x 2;
        IA32_ARCH_CAPABILITIES_CONFIG_MASK = 0x9900_0003_0000_0600, 1 x 1;
        NUM_ALLOWED_FMS = 0x9900_0001_0000_0800, 1 x 1;
        NUM_DISALLOWED_FMS = 0x9900_0001_0000_0801, 1 x 1;
        ALLOWED_FMS = 0x9900_0003_0000_0810, 64 x 1;
        DISALLOWED_FMS = 0x9900_0003_0000_0850, 64 x 1;
        MIG_ATTRIBUTES = 0xA000_0003_0000_0000, 1 x 1;
        MIN_EXPORT_VERSION = 0x2000_0001_0000_0001, 1 x 1;
        MAX_EXPORT_VERSION = 0x2000_0001_0000_0002, 1 x 1;
        MIN_IMPORT_VERSION = 0x2000_0001_0000_0003, 1 x 1;
        MAX_IMPORT_VERSION = 0x2000_0001_0000_0004, 1 x 1;
        MAX_MIGS = 0xA000_0001_0000_0010, 1 x 1;
        NUM_IMMUTABLE_STATE_PAGES = 0xA000_0000_0000_0020, 1 x 1;
        NUM_TD_STATE_PAGES = 0xA000_0000_0000_0021, 1 x 1;
        NUM_VP_STATE_PAGES = 0xA000_0000_0000_0022, 1 x 1;
        MAX_SERV_TDS = 0xA100_0001_0000_0000, 1 x 1;
        SERVTD_ATTR_FIXED0 = 0xA100_0003_0000_0001, 1 x 1;
        SERVTD_ATTR_FIXED1 = 0xA100_0003_0000_0002, 1 x 1;
        GUEST_L2_GPA_ATTR_MASK = 0xA200_0001_0000_0000, 1 x 1;
        VM_CTLS_FIXED0 = 0xA200_0003_0000_0001, 1 x 1;
        VM_CTLS_FIXED1 = 0xA200_0003_0000_0002, 1 x 1;
        VPCU_L2_CTLS_FIXED0 = 0xA200_0003_0000_0003, 1 x 1;
        VCPU_L2_CTLS_FIXED1 = 0xA200_0003_0000_0004, 1 x 1;
        VPCU_L2_DEBUG_CTLS_FIXED0 = 0xA200_0003_0000_0005, 1 x 1;
        VCPU_L2_DEBUG_CTLS_FIXED1 = 0xA200_0003_0000_0006, 1 x 1;
    }
}

/// Fields of a TD.
///
/// Source: TDX module 1.5.25, TDR and TDCS metadata. Releases before 1.5.05 have CONFIG_FLAGS and TD_CTLS in class
/// 0x11; no release looks at bit 63 of an id.
pub mod td {
    use super::{Field, FieldId};

    fields! {
        FATAL = 0x8010_0000_0000_0001, 1 x 1;
        NUM_TDCX = 0x8010_0002_0000_0002, 1 x 1;
        CHLDCNT = 0x8010_0003_0000_0004, 1 x 1;
        LIFECYCLE_STATE = 0x8010_0002_0000_0005, 1 x 1;
        TDCX_PA = 0x8010_0003_0000_0010, 9 x 1;
        TD_UUID = 0x8010_0003_0000_0020, 1 x 4;
        HKID = 0x8110_0001_0000_0001, 1 x 1;
        PKG_CONFIG_BITMAP = 0x8110_0003_0000_0002, 1 x 1;
        HANDOFF_VERSION = 0x8210_0001_0000_0000, 1 x 1;
        SEAMDB_INDEX = 0x8210_0003_0000_0001, 1 x 1;
        SEAMDB_NONCE = 0x8210_0003_0000_0002, 1 x 4;
        NUM_VCPUS = 0x9010_0002_0000_0001, 1 x 1;
        NUM_ASSOC_VCPUS = 0x9010_0002_0000_0002, 1 x 1;
        OP_STATE = 0x9010_0002_0000_0004, 1 x 1;
        NUM_L2_VMS = 0x9010_0001_0000_0005, 1 x 1;
        ATTRIBUTES = 0x1110_0003_0000_0000, 1 x 1;
        XFAM = 0x1110_0003_0000_0001, 1 x 1;
        MAX_VCPUS = 0x1110_0002_0000_0002, 1 x 1;
        GPAW = 0x1110_0000_0000_0003, 1 x 1;
        EPTP = 0x1110_0003_0000_0004, 1 x 1;
        TSC_OFFSET = 0x1110_0003_0000_000A, 1 x 1;
        TSC_MULTIPLIER = 0x1110_0003_0000_000B, 1 x 1;
        TSC_FREQUENCY = 0x1110_0001_0000_000C, 1 x 1;
        VIRTUAL_TSC = 0x1110_0003_0000_000D, 1 x 1;
        NUM_CPUID_VALUES = 0x9110_0001_0000_000E, 1 x 1;
        XBUFF_SIZE = 0x9110_0002_0000_000F, 1 x 1;
        NOTIFY_ENABLES = 0x9110_0003_0000_0010, 1 x 1;
        HP_LOCK_TIMEOUT = 0x9110_0003_0000_0011, 1 x 1;
        VM_CTLS = 0x9110_0003_0000_0012, 4 x 1;
        CONFIG_FLAGS = 0x9110_0003_0000_0016, 1 x 1;
        TD_CTLS = 0x9110_0003_0000_0017, 1 x 1;
        VIRT_MAXPA = 0x9110_0000_0000_0018, 1 x 1;
        TOPOLOGY_ENUM_CONFIGURED = 0x9110_0000_0000_0019, 1 x 1;
        VE_REDUCTION_VALID = 0x9110_0000_0000_001A, 1 x 1;
        CPUID_FIXED0_BITMAP = 0x9110_0003_0000_0021, 1 x 1;
        FEATURE_PARAVIRT_CTLS = 0x9110_0003_0000_0022, 1 x 1;
        FILTERED_EVENTS_COUNT = 0x9110_0003_0000_0023, 4 x 1;
        EVENT_FILTERS_NUM = 0x9110_0001_0000_0027, 1 x 1;
        FIELD_SUPPORT_AT_INIT = 0x9110_0002_0000_0028, 1 x 1;
        CPUID_VALID = 0x9110_0000_0000_0080, 80 x 1;
        CPUID4_NATIVE_VALUES = 0x9110_0002_0000_0200, 4 x 4;
        CPUID4_NATIVE_VALID = 0x9110_0000_0000_0240, 4 x 1;
        XBUFF_OFFSETS = 0x9110_0002_0000_0800, 19 x 1;
        TD_EPOCH = 0x9210_0003_0000_0000, 1 x 1;
        REFCOUNT = 0x9210_0001_0000_0001, 2 x 1;
        MRTD = 0x1310_0003_0000_0000, 1 x 6;
        MRCONFIGID = 0x1310_0003_0000_0010, 1 x 6;
        MROWNER = 0x1310_0003_0000_0018, 1 x 6;
        MROWNERCONFIG = 0x1310_0003_0000_0020, 1 x 6;
        RTMR = 0x1310_0003_0000_0040, 4 x 6;
        CPUID_VALUES = 0x9410_0003_0000_0000, 80 x 2;
        VIRTUAL_IA32_ARCH_CAPABILITIES = 0x9610_0003_0000_010A, 1 x 1;
        VIRTUAL_IA32_VMX_BASIC = 0x9610_0003_0000_0480, 1 x 1;
        VIRTUAL_IA32_VMX_MISC = 0x9610_0003_0000_0485, 1 x 1;
        VIRTUAL_IA32_VMX_CR0_FIXED0 = 0x9610_0003_0000_0486, 1 x 1;
        VIRTUAL_IA32_VMX_CR0_FIXED1 = 0x9610_0003_0000_0487, 1 x 1;
        VIRTUAL_IA32_VMX_CR4_FIXED0 = 0x9610_0003_0000_0488, 1 x 1;
        VIRTUAL_IA32_VMX_CR4_FIXED1 = 0x9610_0003_0000_0489, 1 x 1;
        VIRTUAL_IA32_VMX_PROCBASED_CTLS2 = 0x9610_0003_0000_048B, 1 x 1;
        VIRTUAL_IA32_VMX_EPT_VPID_CAP = 0x9610_0003_0000_048C, 1 x 1;
        VIRTUAL_IA32_VMX_TRUE_PINBASED_CTLS = 0x9610_0003_0000_048D, 1 x 1;
        VIRTUAL_IA32_VMX_TRUE_PROCBASED_CTLS = 0x9610_0003_0000_048E, 1 x 1;
        VIRTUAL_IA32_VMX_TRUE_EXIT_CTLS = 0x9610_0003_0000_048F, 1 x 1;
        VIRTUAL_IA32_VMX_TRUE_ENTRY_CTLS = 0x9610_0003_0000_0490, 1 x 1;
        VIRTUAL_IA32_VMX_VMFUNC = 0x9610_0003_0000_0491, 1 x 1;
        VIRTUAL_IA32_VMX_PROCBASED_CTLS3 = 0x9610_0003_0000_0492, 1 x 1;
        VIRTUAL_IA32_VMX_EXIT_CTLS2 = 0x9610_0003_0000_0493, 1 x 1;
        MIG_DEC_KEY_SET = 0x9810_0000_0000_0001, 1 x 1;
        EXPORT_COUNT = 0x9810_0002_0000_0002, 1 x 1;
        IMPORT_COUNT = 0x9810_0002_0000_0003, 1 x 1;
        MIG_EPOCH = 0x9810_0002_0000_0004, 1 x 1;
        BW_EPOCH = 0x9810_0003_0000_0005, 1 x 1;
        TOTAL_MB_COUNT = 0x9810_0003_0000_0006, 1 x 1;
        MIG_DEC_KEY = 0x9810_0003_0000_0010, 1 x 4;
        MIG_DEC_WORKING_KEY = 0x9810_0003_0000_0014, 1 x 4;
        MIG_ENC_KEY = 0x9810_0003_0000_0018, 1 x 4;
        MIG_ENC_WORKING_KEY = 0x9810_0003_0000_001C, 1 x 4;
        MIG_VERSION = 0x9810_0001_0000_0020, 1 x 1;
        MIG_WORKING_VERSION = 0x9810_0001_0000_0021, 1 x 1;
        DIRTY_COUNT = 0x9810_0003_0000_0030, 1 x 1;
        MIG_COUNT = 0x9810_0003_0000_0031, 1 x 1;
        NUM_MIGS = 0x9810_0001_0000_0032, 1 x 1;
        NUM_MIGRATED_VCPUS = 0x9810_0002_0000_0034, 1 x 1;
        PRE_IMPORT_UUID = 0x9810_0003_0000_0040, 1 x 4;
        SERVTD_HASH = 0x9910_0003_0000_0000, 1 x 6;
        SERVTD_NUM = 0x9910_0001_0000_0006, 1 x 1;
        SERVTD_BINDINGS_TABLE = 0x9910_0003_0000_0080, 1 x 16;
        MIGSC_LINKS = 0x9A10_0003_0000_0000, 512 x 1;
        X2APIC_IDS = 0x9C10_0002_0000_0000, 576 x 1;
        MSR_BITMAPS = 0x2010_0003_0000_0000, 512 x 1;
        SEPT_ROOT = 0x2110_0003_0000_0000, 512 x 1;
        L2_SEPT_ROOT_1 = 0x2510_0003_0000_0000, 512 x 1;
        L2_SEPT_ROOT_2 = 0x2910_0003_0000_0000, 512 x 1;
        L2_SEPT_ROOT_3 = 0x2D10_0003_0000_0000, 512 x 1;
    }
}

/// Fields of a vCPU outside its TD VMCS.
///
/// Source: TDX module 1.5.25, TDVPS metadata.
pub mod vp {
    use super::{Field, FieldId};

    fields! {
        VAPIC = 0x0120_0003_0000_0000, 128 x 1;
        EXIT_REASON = 0x0220_0002_0000_0000, 1 x 1;
        VALID = 0x0220_0002_0000_0001, 1 x 1;
        EXIT_QUALIFICATION = 0x0220_0003_0000_0002, 1 x 1;
        GLA = 0x0220_0003_0000_0003, 1 x 1;
        GPA = 0x0220_0003_0000_0004, 1 x 1;
        EPTP_INDEX = 0x0220_0001_0000_0005, 1 x 1;
        INSTRUCTION_LENGTH = 0x8220_0002_0000_0010, 1 x 1;
        INSTRUCTION_INFORMATION = 0x8220_0002_0000_0011, 1 x 1;
        VE_CATEGORY = 0x8220_0000_0000_0013, 1 x 1;
        INTERRUPTIBILITY_STATE = 0x8220_0002_0000_0014, 1 x 1;
        RAX = 0x1020_0003_0000_0000, 1 x 1;
        RCX = 0x1020_0003_0000_0001, 1 x 1;
        RDX = 0x1020_0003_0000_0002, 1 x 1;
        RBX = 0x1020_0003_0000_0003, 1 x 1;
        RSP_PLACEHOLDER = 0x1020_0003_0000_0004, 1 x 1;
        RBP = 0x1020_0003_0000_0005, 1 x 1;
        RSI = 0x1020_0003_0000_0006, 1 x 1;
        RDI = 0x1020_0003_0000_0007, 1 x 1;
        R8 = 0x1020_0003_0000_0008, 1 x 1;
        R9 = 0x1020_0003_0000_0009, 1 x 1;
        R10 = 0x1020_0003_0000_000A, 1 x 1;
        R11 = 0x1020_0003_0000_000B, 1 x 1;
        R12 = 0x1020_0003_0000_000C, 1 x 1;
        R13 = 0x1020_0003_0000_000D, 1 x 1;
        R14 = 0x1020_0003_0000_000E, 1 x 1;
        R15 = 0x1020_0003_0000_000F, 1 x 1;
        DR0 = 0x1120_0003_0000_0000, 1 x 1;
        DR1 = 0x1120_0003_0000_0001, 1 x 1;
        DR2 = 0x1120_0003_0000_0002, 1 x 1;
        DR3 = 0x1120_0003_0000_0003, 1 x 1;
        DR6 = 0x1120_0003_0000_0006, 1 x 1;
        XCR0 = 0x1120_0003_0000_0020, 1 x 1;
        CR2 = 0x1120_0003_0000_0028, 1 x 1;
        VCPU_STATE_DETAILS = 0x9120_0003_0000_0100, 1 x 1;
        XBUFF = 0x1220_0003_0000_0000, 1536 x 1;
        MSR_SMI_COUNT = 0x1320_0003_0000_0034, 1 x 1;
        IA32_SPEC_CTRL = 0x1320_0003_0000_0048, 1 x 1;
        IA32_UMWAIT_CONTROL = 0x1320_0003_0000_00E1, 1 x 1;
        IA32_TSX_CTRL = 0x1320_0003_0000_0122, 1 x 1;
        IA32_PERFEVTSELX = 0x1320_0003_0000_0186, 8 x 1;
        IA32_MISC_ENABLE = 0x1320_0003_0000_01A0, 1 x 1;
        MSR_OFFCORE_RSPX = 0x1320_0003_0000_01A6, 2 x 1;
        IA32_XFD = 0x1320_0003_0000_01C4, 1 x 1;
        IA32_XFD_ERR = 0x1320_0003_0000_01C5, 1 x 1;
        IA32_FIXED_CTRX = 0x1320_0003_0000_0309, 7 x 1;
        IA32_PERF_METRICS = 0x1320_0003_0000_0329, 1 x 1;
        IA32_FIXED_CTR_CTRL = 0x1320_0003_0000_038D, 1 x 1;
        IA32_PERF_GLOBAL_STATUS = 0x1320_0003_0000_038E, 1 x 1;
        IA32_PEBS_ENABLE = 0x1320_0003_0000_03F1, 1 x 1;
        MSR_PEBS_DATA_CFG = 0x1320_0003_0000_03F2, 1 x 1;
        MSR_PEBS_LD_LAT = 0x1320_0003_0000_03F6, 1 x 1;
        MSR_PEBS_FRONTEND = 0x1320_0003_0000_03F7, 1 x 1;
        IA32_A_PMCX = 0x1320_0003_0000_04C1, 8 x 1;
        IA32_DS_AREA = 0x1320_0003_0000_0600, 1 x 1;
        IA32_XSS = 0x1320_0003_0000_0DA0, 1 x 1;
        IA32_LBR_DEPTH = 0x1320_0003_0000_14CF, 1 x 1;
        IA32_UARCH_MISC_CTL = 0x1320_0003_0000_1B01, 1 x 1;
        IA32_STAR = 0x1320_0003_0000_2081, 1 x 1;
        IA32_LSTAR = 0x1320_0003_0000_2082, 1 x 1;
        IA32_FMASK = 0x1320_0003_0000_2084, 1 x 1;
        IA32_KERNEL_GS_BASE = 0x1320_0003_0000_2102, 1 x 1;
        IA32_TSC_AUX = 0x1320_0003_0000_2103, 1 x 1;
        VCPU_STATE = 0xA020_0000_0000_0000, 1 x 1;
        VCPU_INDEX = 0xA020_0002_0000_0002, 1 x 1;
        NUM_TDVPS_PAGES = 0xA020_0000_0000_0003, 1 x 1;
        ASSOC_LPID = 0xA020_0002_0000_0004, 1 x 1;
        VCPU_EPOCH = 0xA020_0003_0000_0006, 1 x 1;
        CPUID_SUPERVISOR_VE = 0xA020_0000_0000_0007, 1 x 1;
        CPUID_USER_VE = 0xA020_0000_0000_0008, 1 x 1;
        LAST_EXIT_TSC = 0xA020_0003_0000_000A, 1 x 1;
        PEND_NMI = 0x2020_0000_0000_000B, 1 x 1;
        XFAM = 0x2020_0003_0000_000C, 1 x 1;
        LAST_EPF_GPA_LIST_IDX = 0xA020_0000_0000_000D, 1 x 1;
        POSSIBLY_EPF_STEPPING = 0xA020_0000_0000_000E, 1 x 1;
        LAST_TD_EXIT = 0xA020_0000_0000_000F, 1 x 1;
        TDVPS_PAGE_PA = 0xA020_0003_0000_0010, 15 x 1;
        HP_LOCK_BUSY_START = 0xA020_0003_0000_0030, 1 x 1;
        HP_LOCK_BUSY = 0xA020_0000_0000_0031, 1 x 1;
        LAST_SEAMDB_INDEX = 0xA020_0003_0000_0032, 1 x 1;
        NMI_UNBLOCKING_DUE_TO_IRET = 0xA020_0000_0000_0040, 1 x 1;
        CURR_VM = 0xA020_0001_0000_0041, 1 x 1;
        L2_EXIT_HOST_ROUTING = 0xA020_0000_0000_0042, 1 x 1;
        VM_LAUNCHED = 0xA020_0000_0000_0044, 4 x 1;
        LP_DEPENDENT_HPA_UPDATED = 0xA020_0000_0000_0048, 4 x 1;
        MODULE_DEPENDENT_FIELDS_UPDATED = 0xA020_0000_0000_004C, 4 x 1;
        L2_CTLS = 0xA020_0003_0000_0050, 4 x 1;
        L2_DEBUG_CTLS = 0xA020_0003_0000_0054, 4 x 1;
        TSC_DEADLINE = 0xA020_0003_0000_0058, 4 x 1;
        SHADOW_TSC_DEADLINE = 0xA020_0003_0000_005C, 4 x 1;
        BASE_L2_CR0_GUEST_HOST_MASK = 0xA020_0003_0000_0080, 1 x 1;
        BASE_L2_CR0_READ_SHADOW = 0xA020_0003_0000_0081, 1 x 1;
        BASE_L2_CR4_GUEST_HOST_MASK = 0xA020_0003_0000_0082, 1 x 1;
        BASE_L2_CR4_READ_SHADOW = 0xA020_0003_0000_0083, 1 x 1;
        SHADOW_CR0_GUEST_HOST_MASK = 0xA020_0003_0000_0084, 4 x 1;
        SHADOW_CR0_READ_SHADOW = 0xA020_0003_0000_0088, 4 x 1;
        SHADOW_CR4_GUEST_HOST_MASK = 0xA020_0003_0000_008C, 4 x 1;
        SHADOW_CR4_READ_SHADOW = 0xA020_0003_0000_0090, 4 x 1;
        SHADOW_INSTRUCTION_TIMEOUT_CONTROL = 0xA020_0002_0000_0094, 4 x 1;
        SHADOW_PID_HPA = 0xA020_0003_0000_0098, 4 x 1;
        SHADOW_PINBASED_EXEC_CTLS = 0xA020_0002_0000_009C, 4 x 1;
        SHADOW_PLE_GAP = 0xA020_0002_0000_00A4, 4 x 1;
        SHADOW_PLE_WINDOW = 0xA020_0002_0000_00A8, 4 x 1;
        SHADOW_POSTED_INT_NOTIFICATION_VECTOR = 0xA020_0001_0000_00AC, 4 x 1;
        SHADOW_PROCBASED_EXEC_CTLS2 = 0xA020_0002_0000_00B0, 4 x 1;
        SHADOW_SHARED_EPTP = 0xA020_0003_0000_00B4, 4 x 1;
        L2_ENTER_GUEST_STATE_GPA = 0xA020_0003_0000_0100, 4 x 1;
        L2_ENTER_GUEST_STATE_HPA = 0xA020_0003_0000_0104, 4 x 1;
        VE_INFO_GPA = 0xA020_0003_0000_0108, 4 x 1;
        VE_INFO_HPA = 0xA020_0003_0000_010C, 4 x 1;
        L2_VAPIC_GPA = 0xA020_0003_0000_0110, 4 x 1;
        L2_VAPIC_HPA = 0xA020_0003_0000_0114, 4 x 1;
        CPUID_CONTROL = 0xA120_0000_0000_0000, 128 x 1;
        LAST_EPF_GPA_LIST = 0xA220_0003_0000_0200, 32 x 1;
        L2_VMCS_1 = 0x2420_0000_0000_0000, 4096 x 1;
        L2_MSR_BITMAPS_1 = 0x2520_0003_0000_0000, 512 x 1;
        L2_SHADOW_MSR_BITMAPS_1 = 0xA620_0003_0000_0000, 512 x 1;
        L2_VMCS_2 = 0x2C20_0000_0000_0000, 4096 x 1;
        L2_MSR_BITMAPS_2 = 0x2D20_0003_0000_0000, 512 x 1;
        L2_SHADOW_MSR_BITMAPS_2 = 0xAE20_0003_0000_0000, 512 x 1;
        L2_VMCS_3 = 0x3420_0000_0000_0000, 4096 x 1;
        L2_MSR_BITMAPS_3 = 0x3520_0003_0000_0000, 512 x 1;
        L2_SHADOW_MSR_BITMAPS_3 = 0xB620_0003_0000_0000, 512 x 1;
    }
}

/// Fields of the TD VMCS that the host writes.
///
/// Source: TDX module 1.5.01, TD VMCS metadata.
pub mod vmcs {
    use super::FieldId;

    /// Posted-interrupt notification vector, 0 to 255.
    pub const POSTED_INT_VECTOR: FieldId = FieldId::vmcs(0x0002);
    /// HPA of the posted-interrupt descriptor, 64-byte aligned.
    pub const POSTED_INT_DESCRIPTOR: FieldId = FieldId::vmcs(0x2016);
    /// HPA of the root page of the shared EPT, bits 51:12.
    pub const SHARED_EPTP: FieldId = FieldId::vmcs(0x203C);
    /// Pin-based controls: only bit 7 (process posted interrupts).
    pub const PIN_BASED: FieldId = FieldId::vmcs(0x4000);
    /// Secondary processor-based controls: only bits 31:30 (notification and bus-lock exits).
    pub const PROC_BASED2: FieldId = FieldId::vmcs(0x401E);
    /// Notification window.
    pub const NOTIFY_WINDOW: FieldId = FieldId::vmcs(0x4024);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_in_its_context_and_the_lists_are_in_order() {
        for (context, list) in [
            (Context::Sys, sys::ALL),
            (Context::Td, td::ALL),
            (Context::Vp, vp::ALL),
        ] {
            for field in list {
                assert_eq!(field.id.context(), Some(context), "{}", field.name);
                assert!(field.id.is_single_element(), "{}", field.name);
            }
            let order = |field: &Field| (field.id.class(), field.id.code());
            assert!(list.is_sorted_by_key(order));
        }
    }

    #[test]
    fn an_element_is_its_field_and_an_offset() {
        assert_eq!(sys::CPUID_CONFIG_VALUES.element(3).0, 0x9900_0003_0000_0503);
        assert!(sys::CPUID_CONFIG_VALUES.contains(sys::CPUID_CONFIG_VALUES.element(63)));
        assert!(!sys::CPUID_CONFIG_VALUES.contains(sys::CPUID_CONFIG_VALUES.element(64)));
    }

    #[test]
    fn a_vmcs_field_id_has_the_size_that_its_encoding_says() {
        assert_eq!(vmcs::POSTED_INT_VECTOR.0, 0x0024_0001_0000_0002);
        assert_eq!(vmcs::SHARED_EPTP.0, 0x0024_0003_0000_203C);
        assert_eq!(vmcs::PIN_BASED.0, 0x0024_0002_0000_4000);
    }

    #[test]
    fn a_cpuid_value_is_found_by_leaf_and_sub_leaf() {
        let of = |leaf, sub_leaf, element| FieldId::cpuid_value(leaf, sub_leaf, element).code();
        assert_eq!(of(4, Some(3), 1), 0x807);
        assert_eq!(of(0x8000_0008, None, 0), 0x1_11FE);
    }

    #[test]
    fn the_null_id_has_no_context() {
        assert!(FieldId::NULL.in_context(Context::Td).is_null());
        assert!(!sys::NUM_PKGS.id.is_null());
    }
}

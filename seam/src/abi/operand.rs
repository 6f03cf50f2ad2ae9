//! Operand ids: the operand that a status refers to (bits 31:0).

use core::fmt;

/// The operand that a status refers to: a register, a parameter, or a resource of the module.
///
/// Source: TDX Module ABI 1.5, "Operand IDs".
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand(pub u32);

macro_rules! operands {
    ($($name:ident = $id:literal;)*) => {
        impl Operand {
            $(#[doc = concat!("`OPERAND_ID_", stringify!($name), "`.")] pub const $name: Self = Self($id);)*

            /// Returns the operand's name, or `None` for an id that module 1.5 does not use.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($id => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

operands! {
    RAX = 0;
    RCX = 1;
    RDX = 2;
    RBX = 3;
    RBP = 5;
    RSI = 6;
    RDI = 7;
    R8 = 8;
    R9 = 9;
    R10 = 10;
    R11 = 11;
    R12 = 12;
    R13 = 13;
    R14 = 14;
    R15 = 15;
    ATTRIBUTES = 64;
    XFAM = 65;
    EXEC_CONTROLS = 66;
    EPTP_CONTROLS = 67;
    MAX_VCPUS = 68;
    CPUID_CONFIG = 69;
    TSC_FREQUENCY = 70;
    NUM_L2_VMS = 71;
    IA32_ARCH_CAPABILITIES_CONFIG = 72;
    PAGE = 95;
    TDMR_INFO_PA = 96;
    GPA_LIST_ENTRY = 97;
    MIG_BUFF_LIST_ENTRY = 98;
    NEW_PAGE_LIST_ENTRY = 99;
    TDR = 128;
    TDCX = 129;
    TDVPR = 130;
    REG_PAGE = 132;
    TDCS = 144;
    TDVPS = 145;
    SEPT_TREE = 146;
    SEPT_ENTRY = 147;
    RTMR = 168;
    TD_EPOCH = 169;
    L2_VAPIC_GPA = 170;
    MIGSC = 171;
    OP_STATE = 172;
    MIG = 173;
    SERVTD_BINDINGS = 174;
    METADATA_FIELD = 176;
    SYS = 184;
    TDMR = 185;
    KOT = 186;
    KET = 187;
    WBCACHE = 188;
}

impl fmt::Debug for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "operand {}", self.0),
        }
    }
}

//! MSR numbers.
//!
//! Source: Intel SDM, volume 3, section 11.12 (x2APIC), and volume 4.

/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1B;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6E0;

/// Registers of the local APIC in x2APIC mode.
#[expect(missing_docs, reason = "each is the register of that name in the SDM")]
pub mod x2apic {
    pub const ID: u32 = 0x802;
    pub const VERSION: u32 = 0x803;
    pub const TPR: u32 = 0x808;
    pub const PPR: u32 = 0x80A;
    pub const EOI: u32 = 0x80B;
    pub const LDR: u32 = 0x80D;
    pub const SVR: u32 = 0x80F;
    pub const ISR: u32 = 0x810;
    pub const IRR: u32 = 0x820;
    pub const ESR: u32 = 0x828;
    pub const LVT_CMCI: u32 = 0x82F;
    pub const ICR: u32 = 0x830;
    pub const LVT_TIMER: u32 = 0x832;
    pub const LVT_THERMAL: u32 = 0x833;
    pub const LVT_PERFORMANCE: u32 = 0x834;
    pub const LVT_LINT0: u32 = 0x835;
    pub const LVT_LINT1: u32 = 0x836;
    pub const LVT_ERROR: u32 = 0x837;
    pub const INITIAL_COUNT: u32 = 0x838;
    pub const CURRENT_COUNT: u32 = 0x839;
    pub const DIVIDE: u32 = 0x83E;
    pub const SELF_IPI: u32 = 0x83F;
}

/// IA32_FEATURE_CONTROL.
pub const FEATURE_CONTROL: u32 = 0x3A;
/// IA32_TSC_ADJUST.
pub const TSC_ADJUST: u32 = 0x3B;
/// IA32_SPEC_CTRL.
pub const SPEC_CTRL: u32 = 0x48;
/// IA32_PRED_CMD.
pub const PRED_CMD: u32 = 0x49;
/// IA32_ARCH_CAPABILITIES.
pub const ARCH_CAPABILITIES: u32 = 0x10A;

/// Registers of the machine-check architecture. Bank `n` has those from `MC0_*` on at a distance of `4 * n`, and
/// `MC0_CTL2 + n`.
#[expect(missing_docs, reason = "each is the register of that name in the SDM")]
pub mod mc {
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17A;
    pub const MCG_CTL: u32 = 0x17B;
    pub const MCG_EXT_CTL: u32 = 0x4D0;
    pub const MC0_CTL2: u32 = 0x280;
    pub const MC0_CTL: u32 = 0x400;
    pub const MC0_STATUS: u32 = 0x401;
    pub const MC0_ADDR: u32 = 0x402;
    pub const MC0_MISC: u32 = 0x403;
}

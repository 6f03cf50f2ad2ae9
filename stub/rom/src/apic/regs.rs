//! Register numbers (MSR - 0x800, memory offset / 16) and the writable bits of each.

pub const ID: u32 = 0x02;
pub const VERSION: u32 = 0x03;
pub const TPR: u32 = 0x08;
const PPR: u32 = 0x0A;
pub const EOI: u32 = 0x0B;
pub const LDR: u32 = 0x0D;
pub const DFR: u32 = 0x0E;
pub const SVR: u32 = 0x0F;
const ISR_0: u32 = 0x10;
const IRR_7: u32 = 0x27;
pub const ESR: u32 = 0x28;
pub const LVT_CMCI: u32 = 0x2F;
pub const ICR: u32 = 0x30;
pub const ICR_HIGH: u32 = 0x31;
pub const LVT_TIMER: u32 = 0x32;
const LVT_THERMAL: u32 = 0x33;
const LVT_PERFORMANCE: u32 = 0x34;
const LVT_LINT0: u32 = 0x35;
const LVT_LINT1: u32 = 0x36;
pub const LVT_ERROR: u32 = 0x37;
pub const INITIAL_COUNT: u32 = 0x38;
pub const CURRENT_COUNT: u32 = 0x39;
pub const DIVIDE: u32 = 0x3E;
pub const SELF_IPI: u32 = 0x3F;

/// Version 0x15 with seven LVT entries, without suppression of EOI broadcasts.
pub const VERSION_VALUE: u32 = 0x0006_0015;

pub const LVT_MASKED: u32 = 1 << 16;
/// The bits of the ICR's low half that software may set.
pub const ICR_LOW: u32 = 0x000C_CFFF;
pub const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;

/// Returns whether the register can be read in x2APIC mode, excluding ICR and registers that exist only in memory.
pub fn exists(register: u32) -> bool {
    matches!(
        register,
        ID | VERSION | TPR | PPR | SVR | ISR_0..=IRR_7 | ESR | LVT_CMCI
            | LVT_TIMER..=CURRENT_COUNT | DIVIDE
    )
}

/// Returns the bits that software may set in x2APIC mode; `None` for a register that can't be written.
pub fn writable(register: u32) -> Option<u64> {
    Some(match register {
        TPR | SELF_IPI => 0xFF,
        EOI | ESR => 0,
        SVR => 0x3FF,
        ICR => 0xFFFF_FFFF_0000_0000 | ICR_LOW as u64,
        LVT_CMCI | LVT_THERMAL | LVT_PERFORMANCE => 0x1_07FF,
        LVT_TIMER => 0x7_00FF,
        LVT_LINT0 | LVT_LINT1 => 0x1_A7FF,
        LVT_ERROR => 0x1_00FF,
        INITIAL_COUNT => 0xFFFF_FFFF,
        DIVIDE => 0xB,
        _ => return None,
    })
}

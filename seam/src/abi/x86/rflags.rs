//! Bits of RFLAGS.
//!
//! Source: Intel SDM, volume 1, section 3.4.3.

/// Carry.
pub const CF: u64 = 1 << 0;
/// Always set.
pub const RESERVED: u64 = 1 << 1;
/// Parity.
pub const PF: u64 = 1 << 2;
/// Auxiliary carry.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Single steps: #DB after each instruction.
pub const TF: u64 = 1 << 8;
/// Interrupts are enabled.
pub const IF: u64 = 1 << 9;
/// Overflow.
pub const OF: u64 = 1 << 11;
/// The flags that arithmetic instructions set, and VMX instructions to report their outcome.
pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

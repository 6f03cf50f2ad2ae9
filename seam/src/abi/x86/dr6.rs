//! Bits of DR6.
//!
//! Source: Intel SDM, volume 3, section 18.2.3.

/// The breakpoints of DR0 to DR3.
pub const BREAKPOINTS: u64 = 0xF;
/// Access to a debug register.
pub const ACCESS: u64 = 1 << 13;
/// Single step.
pub const SINGLE_STEP: u64 = 1 << 14;
/// Value after INIT and RESET.
pub const INITIAL: u64 = 0xFFFF_0FF0;

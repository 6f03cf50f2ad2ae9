//! Bits of IA32_EFER.
//!
//! Source: Intel SDM, volume 3, section 2.2.1.

/// SYSCALL and SYSRET are enabled.
pub const SCE: u64 = 1 << 0;
/// Long mode is enabled. It becomes active with paging.
pub const LME: u64 = 1 << 8;
/// Long mode is active. Set by the processor.
pub const LMA: u64 = 1 << 10;
/// The no-execute page attribute is enabled.
pub const NXE: u64 = 1 << 11;

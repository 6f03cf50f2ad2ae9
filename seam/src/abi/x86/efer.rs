//! Bits of IA32_EFER.
//!
//! Source: Intel SDM, volume 3, section 2.2.1.

/// SYSCALL and SYSRET work.
pub const SCE: u64 = 1 << 0;
/// Long mode is wanted: it is active with paging.
pub const LME: u64 = 1 << 8;
/// Long mode is active; the processor sets it.
pub const LMA: u64 = 1 << 10;
/// Pages may be kept from being executed.
pub const NXE: u64 = 1 << 11;

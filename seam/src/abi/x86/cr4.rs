//! Bits of CR4.
//!
//! Source: Intel SDM, volume 3, section 2.5.

/// RDTSC only in ring 0.
pub const TSD: u64 = 1 << 2;
/// Pages of 4 MiB in 32-bit paging.
pub const PSE: u64 = 1 << 4;
/// Physical address extension, which long mode requires.
pub const PAE: u64 = 1 << 5;
/// Machine checks raise #MC.
pub const MCE: u64 = 1 << 6;
/// Global pages.
pub const PGE: u64 = 1 << 7;
/// FXSAVE, FXRSTOR and SSE.
pub const OSFXSR: u64 = 1 << 9;
/// SSE errors raise #XM.
pub const OSXMMEXCPT: u64 = 1 << 10;
/// SGDT, SIDT, SLDT, SMSW and STR only in ring 0.
pub const UMIP: u64 = 1 << 11;
/// VMX instructions.
pub const VMXE: u64 = 1 << 13;
/// XSAVE and XGETBV.
pub const OSXSAVE: u64 = 1 << 18;
/// No supervisor fetches from user pages.
pub const SMEP: u64 = 1 << 20;
/// Protection keys of user pages.
pub const PKE: u64 = 1 << 22;

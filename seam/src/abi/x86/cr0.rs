//! Bits of CR0.
//!
//! Source: Intel SDM, volume 3, section 2.5.

/// Protected mode.
pub const PE: u64 = 1 << 0;
/// WAIT and FWAIT observe TS.
pub const MP: u64 = 1 << 1;
/// x87 instructions are emulated.
pub const EM: u64 = 1 << 2;
/// A task was switched: x87, SSE and AVX instructions raise #NM.
pub const TS: u64 = 1 << 3;
/// Always set.
pub const ET: u64 = 1 << 4;
/// x87 errors raise #MF.
pub const NE: u64 = 1 << 5;
/// Pages that are not writable are protected from supervisor writes.
pub const WP: u64 = 1 << 16;
/// Alignment checks, with RFLAGS.AC in ring 3.
pub const AM: u64 = 1 << 18;
/// Not write-through. Only valid with CD.
pub const NW: u64 = 1 << 29;
/// Caches are disabled.
pub const CD: u64 = 1 << 30;
/// Paging.
pub const PG: u64 = 1 << 31;

//! CPUID as a TD sees it: the table of leaves, the CPU's values, and their adaptation to a TD's configuration.

pub mod fms;
mod native;
mod table;
mod topology;
mod virt;

pub use native::{Msrs, NUM_CACHES, Native};
#[cfg(test)]
pub use table::NUM_CONFIGURABLE;
pub use table::{NUM_ROWS, Registers, Row, Table};
pub use virt::{Choices, ConfigError, Features, MIN_VIRT_MAXPA, TdConfig, virtualize};

/// EAX in [`Registers`].
pub const EAX: usize = 0;
/// EBX in [`Registers`].
pub const EBX: usize = 1;
/// ECX in [`Registers`].
pub const ECX: usize = 2;
/// EDX in [`Registers`].
pub const EDX: usize = 3;

/// The highest basic leaf of a TD. Leaves outside every range return the values of this one.
pub const LAST_BASE_LEAF: u32 = 0x23;

/// Leaves that read as zero throughout, one bit each; extended leaves from bit 52 on (CPUID_FIXED0_BITMAP).
pub const FIXED0_BITMAP: u64 = 0x0380_0005_08CF_D308;
const FIRST_EXTENDED_BIT: u32 = 52;

/// Returns whether a leaf reads as zero throughout.
pub const fn is_fixed0(leaf: u32) -> bool {
    let bit = if leaf >> 31 == 0 {
        leaf
    } else {
        (leaf & 0x7FFF_FFFF) + FIRST_EXTENDED_BIT
    };
    bit < 64 && FIXED0_BITMAP >> bit & 1 != 0
}

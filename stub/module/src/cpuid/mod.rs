//! CPUID as a TD sees it: the table of leaves, the CPU's values, and their adaptation to a TD's configuration.

pub mod fms;
mod native;
mod table;
mod virt;

pub use native::{Msrs, Native};
pub use table::{CONFIGURABLE, NUM_CONFIGURABLE, NUM_ROWS, ROWS, Registers, Row};
pub use virt::{ConfigError, Features, TdConfig, virtualize};

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

/// Returns the row of a leaf and sub-leaf, or `None` if there is none.
pub fn find(leaf: u32, sub_leaf: u32) -> Option<usize> {
    ROWS.iter()
        .position(|row| row.leaf == leaf && row.sub_leaf.is_none_or(|known| known == sub_leaf))
}

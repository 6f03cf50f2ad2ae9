//! CPUID as a TD sees it: the table of leaves, what the CPU offers, and what a TD's configuration makes of it.

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

/// The highest basic leaf that a TD has; a leaf outside every range is answered as this one.
pub const LAST_BASE_LEAF: u32 = 0x23;

/// The row that answers a leaf and sub-leaf; `None` when no row does.
pub fn find(leaf: u32, sub_leaf: u32) -> Option<usize> {
    ROWS.iter()
        .position(|row| row.leaf == leaf && row.sub_leaf.is_none_or(|known| known == sub_leaf))
}

//! The logical processors.

/// The number of the CPU that asks, from 0.
#[must_use]
pub fn number() -> u32 {
    0
}

//! A physical function that a TD has, as its model on the TD's bus reaches it.
//!
//! The host implements [`Physical`] with the machine's registers and its VT-d units. The model decides what the guest
//! sees; the host makes sure that the function reaches nothing but the TD's shared memory.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use super::Identity;
use crate::{Message, Place};

/// The parts of a physical function. They do not change while a TD has the function.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its names.
    pub identity: Identity,
    /// The memory of its base address registers, in ascending order. Registers of I/O ports are left out.
    pub memory: Vec<PhysicalBar>,
    /// Its interrupts.
    pub interrupts: Interrupts,
    /// Its capabilities beside those of interrupts: ids and offsets of the physical configuration space.
    pub capabilities: Vec<(u8, u16)>,
    /// True if the guest may reset it ([`Physical::reset`]).
    pub has_reset: bool,
}

/// The memory of a physical base address register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhysicalBar {
    /// Index of the register, or of its lower half.
    pub index: usize,
    /// True if it has 64 bits.
    pub is_wide: bool,
    /// True if reads have no effects.
    pub is_prefetchable: bool,
    /// Its host-physical addresses. The size is a power of two.
    pub range: Range<u64>,
}

/// The interrupts of a physical function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// It has no interrupts that a TD could get.
    None,
    /// MSI with this number of vectors.
    Msi(u16),
    /// MSI-X.
    Msix {
        /// Number of entries, 1 to 2,048.
        vectors: u16,
        /// Base address register and offset of the table.
        table: (usize, u64),
        /// Base address register and offset of the pending bits.
        pending: (usize, u64),
    },
}

/// A physical function that a TD has.
///
/// No method waits for another CPU, and none allocates. Each takes at most the time of a few register accesses. Calls
/// for one function do not overlap.
pub trait Physical: fmt::Debug + Send + Sync {
    /// Returns what the function has.
    fn shape(&self) -> &Shape;

    /// Reads 1, 2 or 4 bytes of the physical configuration space, aligned to their size.
    fn read(&self, offset: u16, size: u8) -> u32;

    /// Writes 1, 2 or 4 bytes of the physical configuration space, aligned to their size. The model writes registers
    /// alone that can hurt nobody but the guest.
    fn write(&self, offset: u16, size: u8, value: u32);

    /// Reads memory of a base address register, with one access of this size.
    fn load(&self, bar: usize, place: Place) -> u64;

    /// Writes memory of a base address register, with one access of this size.
    fn store(&self, bar: usize, place: Place, value: u64);

    /// Switches bus mastering. Its DMA reaches the TD's shared memory then, and nothing else.
    fn set_master(&self, is_on: bool);

    /// Switches the function's interrupts as a whole (the enable bit of its capability).
    fn set_interrupts(&self, is_on: bool);

    /// Has vector `vector` send `message` from now on, or nothing. Returns `false` if the TD has no more interrupts to
    /// get: the vector stays silent.
    fn direct(&self, vector: u16, message: Option<Message>) -> bool;

    /// Begins a reset of the function, without waiting for its end. Bus mastering and interrupts are off afterwards.
    fn reset(&self);

    /// Returns true while the function is being reset, or is lost after a reset: its registers must not be accessed.
    fn is_away(&self) -> bool;
}

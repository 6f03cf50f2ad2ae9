//! The machine as passthrough needs it.

use alloc::string::String;
use core::fmt;

use io::{Clock, Inventory, Space};
use sync::IrqLock;
use vcpu::Executor;
use vtd::{Iommu, Platform};

use crate::cpu::line::{Line, Lines};

/// The machine: its functions, its VT-d units, its registers, its CPUs. Copies are handles to the same one.
pub trait Machine: Clock + Clone + fmt::Debug + Send + Sync + 'static {
    /// Access to configuration space.
    type Space: Space;
    /// The machine beneath the VT-d units.
    type Platform: Platform + Send + Sync;

    /// Returns the configuration space.
    fn space(&self) -> &Self::Space;

    /// Returns the functions.
    fn inventory(&self) -> &IrqLock<Inventory>;

    /// Returns the VT-d units.
    ///
    /// # Errors
    /// Why there are none, as the end of a sentence.
    fn iommu(&self) -> Result<&Iommu<Self::Platform>, &'static str>;

    /// Makes device memory accessible: `bytes` bytes from physical address `pa` on. Returns the address for
    /// [`Self::load`] and [`Self::store`]. The same memory has the same address again.
    ///
    /// # Errors
    /// A sentence: there is RAM, or no room.
    fn window(&self, pa: u64, bytes: u64) -> Result<u64, String>;

    /// Reads device memory with one access of 1, 2, 4 or 8 bytes, aligned to its size.
    fn load(&self, at: u64, size: u8) -> u64;

    /// Writes device memory with one access of 1, 2, 4 or 8 bytes, aligned to its size.
    fn store(&self, at: u64, size: u8, value: u64);

    /// Returns the lines.
    fn lines(&self) -> &Lines;

    /// Has the calling CPU end the rests of its lines after so many microseconds. It is called in interrupt handlers.
    fn rest(&self, us: u64);

    /// Waits until no interrupt of these lines, which nobody can raise any more, is pending or being served.
    ///
    /// # Errors
    /// A sentence: a CPU did not answer.
    fn drain(&self, lines: &[Line]) -> Result<(), String>;

    /// Returns what runs vCPUs.
    fn executor(&self) -> Option<&dyn Executor>;

    /// Has the loop of the bootstrap CPU serve the functions soon.
    fn wake(&self);
}

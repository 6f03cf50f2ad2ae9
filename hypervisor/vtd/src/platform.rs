//! The machine as the driver needs it.

use alloc::string::String;

/// The registers of one unit.
pub trait Registers {
    /// Reads the 32-bit register at `offset` bytes.
    fn read32(&self, offset: u32) -> u32;
    /// Writes the 32-bit register at `offset`.
    fn write32(&self, offset: u32, value: u32);
    /// Reads the 64-bit register at `offset`.
    fn read64(&self, offset: u32) -> u64;
    /// Writes the 64-bit register at `offset`.
    fn write64(&self, offset: u32, value: u64);
}

/// Memory that units read, and the clock. A value is a handle to the machine, and cheap to clone.
pub trait Platform: Clone {
    /// The registers of a unit.
    type Registers: Registers;

    /// Makes `bytes` bytes of a unit's registers from physical address `base` on accessible.
    ///
    /// # Errors
    /// The reason why they are not: RAM is there, or no such address exists.
    fn registers(&self, base: u64, bytes: u64) -> Result<Self::Registers, String>;

    /// Takes a zeroed block of `4096 << order` bytes, aligned to its size. No cache has a dirty line of it for a unit
    /// that reads memory without snooping caches.
    fn take(&self, order: u32) -> Option<u64>;

    /// Frees a block that [`Self::take`] returned.
    fn give(&self, pa: u64, order: u32);

    /// Loads 8 bytes of a taken block.
    fn load(&self, pa: u64) -> u64;

    /// Stores 8 bytes to a taken block in one access, after all stores before it.
    fn store(&self, pa: u64, value: u64);

    /// Writes the cache lines of `bytes` bytes from `pa` on back to memory.
    fn write_back(&self, pa: u64, bytes: u64);

    /// Returns a clock in microseconds.
    fn now_us(&self) -> u64;

    /// Lets some time pass between two looks at a register.
    fn relax(&self);
}

//! The configuration space of a function: registers, the bits of them that the guest may write, base address registers
//! and capabilities.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6.

use core::ops::Range;

/// Bytes of configuration space. Functions here have no extended capabilities.
pub const BYTES: usize = 256;
/// Number of base address registers.
pub const BARS: usize = 6;

const VENDOR: usize = 0x00;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION_AND_CLASS: usize = 0x08;
const FIRST_BAR: usize = 0x10;
const SUBSYSTEM: usize = 0x2C;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3C;

/// COMMAND: the function answers at its memory; it may access memory itself; it may not assert its interrupt line.
const MEMORY: u16 = 1 << 1;
const MASTER: u16 = 1 << 2;
const NO_LINE: u16 = 1 << 10;
/// STATUS: there are capabilities.
const HAS_CAPABILITIES: u32 = 1 << 4;
/// Base address register: 64 bits wide; prefetchable.
const WIDE: u32 = 2 << 1;
const PREFETCHABLE: u32 = 1 << 3;
/// The smallest memory of a base address register, and of a function of the host's own: a page, so that a page belongs
/// to one function.
const LEAST: u64 = 16;
const LEAST_OWN: u64 = 4096;
/// The largest memory of a base address register of 32 bits.
const MOST_NARROW: u64 = 1 << 31;

/// The names of a function.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass and programming interface, in 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem's vendor in the low half, its id in the high half.
    pub subsystem: u32,
}

/// A capability: its id and the bytes behind the two that every capability has.
#[derive(Clone, Copy, Debug)]
pub struct Capability<'a> {
    /// The capability's id.
    pub id: u8,
    /// Its registers from byte 2 on.
    pub registers: &'a [u8],
    /// The bits of them that the guest may write; those beyond the end are read-only.
    pub writable: &'a [u8],
}

/// Memory of a base address register.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// Size in bytes, a power of two.
    pub bytes: u64,
    /// True if the address has 64 bits, and two registers.
    pub is_wide: bool,
    /// True if reads have no effects.
    pub is_prefetchable: bool,
}

/// A configuration space.
#[derive(Clone, Debug)]
pub struct Config {
    registers: [u8; BYTES],
    /// The bits that the guest may write.
    writable: [u8; BYTES],
    /// Sizes of the memory of the base address registers in bytes; zero if there is none.
    bars: [u64; BARS],
    /// The byte that links to the next capability, and the first free byte.
    link: usize,
    free: usize,
}

impl Config {
    /// Creates the space of a function without memory and capabilities. The guest can switch its decoding and its bus
    /// mastering.
    #[must_use]
    pub fn of(identity: Identity) -> Self {
        let empty = Self {
            registers: [0; BYTES],
            writable: [0; BYTES],
            bars: [0; BARS],
            link: CAPABILITIES,
            free: 0x40,
        };
        let id = u32::from(identity.device) << 16 | u32::from(identity.vendor);
        let class = identity.class << 8 | u32::from(identity.revision);
        empty
            .with(VENDOR, id)
            .with(REVISION_AND_CLASS, class)
            .with(SUBSYSTEM, identity.subsystem)
            .with_writable(COMMAND, &(MEMORY | MASTER | NO_LINE).to_le_bytes())
            .with_writable(INTERRUPT_LINE, &[0xFF])
    }

    /// Sets a register of four bytes.
    #[must_use]
    pub const fn with(mut self, register: usize, value: u32) -> Self {
        let bytes = value.to_le_bytes();
        let mut at = 0;
        while at < bytes.len() {
            self.registers[register + at] = bytes[at];
            at += 1;
        }
        self
    }

    /// Lets the guest write these bits of the registers from `first` on.
    #[must_use]
    pub fn with_writable(mut self, first: usize, bits: &[u8]) -> Self {
        self.writable[first..first + bits.len()].copy_from_slice(bits);
        self
    }

    /// Lets the guest write no bit of `bytes` registers from `first` on.
    #[must_use]
    pub fn with_fixed(mut self, first: usize, bytes: usize) -> Self {
        self.writable[first..first + bytes].fill(0);
        self
    }

    /// Adds memory of `bytes` bytes, a power of two and at least a page, at a 64-bit base address register. The next
    /// register holds the address's upper half.
    ///
    /// # Panics
    /// The size is none that a register can have, or one of both registers does not exist or is in use.
    #[must_use]
    pub fn with_memory(self, bar: usize, bytes: u64, is_prefetchable: bool) -> Self {
        assert!(bytes >= LEAST_OWN, "{bytes} bytes");
        let memory = Bar {
            bytes,
            is_wide: true,
            is_prefetchable,
        };
        assert!(self.has_room_for(bar, memory), "{memory:?} at {bar}");
        self.with_bar(bar, memory)
    }

    /// Returns whether this memory can be that of base address register `bar`.
    #[must_use]
    pub fn has_room_for(&self, bar: usize, memory: Bar) -> bool {
        let Bar { bytes, is_wide, .. } = memory;
        let registers = bar..bar + 1 + usize::from(is_wide);
        bytes.is_power_of_two()
            && bytes >= LEAST
            && (is_wide || bytes <= MOST_NARROW)
            && registers.end <= BARS
            && self.bars[registers].iter().all(|bytes| *bytes == 0)
            && (bar == 0 || self.bars[bar - 1] == 0 || !self.is_wide(bar - 1))
    }

    /// Adds memory for which there is room.
    #[must_use]
    pub fn with_bar(mut self, bar: usize, memory: Bar) -> Self {
        self.bars[bar] = memory.bytes;
        let wide = if memory.is_wide { WIDE } else { 0 };
        let prefetchable = if memory.is_prefetchable {
            PREFETCHABLE
        } else {
            0
        };
        let register = FIRST_BAR + 4 * bar;
        let writable = (!(memory.bytes - 1)).to_le_bytes();
        let bytes = if memory.is_wide { 8 } else { 4 };
        self.with(register, wide | prefetchable)
            .with_writable(register, &writable[..bytes])
    }

    fn is_wide(&self, bar: usize) -> bool {
        u32::from(self.registers[FIRST_BAR + 4 * bar]) & WIDE != 0
    }

    /// Adds a capability. Returns the offset of its first register as well.
    ///
    /// # Panics
    /// There is no room for it.
    #[must_use]
    pub fn with_capability(self, capability: Capability<'_>) -> (Self, usize) {
        let start = self.free;
        (self.with_capability_at(start, capability), start)
    }

    /// Adds a capability behind those that there are.
    ///
    /// # Panics
    /// It reaches beyond the end.
    #[must_use]
    pub fn with_capability_at(mut self, start: usize, capability: Capability<'_>) -> Self {
        let body = start + 2..start + 2 + capability.registers.len();
        self.registers[body.clone()].copy_from_slice(capability.registers);
        self.registers[start] = capability.id;
        self.registers[self.link] = start as u8;
        (self.link, self.free) = (start + 1, body.end.next_multiple_of(4));
        let status = self.read(COMMAND, 4) as u32 | (HAS_CAPABILITIES << (8 * (STATUS - COMMAND)));
        self.with(COMMAND, status)
            .with_writable(body.start, capability.writable)
    }

    /// Returns the registers from `at` on; `size` is 1 to 8 bytes.
    ///
    /// # Panics
    /// The access reaches beyond the end.
    #[must_use]
    pub fn read(&self, at: usize, size: usize) -> u64 {
        let bytes = self.registers[at..at + size].iter().rev();
        bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Writes what the guest may write of the registers from `at` on.
    ///
    /// # Panics
    /// The access reaches beyond the end.
    pub fn write(&mut self, at: usize, size: usize, value: u64) {
        for (register, byte) in (at..at + size).zip(value.to_le_bytes()) {
            let (kept, mask) = (&mut self.registers[register], self.writable[register]);
            *kept = *kept & !mask | byte & mask;
        }
    }

    /// Returns true while the function may access memory.
    #[must_use]
    pub fn is_master(&self) -> bool {
        self.command() & MASTER != 0
    }

    /// Returns the sizes of the memory of the base address registers in bytes.
    pub(super) const fn bar_bytes(&self) -> [u64; BARS] {
        self.bars
    }

    /// Returns the addresses at which the memory of a base address register answers, if it does.
    #[must_use]
    pub fn memory(&self, bar: usize) -> Option<Range<u64>> {
        let is_on = self.command() & MEMORY != 0;
        is_on.then(|| self.claimed(bar)).flatten()
    }

    /// Returns the addresses in a base address register, whether the function answers there or not.
    #[must_use]
    pub fn claimed(&self, bar: usize) -> Option<Range<u64>> {
        let bytes = self.bars[bar];
        if bytes == 0 {
            return None;
        }
        let size = if self.is_wide(bar) { 8 } else { 4 };
        let start = self.read(FIRST_BAR + 4 * bar, size) & !(bytes - 1);
        let end = start.checked_add(bytes)?;
        (start != 0).then_some(start..end)
    }

    fn command(&self) -> u16 {
        self.read(COMMAND, 2) as u16
    }
}

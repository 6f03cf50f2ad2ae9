//! Interrupt remapping: the table of entries, and how interrupts name them.
//!
//! Every interrupt has an entry of its own, which its source alone may raise. An entry is changed while it is not
//! present, so that no unit reads half of it.
//!
//! Source: VT-d specification, sections 5.1 (Interrupt Remapping) and 9.10 (Interrupt Remapping Table Entry).

use alloc::vec::Vec;

use crate::{Error, Platform, Source, table::Memory, unit::InterruptTable};

/// Number of entries as a power of two: 64 KiB of table.
const ORDER: u32 = 12;
/// Order of the table's block: entries have 16 bytes.
const BLOCK_ORDER: u32 = ORDER + 4 - 12;
const ENTRY_BYTES: u64 = 16;
const PRESENT: u64 = 1;
const LEVEL: u64 = 1 << 4;
/// IM: the interrupt is posted.
const POSTED: u64 = 1 << 15;
/// Alignment of a descriptor.
const DESCRIPTOR: u64 = 64;
/// SVT: the whole requester id must be the entry's.
const SOURCE_IS_CHECKED: u64 = 1 << 18;

/// The destination of an interrupt, which is fixed and physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The vector.
    pub vector: u8,
    /// The CPU's APIC id.
    pub destination: u32,
    /// True if the interrupt is level-triggered.
    pub is_level: bool,
}

/// A posted interrupt: the unit notes its vector in a descriptor of a vCPU, and tells the CPU that the descriptor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posting {
    /// The vector in the guest.
    pub vector: u8,
    /// The physical address of the descriptor, a multiple of 64.
    pub descriptor: u64,
}

/// An entry of the table, by its index. Only [`Iommu::route`](crate::Iommu::route) makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Handle(pub(crate) u16);

impl Handle {
    /// Returns the entry's index.
    #[must_use]
    pub const fn index(self) -> u16 {
        self.0
    }

    /// Returns the address and the data of a message-signalled interrupt in remappable format.
    #[must_use]
    pub const fn message(self) -> (u64, u32) {
        const REMAPPABLE: u64 = 1 << 4;
        let (low, high) = ((self.0 & 0x7FFF) as u64, (self.0 >> 15) as u64);
        (0xFEE0_0000 | low << 5 | REMAPPABLE | high << 2, 0)
    }

    /// Returns an I/O APIC's redirection entry in remappable format, lower half first. It is not masked. `vector` is
    /// the route's, which the I/O APIC compares with ends of interrupts.
    #[must_use]
    pub const fn redirection(self, route: &Route, is_active_low: bool) -> [u32; 2] {
        const REMAPPABLE: u32 = 1 << 16;
        let (low, high) = ((self.0 & 0x7FFF) as u32, (self.0 >> 15) as u32);
        let flags = (is_active_low as u32) << 13 | (route.is_level as u32) << 15;
        [
            route.vector as u32 | high << 11 | flags,
            low << 17 | REMAPPABLE,
        ]
    }

    /// Returns true if the upper half of a redirection entry is in remappable format.
    #[must_use]
    pub const fn is_remappable(upper: u32) -> bool {
        upper >> 16 & 1 != 0
    }
}

/// The table, which all units share.
#[derive(Debug)]
pub(crate) struct Table<P> {
    memory: Memory<P>,
    pa: u64,
    is_extended: bool,
    used: Vec<bool>,
}

impl<P: Platform> Table<P> {
    /// Makes an empty table.
    pub fn new(memory: Memory<P>, is_extended: bool) -> Result<Self, Error> {
        let pa = memory.take(BLOCK_ORDER).ok_or(Error::NoMemory)?;
        Ok(Self {
            memory,
            pa,
            is_extended,
            used: alloc::vec![false; 1 << ORDER],
        })
    }

    /// Returns the table as units need it.
    pub fn for_units(&self) -> InterruptTable {
        InterruptTable {
            pa: self.pa,
            order: ORDER,
            is_extended: self.is_extended,
        }
    }

    /// Returns true if destinations have 32 bits.
    pub fn is_extended(&self) -> bool {
        self.is_extended
    }

    /// Returns the number of entries in use.
    pub fn used(&self) -> usize {
        self.used.iter().filter(|used| **used).count()
    }

    /// Returns the indices of entries.
    pub fn capacity(&self) -> usize {
        self.used.len()
    }

    /// Takes an entry, and leaves it not present.
    pub fn take(&mut self) -> Result<Handle, Error> {
        let index = self.used.iter().position(|used| !used);
        let index = index.ok_or(Error::NoEntry)?;
        self.used[index] = true;
        Ok(Handle(index as u16))
    }

    /// Gives an entry back. It is not present, and no unit caches it.
    pub fn give(&mut self, handle: Handle) {
        self.used[usize::from(handle.0)] = false;
    }

    /// Checks that an entry is in use.
    pub fn check(&self, handle: Handle) -> Result<(), Error> {
        match self.used.get(usize::from(handle.0)) {
            Some(true) => Ok(()),
            _ => Err(Error::NotRouted(handle.0)),
        }
    }

    /// Encodes an entry: lower half, upper half.
    pub fn encode(&self, source: Source, route: &Route) -> Result<[u64; 2], Error> {
        let destination = route.destination;
        // Without extended mode, an id has 8 bits, in bits 15:8 of the field.
        let field = match (self.is_extended, destination) {
            (true, _) => destination,
            (false, 0..=0xFE) => destination << 8,
            (false, _) => return Err(Error::Destination(destination)),
        };
        let level = if route.is_level { LEVEL } else { 0 };
        let low = u64::from(field) << 32 | u64::from(route.vector) << 16 | level | PRESENT;
        Ok([low, SOURCE_IS_CHECKED | u64::from(source.0)])
    }

    /// Makes an entry present. It is not.
    pub fn set(&self, handle: Handle, entry: [u64; 2]) {
        let at = self.at(handle);
        self.memory.store(at + 8, entry[1]);
        self.memory.store(at, entry[0]);
    }

    /// Makes an entry not present.
    pub fn clear(&self, handle: Handle) {
        self.memory.store(self.at(handle), 0);
    }

    /// Returns the source of an entry.
    pub fn source(&self, handle: Handle) -> Source {
        Source(self.memory.load(self.at(handle) + 8) as u16)
    }

    fn at(&self, handle: Handle) -> u64 {
        self.pa + u64::from(handle.0) * ENTRY_BYTES
    }
}

/// Encodes an entry for posted interrupts. They are not urgent.
pub(crate) fn posted(source: Source, posting: &Posting) -> Result<[u64; 2], Error> {
    let Posting { vector, descriptor } = *posting;
    if !descriptor.is_multiple_of(DESCRIPTOR) {
        return Err(Error::Range(descriptor, DESCRIPTOR));
    }
    // Bits 31:6 of the address are in bits 63:38, bits 63:32 in the upper half's.
    let low = descriptor << 32 | u64::from(vector) << 16 | POSTED | PRESENT;
    let high = descriptor >> 32 << 32 | SOURCE_IS_CHECKED | u64::from(source.0);
    Ok([low, high])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_encoded_as_the_specification_says() {
        assert_eq!(Handle(0x8003).message(), (0xFEE0_0074, 0));
        let route = Route {
            vector: 0x41,
            destination: 0,
            is_level: true,
        };
        assert_eq!(
            Handle(0x8003).redirection(&route, true),
            [0xA841, 0x0007_0000]
        );
        assert!(Handle::is_remappable(0x0007_0000));
    }

    #[test]
    fn a_descriptor_above_4_gib_is_in_two_parts() {
        let posting = Posting {
            vector: 0x83,
            descriptor: 0x12_3456_7FC0,
        };
        let entry = posted(Source(0x0108), &posting);
        assert_eq!(entry, Ok([0x3456_7FC0_0083_8001, 0x12_0004_0108]));
    }
}

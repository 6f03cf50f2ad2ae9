//! Base address registers and their sizes.

use alloc::vec::Vec;

use crate::{
    Address, Defect, Space,
    space::register::{BASE, COMMAND, IO_SPACE, MEMORY_SPACE},
};

/// The kind of addresses that a base address register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere. The register takes two places.
    Memory64,
}

/// A base address register that is implemented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its place in the header, 0 to 5.
    pub index: u8,
    /// The kind of its addresses.
    pub kind: BarKind,
    /// True if reads of the memory have no side effect.
    pub prefetchable: bool,
    /// The first address; 0 if none was assigned.
    pub address: u64,
    /// Size in bytes, a power of two; `None` if it was not measured.
    pub size: Option<u64>,
}

impl Bar {
    /// Returns true if the register's addresses include `address`. A register of unknown size includes its first
    /// address only.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        let size = self.size.unwrap_or(1);
        self.address != 0
            && address
                .checked_sub(self.address)
                .is_some_and(|offset| offset < size)
    }
}

/// The base address registers of a header, or of the virtual functions of a capability.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub at: Address,
    /// The offset of the first register.
    pub first: u16,
    /// Number of registers of 32 bits.
    pub count: u8,
}

impl Place {
    /// Returns the registers of a header with `count` of them.
    pub fn header(at: Address, count: u8) -> Self {
        Self {
            at,
            first: BASE,
            count,
        }
    }

    fn offset(self, index: u8) -> u16 {
        self.first + u16::from(index) * 4
    }
}

/// Reads the registers that hold an address, without writing to any. One that holds none can't be told from one that
/// is not implemented; [`measure`] finds it.
pub(crate) fn read(space: &impl Space, place: Place) -> Vec<Bar> {
    all(place, |offset| space.read(place.at, offset))
        .filter(|(bar, _)| bar.address != 0)
        .map(|(bar, _)| bar)
        .collect()
}

/// Runs `work` while the function decodes neither memory nor I/O ports.
pub(crate) fn undecoded<R>(space: &impl Space, at: Address, work: impl FnOnce() -> R) -> R {
    let command = space.read16(at, COMMAND);
    space.write16(at, COMMAND, command & !(MEMORY_SPACE | IO_SPACE));
    let result = work();
    space.write16(at, COMMAND, command);
    result
}

/// Measures the registers, which must not be decoded meanwhile: each is written with ones and restored. Adds to
/// `defects` what makes no sense; such a register is left out.
pub(crate) fn measure(space: &impl Space, place: Place, defects: &mut Vec<Defect>) -> Vec<Bar> {
    let Place { at, .. } = place;
    let before: Vec<u32> = (0..place.count)
        .map(|index| space.read(at, place.offset(index)))
        .collect();
    let mut found = Vec::new();
    let registers = all(place, |offset| {
        before[usize::from((offset - place.first) / 4)]
    });
    for (mut bar, width) in registers {
        let indices = bar.index..bar.index + width;
        for index in indices.clone() {
            space.write(at, place.offset(index), u32::MAX);
        }
        let mask = indices.clone().rev().fold(0, |mask, index| {
            mask << 32 | u64::from(space.read(at, place.offset(index)))
        });
        for index in indices.clone() {
            space.write(at, place.offset(index), before[usize::from(index)]);
        }
        let restored = indices
            .clone()
            .all(|index| space.read(at, place.offset(index)) == before[usize::from(index)]);
        if !restored {
            defects.push(Defect::Bar(bar.index));
        }
        match size_of(mask, bar.kind) {
            Ok(None) => {}
            Ok(size) => {
                bar.size = size;
                found.push(bar);
            }
            Err(()) => defects.push(Defect::Bar(bar.index)),
        }
    }
    found
}

/// Returns the size that a register reports after it was written with ones; `None` if it is not implemented.
fn size_of(mask: u64, kind: BarKind) -> Result<Option<u64>, ()> {
    let (writable, ones) = match kind {
        // Bits 31:16 may be fixed to zero, since x86 has 16 bits of port addresses.
        BarKind::Io if mask & 0xFFFF_0000 == 0 => (mask & 0xFFFC, !0xFFFF),
        BarKind::Io => (mask & 0xFFFF_FFFC, !0xFFFF_FFFF),
        BarKind::Memory32 => (mask & 0xFFFF_FFF0, !0xFFFF_FFFF),
        BarKind::Memory64 => (mask & !0xF, 0),
    };
    if writable == 0 {
        return Ok(None);
    }
    let size = !(writable | ones) + 1;
    if size.is_power_of_two() {
        Ok(Some(size))
    } else {
        Err(())
    }
}

/// Decodes each register, implemented or not, with the number of places that it takes.
fn all(place: Place, read: impl Fn(u16) -> u32) -> impl Iterator<Item = (Bar, u8)> {
    let mut next = 0;
    core::iter::from_fn(move || {
        let index = next;
        if index >= place.count {
            return None;
        }
        let low = read(place.offset(index));
        let (kind, mask) = match (low & 1, low >> 1 & 3) {
            (1, _) => (BarKind::Io, !3),
            (_, 2) if index + 1 < place.count => (BarKind::Memory64, !0xF),
            _ => (BarKind::Memory32, !0xF),
        };
        let width = if kind == BarKind::Memory64 { 2 } else { 1 };
        next += width;
        let high = match width {
            2 => u64::from(read(place.offset(index + 1))),
            _ => 0,
        };
        let bar = Bar {
            index,
            kind,
            prefetchable: kind != BarKind::Io && low & 1 << 3 != 0,
            address: high << 32 | u64::from(low & mask),
            size: None,
        };
        Some((bar, width))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two_or_refused() {
        assert_eq!(size_of(0xFFFF_0000, BarKind::Memory32), Ok(Some(0x1_0000)));
        assert_eq!(
            size_of(0xFFFF_FFFF_FFF0_000C, BarKind::Memory64),
            Ok(Some(0x10_0000))
        );
        assert_eq!(
            size_of(0xFFFF_FFF0_0000_000C, BarKind::Memory64),
            Ok(Some(0x10_0000_0000))
        );
        assert_eq!(
            size_of(0x8000_0000_0000_0004, BarKind::Memory64),
            Ok(Some(1 << 63))
        );
        assert_eq!(size_of(0xFFE1, BarKind::Io), Ok(Some(32)));
        assert_eq!(size_of(0xFFFF_FFE1, BarKind::Io), Ok(Some(32)));
        assert_eq!(size_of(0, BarKind::Memory32), Ok(None));
        assert_eq!(size_of(0x1234_5670, BarKind::Memory32), Err(()));
        assert_eq!(
            size_of(0xFFFF_FFFF_0000_0004, BarKind::Memory64),
            Ok(Some(1 << 32))
        );
        // The upper half is not writable.
        assert_eq!(size_of(0xFFFF_0004, BarKind::Memory64), Err(()));
    }
}

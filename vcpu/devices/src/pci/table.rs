//! A table of MSI-X: the messages of a function's vectors, as the guest writes them.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8.2.

use alloc::{boxed::Box, vec};

use crate::{Message, Place, open_bus};

/// Bytes of an entry of the table.
pub const ENTRY: u64 = 16;
/// Vector control: the entry is masked.
pub const MASKED: u32 = 1 << 0;

/// An entry of the table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// The table.
#[derive(Debug)]
pub struct Table(Box<[Entry]>);

impl Table {
    /// Creates a table, all of whose entries are masked.
    pub fn new(vectors: u16) -> Self {
        let reset = Entry {
            address: 0,
            data: 0,
            control: MASKED,
        };
        Self(vec![reset; vectors.into()].into())
    }

    /// Masks and clears all entries.
    pub fn reset(&mut self) {
        self.0.fill(Entry {
            address: 0,
            data: 0,
            control: MASKED,
        });
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether a vector is masked.
    pub fn is_masked(&self, vector: usize) -> bool {
        self.0[vector].control & MASKED != 0
    }

    /// Returns the message of a vector. An entry that is no valid message sends none.
    pub fn message(&self, vector: usize) -> Option<Message> {
        let entry = &self.0[vector];
        Message::of_write(entry.address, entry.data)
    }

    /// Reads the table. Accesses are aligned, of four or eight bytes; others read as all ones.
    pub fn load(&self, place: Place) -> u64 {
        by_double_words(place, |offset| self.double_word(offset))
    }

    /// Writes the table. Accesses are aligned, of four or eight bytes; others are ignored.
    pub fn store(&mut self, place: Place, value: u64) {
        match place.size {
            4 if place.offset.is_multiple_of(4) => self.set_double_word(place.offset, value as u32),
            8 if place.offset.is_multiple_of(8) => {
                self.set_double_word(place.offset, value as u32);
                self.set_double_word(place.offset + 4, (value >> 32) as u32);
            }
            _ => {}
        }
    }

    /// Returns a double word of the table, zero beyond its end.
    pub fn double_word(&self, offset: u64) -> u32 {
        let Some(entry) = self.0.get((offset / ENTRY) as usize) else {
            return 0;
        };
        match offset % ENTRY {
            0 => entry.address as u32,
            4 => (entry.address >> 32) as u32,
            8 => entry.data,
            _ => entry.control,
        }
    }

    fn set_double_word(&mut self, offset: u64, value: u32) {
        let Some(entry) = self.0.get_mut((offset / ENTRY) as usize) else {
            return;
        };
        let wide = u64::from(value);
        match offset % ENTRY {
            0 => entry.address = entry.address & !0xFFFF_FFFF | wide & !3,
            4 => entry.address = entry.address & 0xFFFF_FFFF | wide << 32,
            8 => entry.data = value,
            _ => entry.control = value & MASKED,
        }
    }
}

/// Reads double words. Accesses are aligned, of four or eight bytes; others read as all ones.
pub fn by_double_words(place: Place, read: impl Fn(u64) -> u32) -> u64 {
    match place.size {
        4 if place.offset.is_multiple_of(4) => read(place.offset).into(),
        8 if place.offset.is_multiple_of(8) => {
            let [low, high] = [0, 4].map(|more| read(place.offset + more));
            u64::from(high) << 32 | u64::from(low)
        }
        size => open_bus(size),
    }
}

//! MSI-X: the table of a function's interrupts, in memory of a base address register, and its capability.
//!
//! An interrupt that is raised stays pending until it may be sent, so masking loses none.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8.2.

use alloc::{boxed::Box, vec};

use super::table::{self, ENTRY, Table};
use super::{Capability, Config};
use crate::{Effect, Message, Place};

/// Message control, as an offset in the capability: MSI-X is on; every entry is masked.
const CONTROL: usize = 2;
const ON: u16 = 1 << 15;
const ALL_MASKED: u16 = 1 << 14;
/// The capability's id.
const ID: u8 = 0x11;

/// The interrupts of a function.
#[derive(Debug)]
pub struct Msix {
    table: Table,
    pending: Box<[bool]>,
    /// Offset of the capability.
    at: usize,
    control: u16,
}

impl Msix {
    /// Bytes from the start of the table to the array of pending bits: beyond the largest table.
    pub const PENDING: u64 = 2048 * ENTRY;
    /// Bytes of memory that table and array need.
    pub const BYTES: u64 = 2 * Self::PENDING;

    /// Adds `vectors` interrupts to a function: 1 to 2,048. Their table starts where the memory of `bar` does.
    ///
    /// # Panics
    /// Another number of vectors, or no room for the capability.
    #[must_use]
    pub fn add_to(config: Config, bar: u8, vectors: u16) -> (Config, Self) {
        assert!((1..=2048).contains(&vectors), "{vectors} vectors");
        let mut registers = [0; 10];
        registers[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
        registers[2..6].copy_from_slice(&u32::from(bar).to_le_bytes());
        registers[6..].copy_from_slice(&(Self::PENDING as u32 | u32::from(bar)).to_le_bytes());
        let (config, at) = config.with_capability(Capability {
            id: ID,
            registers: &registers,
            writable: &(ON | ALL_MASKED).to_le_bytes(),
        });
        let msix = Self {
            table: Table::new(vectors),
            pending: vec![false; vectors.into()].into(),
            at,
            control: 0,
        };
        (config, msix)
    }

    /// Reads the guest's message control again, after it wrote configuration registers.
    pub fn configured(&mut self, config: &Config) -> Effect {
        self.control = config.read(self.at + CONTROL, 2) as u16;
        self.effect()
    }

    /// Raises an interrupt. There is none beyond the last vector.
    pub fn raise(&mut self, vector: u16) -> Effect {
        if let Some(pending) = self.pending.get_mut(usize::from(vector)) {
            *pending = true;
        }
        self.effect()
    }

    /// Takes the next interrupt that may be sent. One whose entry is no valid message is lost, as on a bus.
    pub fn take(&mut self) -> Option<Message> {
        while let Some(vector) = self.next() {
            self.pending[vector] = false;
            if let Some(message) = self.table.message(vector) {
                return Some(message);
            }
        }
        None
    }

    /// Reads the table or the array of pending bits. Accesses are aligned, of four or eight bytes; others read as all
    /// ones.
    #[must_use]
    pub fn load(&self, place: Place) -> u64 {
        table::by_double_words(place, |offset| self.double_word(offset))
    }

    /// Writes the table. Accesses are aligned, of four or eight bytes; others are ignored.
    pub fn store(&mut self, place: Place, value: u64) -> Effect {
        self.table.store(place, value);
        self.effect()
    }

    fn double_word(&self, offset: u64) -> u32 {
        if let Some(first) = offset.checked_sub(Self::PENDING) {
            let pending = self.pending.iter().skip(first as usize * 8).take(32);
            return (0..)
                .zip(pending)
                .fold(0, |bits, (bit, pending)| bits | u32::from(*pending) << bit);
        }
        self.table.double_word(offset)
    }

    /// Returns the first vector that is pending and may be sent.
    fn next(&self) -> Option<usize> {
        if self.control & ON == 0 || self.control & ALL_MASKED != 0 {
            return None;
        }
        let mut all = self.pending.iter().enumerate();
        let (vector, _) = all.find(|(vector, is)| **is && !self.table.is_masked(*vector))?;
        Some(vector)
    }

    fn effect(&self) -> Effect {
        match self.next() {
            Some(_) => Effect::Signal,
            None => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::MASKED;
    use super::*;
    use crate::{open_bus, pci::Identity};

    const VECTORS: u16 = 40;

    fn msix() -> (Config, Msix) {
        let identity = Identity {
            vendor: 0x1AF4,
            device: 0x1041,
            class: 0x02_0000,
            revision: 1,
            subsystem: 0x40_1AF4,
        };
        let config = Config::of(identity).with_memory(0, Msix::BYTES, false);
        Msix::add_to(config, 0, VECTORS)
    }

    fn at(offset: u64) -> Place {
        Place { offset, size: 4 }
    }

    /// Programs and unmasks an entry.
    fn program(msix: &mut Msix, vector: u64, interrupt: u64) {
        let place = Place {
            offset: vector * ENTRY,
            size: 8,
        };
        msix.store(place, 0xFEE0_1000);
        msix.store(at(vector * ENTRY + 8), interrupt);
        msix.store(at(vector * ENTRY + 12), 0);
    }

    fn switch(config: &mut Config, msix: &mut Msix, control: u16) -> Effect {
        config.write(msix.at + CONTROL, 2, control.into());
        msix.configured(config)
    }

    #[test]
    fn an_interrupt_waits_until_nothing_masks_it() {
        let (mut config, mut msix) = msix();
        program(&mut msix, 3, 0x53);
        assert_eq!(msix.raise(3), Effect::None, "MSI-X is off");
        assert_eq!(msix.load(at(Msix::PENDING)), 1 << 3);
        assert_eq!(
            switch(&mut config, &mut msix, ON | ALL_MASKED),
            Effect::None
        );
        assert_eq!(msix.take(), None);
        assert_eq!(switch(&mut config, &mut msix, ON), Effect::Signal);
        let message = msix.take().unwrap();
        assert_eq!((message.vector, message.destination), (0x53, 1));
        assert_eq!(msix.load(at(Msix::PENDING)), 0);
        assert_eq!(msix.take(), None, "sent once");

        msix.store(at(3 * ENTRY + 12), MASKED.into());
        assert_eq!(msix.raise(3), Effect::None);
        assert_eq!(msix.store(at(3 * ENTRY + 12), 0), Effect::Signal);
        assert!(msix.take().is_some());
    }

    #[test]
    fn several_that_were_masked_are_sent_one_after_the_other() {
        let (mut config, mut msix) = msix();
        for vector in [0, 33, 39] {
            program(&mut msix, vector, 0x60 + vector);
            msix.raise(vector as u16);
        }
        assert_eq!(msix.load(at(Msix::PENDING + 4)), 1 << 1 | 1 << 7);
        assert_eq!(switch(&mut config, &mut msix, ON), Effect::Signal);
        let vectors = core::iter::from_fn(|| msix.take()).map(|message| message.vector);
        assert!(vectors.eq([0x60, 0x81, 0x87]));
    }

    #[test]
    fn an_entry_that_is_no_message_is_lost_and_holds_up_nothing() {
        let (mut config, mut msix) = msix();
        switch(&mut config, &mut msix, ON);
        program(&mut msix, 1, 0x51);
        msix.store(at(0), 0x1000);
        msix.store(at(12), 0);
        msix.raise(0);
        msix.raise(1);
        msix.raise(VECTORS);
        assert_eq!(msix.take().unwrap().vector, 0x51);
        assert_eq!(msix.load(at(Msix::PENDING)), 0);
    }

    #[test]
    fn the_capability_says_how_many_there_are_and_where() {
        let (config, msix) = msix();
        let read = |at, size| config.read(msix.at + at, size);
        assert_eq!(config.read(0x34, 1), msix.at as u64);
        assert_eq!(read(0, 2), u64::from(ID), "the last capability");
        assert_eq!(read(CONTROL, 2), u64::from(VECTORS) - 1);
        assert_eq!(read(4, 4), 0);
        assert_eq!(read(8, 4), Msix::PENDING);
    }

    #[test]
    fn only_aligned_accesses_reach_the_table() {
        let (_, mut msix) = msix();
        program(&mut msix, 0, 0x41);
        for (offset, size) in [(0, 1), (0, 2), (2, 4), (4, 8)] {
            let place = Place { offset, size };
            assert_eq!(msix.load(place), open_bus(size));
            msix.store(place, 0x5555_5555_5555_5555);
        }
        let place = Place { offset: 0, size: 8 };
        assert_eq!(msix.load(place), 0xFEE0_1000);
        assert_eq!(msix.load(at(u64::from(VECTORS) * ENTRY)), 0, "no entry");
    }
}

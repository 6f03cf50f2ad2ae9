//! The interrupts of a physical function, as the guest programs them: MSI or MSI-X.
//!
//! The guest's messages do not reach the function. The host directs each vector instead ([`Physical::direct`]), which
//! makes it send a message of the host's. A vector that the guest masks is directed nowhere; the function keeps its
//! interrupt pending.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8.

use alloc::{boxed::Box, vec, vec::Vec};
use core::ops::Range;

use super::PAGE;
use crate::pci::table::{ENTRY, Table};
use crate::pci::{Config, Interrupts, Physical, Shape};
use crate::{Message, Place};

/// Ids of the capabilities.
const MSI: u8 = 0x05;
const MSIX: u8 = 0x11;
/// Message control, as an offset in both capabilities.
const CONTROL: usize = 2;
/// MSI: on; number of vectors (logarithm) that the function can have, and that the guest enables; addresses of 64 bits.
const MSI_ON: u16 = 1 << 0;
const MSI_CAPABLE: u16 = 1;
const MSI_ENABLED: u16 = 4;
const MSI_ENABLED_BITS: u16 = 7 << MSI_ENABLED;
const MSI_WIDE: u16 = 1 << 7;
/// MSI: offsets of address and data.
const MSI_ADDRESS: usize = 4;
const MSI_DATA: usize = 12;
const MOST_MSI: u16 = 32;
/// MSI-X: on; every entry is masked.
const MSIX_ON: u16 = 1 << 15;
const MSIX_MASKED: u16 = 1 << 14;
const MOST_MSIX: u16 = 2048;

/// The interrupts.
#[derive(Debug)]
pub struct Vectors {
    kind: Kind,
    /// The message that each vector sends.
    sent: Box<[Option<Message>]>,
    /// True if the function's capability is on.
    is_on: bool,
    /// Offset of the capability.
    at: usize,
    /// Message control as the guest has written it.
    control: u16,
}

#[derive(Debug)]
enum Kind {
    None,
    Msi,
    Msix(Box<Msix>),
}

#[derive(Debug)]
struct Msix {
    table: Table,
    /// Base address register and offsets of the table, and of the pending bits.
    table_at: (usize, Range<u64>),
    pending_at: (usize, Range<u64>),
}

impl Vectors {
    /// Creates the interrupts of a function of this shape. Those that it cannot have are left out.
    pub fn new(shape: &Shape) -> Self {
        let (kind, count) = match shape.interrupts {
            Interrupts::Msi(vectors) if (1..=MOST_MSI).contains(&vectors) => {
                // As many as a power of two says.
                (Kind::Msi, 1 << vectors.ilog2())
            }
            Interrupts::Msix {
                vectors,
                table,
                pending,
            } => match Msix::new(shape, vectors, [table, pending]) {
                Some(msix) => (Kind::Msix(Box::new(msix)), vectors),
                None => (Kind::None, 0),
            },
            Interrupts::Msi(_) | Interrupts::None => (Kind::None, 0),
        };
        Self {
            kind,
            sent: vec![None; count.into()].into(),
            is_on: false,
            at: 0,
            control: 0,
        }
    }

    /// Notes the offset of the capability. Without one, there are no interrupts.
    pub fn at(self, at: Option<usize>) -> Self {
        match at {
            Some(at) => Self { at, ..self },
            None => Self {
                kind: match self.kind {
                    // The guest's accesses to the table do not reach the function.
                    Kind::Msix(msix) => Kind::Msix(msix),
                    Kind::Msi | Kind::None => Kind::None,
                },
                ..self
            },
        }
    }

    /// Returns the id of the capability, its registers from byte 2 on, and the bits of them that the guest may write.
    pub fn capability(&self) -> Option<(u8, Vec<u8>, Vec<u8>)> {
        match &self.kind {
            Kind::None => None,
            Kind::Msi => {
                let control = (self.sent.len().ilog2() as u16) << MSI_CAPABLE | MSI_WIDE;
                let mut registers = vec![0; 12];
                registers[..2].copy_from_slice(&control.to_le_bytes());
                let mut writable = vec![0xFF; 12];
                writable[..2].copy_from_slice(&(MSI_ON | MSI_ENABLED_BITS).to_le_bytes());
                writable[2] = !3;
                Some((MSI, registers, writable))
            }
            Kind::Msix(msix) => {
                let mut registers = Vec::from((msix.table.len() as u16 - 1).to_le_bytes());
                for (bar, range) in [&msix.table_at, &msix.pending_at] {
                    let register = range.start as u32 | *bar as u32;
                    registers.extend(register.to_le_bytes());
                }
                let writable = (MSIX_ON | MSIX_MASKED).to_le_bytes();
                Some((MSIX, registers, writable.into()))
            }
        }
    }

    /// Follows the guest's writes to configuration registers. Returns the number of vectors for which the host had no
    /// interrupt.
    pub fn configured(
        &mut self,
        written: Range<usize>,
        config: &Config,
        physical: &dyn Physical,
    ) -> usize {
        /// Bytes of the capability that the guest may write, in both kinds.
        const BYTES: usize = 16;
        if self.at == 0 || written.end <= self.at || self.at + BYTES <= written.start {
            return 0;
        }
        self.control = config.read(self.at + CONTROL, 2) as u16;
        let is_on = match self.kind {
            Kind::None => false,
            Kind::Msi => self.control & MSI_ON != 0,
            Kind::Msix(_) => self.control & MSIX_ON != 0,
        };
        if !is_on {
            self.switch(false, physical);
        }
        let mut refused = 0;
        for vector in 0..self.sent.len() {
            let message = match self.kind {
                Kind::Msi if is_on => msi(config, self.at, vector),
                Kind::Msix(_) => self.of_table(vector),
                _ => None,
            };
            refused += usize::from(!self.direct(vector, message, physical));
        }
        if is_on {
            self.switch(true, physical);
        }
        refused
    }

    /// Directs no vector any more, and forgets what the guest wrote.
    pub fn silence(&mut self, physical: &dyn Physical) {
        self.switch(false, physical);
        for vector in 0..self.sent.len() {
            self.direct(vector, None, physical);
        }
        self.control = 0;
        if let Kind::Msix(msix) = &mut self.kind {
            msix.table.reset();
        }
    }

    /// Returns whether an access reaches the table of MSI-X.
    pub fn has_table_at(&self, bar: usize, place: Place) -> bool {
        matches!(&self.kind, Kind::Msix(msix) if is_at(&msix.table_at, bar, place))
    }

    /// Returns whether an access reaches the pending bits of MSI-X.
    pub fn has_pending_at(&self, bar: usize, place: Place) -> bool {
        matches!(&self.kind, Kind::Msix(msix) if is_at(&msix.pending_at, bar, place))
    }

    /// Reads the table.
    pub fn load(&self, place: Place) -> u64 {
        match &self.kind {
            Kind::Msix(msix) => msix.table.load(msix.in_table(place)),
            _ => crate::open_bus(place.size),
        }
    }

    /// Writes the table. Returns the number of vectors for which the host had no interrupt.
    pub fn store(&mut self, place: Place, value: u64, physical: &dyn Physical) -> usize {
        let Kind::Msix(msix) = &mut self.kind else {
            return 0;
        };
        let place = msix.in_table(place);
        msix.table.store(place, value);
        let vector = (place.offset / ENTRY) as usize;
        if vector >= self.sent.len() {
            return 0;
        }
        let message = self.of_table(vector);
        usize::from(!self.direct(vector, message, physical))
    }

    /// Returns the pages of a base address register's memory that the guest must not access without the host, ascending.
    pub fn pages_in(&self, bar: usize) -> Vec<Range<u64>> {
        let Kind::Msix(msix) = &self.kind else {
            return Vec::new();
        };
        let mut all: Vec<_> = [&msix.table_at, &msix.pending_at]
            .into_iter()
            .filter(|(there, _)| *there == bar)
            .map(|(_, range)| range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE))
            .collect();
        all.sort_by_key(|pages| pages.start);
        all
    }

    /// Returns the message that a vector of MSI-X may send.
    fn of_table(&self, vector: usize) -> Option<Message> {
        let Kind::Msix(msix) = &self.kind else {
            return None;
        };
        let is_open = self.control & (MSIX_ON | MSIX_MASKED) == MSIX_ON;
        let is_open = is_open && !msix.table.is_masked(vector);
        is_open.then(|| msix.table.message(vector)).flatten()
    }

    /// Has a vector send `message` from now on. Returns `false` if the host has no interrupt for it.
    fn direct(&mut self, vector: usize, message: Option<Message>, physical: &dyn Physical) -> bool {
        if self.sent[vector] == message {
            return true;
        }
        let is_done = physical.direct(vector as u16, message);
        self.sent[vector] = message.filter(|_| is_done);
        is_done
    }

    fn switch(&mut self, is_on: bool, physical: &dyn Physical) {
        if self.is_on != is_on {
            self.is_on = is_on;
            physical.set_interrupts(is_on);
        }
    }
}

impl Msix {
    /// Returns `None` if table and pending bits are not in the function's memory.
    fn new(shape: &Shape, vectors: u16, [table, pending]: [(usize, u64); 2]) -> Option<Self> {
        if !(1..=MOST_MSIX).contains(&vectors) {
            return None;
        }
        let place = |(bar, start): (usize, u64), bytes: u64| {
            let memory = shape.memory.iter().find(|memory| memory.index == bar)?;
            let end = start.checked_add(bytes)?;
            let is_there = start.is_multiple_of(8)
                && end <= memory.range.end - memory.range.start
                && start <= u32::MAX.into();
            is_there.then_some((bar, start..end))
        };
        let bytes = u64::from(vectors) * ENTRY;
        Some(Self {
            table: Table::new(vectors),
            table_at: place(table, bytes)?,
            pending_at: place(pending, u64::from(vectors).div_ceil(64) * 8)?,
        })
    }

    /// Returns the offset of an access in the table. One that begins before the table is not aligned, and reaches no
    /// entry.
    fn in_table(&self, place: Place) -> Place {
        let offset = place.offset.wrapping_sub(self.table_at.1.start);
        Place { offset, ..place }
    }
}

/// Returns the message of a vector of MSI.
fn msi(config: &Config, at: usize, vector: usize) -> Option<Message> {
    let control = config.read(at + CONTROL, 2) as u16;
    let count = 1_u32 << ((control & MSI_ENABLED_BITS) >> MSI_ENABLED);
    let number = u32::try_from(vector)
        .ok()
        .filter(|vector| *vector < count)?;
    let data = config.read(at + MSI_DATA, 2) as u32 & !(count - 1) | number;
    Message::of_write(config.read(at + MSI_ADDRESS, 8), data)
}

fn is_at(range: &(usize, Range<u64>), bar: usize, place: Place) -> bool {
    let (there, range) = range;
    let end = place.offset + u64::from(place.size);
    *there == bar && place.offset < range.end && range.start < end
}

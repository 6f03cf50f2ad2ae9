//! The way of an interrupt through the table of entries.

use crate::{
    memory::Memory,
    unit::{CFI, IRE, Unit},
};

/// The outcome of an interrupt that was not blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// It went to a CPU.
    ToCpu {
        /// The vector.
        vector: u8,
        /// The CPU's APIC id.
        destination: u32,
        /// True if it is level-triggered.
        is_level: bool,
    },
    /// It was posted in the descriptor at this address.
    Posted(u64),
}

impl Unit {
    pub fn interrupt(
        &mut self,
        memory: &mut Memory,
        violations: &mut Vec<String>,
        source: u16,
        (address, data): (u64, u32),
    ) -> Result<Delivered, u8> {
        let compatible = Delivered::ToCpu {
            vector: data as u8,
            destination: (address >> 12 & 0xFF) as u32,
            is_level: false,
        };
        if self.status & IRE == 0 {
            return Ok(compatible);
        }
        let is_extended = self.interrupt_table >> 11 & 1 != 0;
        let is_remappable = address >> 4 & 1 != 0;
        if !is_remappable && !is_extended && self.status & CFI != 0 {
            return Ok(compatible);
        }
        let subhandle = if address >> 3 & 1 != 0 {
            data as u16
        } else {
            0
        };
        let handle = (address >> 5 & 0x7FFF) as u16 | ((address >> 2 & 1) as u16) << 15;
        let index = handle.wrapping_add(subhandle);
        let outcome = if is_remappable {
            self.remap(memory, violations, (source, index, is_extended))
        } else {
            Err(0x25)
        };
        if let Err(reason) = outcome {
            self.fault(source, reason, (u64::from(index) << 48, false));
        }
        outcome
    }

    fn remap(
        &mut self,
        memory: &mut Memory,
        violations: &mut Vec<String>,
        (source, index, is_extended): (u16, u16, bool),
    ) -> Result<Delivered, u8> {
        if u64::from(index) >> ((self.interrupt_table & 0xF) + 1) != 0 {
            return Err(0x21);
        }
        let [low, high] = match self.interrupts.get(&index) {
            Some(entry) => *entry,
            None => {
                let at = self.entry_at(index);
                let entry = [0, 8].map(|half| self.table(memory, violations, at + half));
                if entry[0] & 1 != 0 || self.shape.caches_absent {
                    self.interrupts.insert(index, entry);
                }
                entry
            }
        };
        if low & 1 == 0 {
            return Err(0x22);
        }
        let is_posted = low >> 15 & 1 != 0;
        let checks_source = high >> 18 & 3 == 1;
        if checks_source && high as u16 != source {
            return Err(0x26);
        }
        if !checks_source {
            violations.push(format!("entry {index} is open to any source"));
        }
        if is_posted {
            return if self.shape.posts {
                Ok(post(
                    memory,
                    (low >> 16) as u8,
                    low >> 38 << 6 & 0xFFFF_FFFF | high >> 32 << 32,
                ))
            } else {
                Err(0x24)
            };
        }
        let field = (low >> 32) as u32;
        let has_reserved = high >> 20 != 0 || low >> 24 & 0xFF != 0 || low >> 8 & 0xFF & !0xF != 0;
        if has_reserved || !is_extended && field & !0xFF00 != 0 {
            return Err(0x24);
        }
        Ok(Delivered::ToCpu {
            vector: (low >> 16) as u8,
            destination: if is_extended { field } else { field >> 8 },
            is_level: low >> 4 & 1 != 0,
        })
    }

    /// Returns true if an entry of the unit's table is at `pa`.
    pub fn has_interrupt_entry(&self, pa: u64) -> bool {
        let entries = 2u64 << (self.interrupt_table & 0xF);
        let start = self.entry_at(0);
        start != 0 && (start..start + entries * 16).contains(&pa)
    }

    fn entry_at(&self, index: u16) -> u64 {
        (self.interrupt_table & !0xFFF) + u64::from(index) * 16
    }
}

/// Posts a vector: its request bit, and ON.
fn post(memory: &mut Memory, vector: u8, descriptor: u64) -> Delivered {
    let at = descriptor + u64::from(vector / 64) * 8;
    let requests = memory.load(at) | 1 << (vector % 64);
    memory.store_by_unit(at, requests);
    let control = memory.load(descriptor + 32) | 1;
    memory.store_by_unit(descriptor + 32, control);
    Delivered::Posted(descriptor)
}

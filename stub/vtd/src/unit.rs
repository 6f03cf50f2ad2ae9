//! One unit: registers, commands, queue, caches, fault records.

use std::collections::HashMap;

use crate::{
    Silence, UnitShape,
    memory::Memory,
    shape::FAULT_RECORDS_AT,
    walk::{Cached, Contexts},
};

const GCMD: u32 = 0x18;
const GSTS: u32 = 0x1C;
const RTADDR: u32 = 0x20;
const FSTS: u32 = 0x34;
const FECTL: u32 = 0x38;
const FEDATA: u32 = 0x3C;
const FEADDR: u32 = 0x40;
const PMEN: u32 = 0x64;
const IQH: u32 = 0x80;
const IQT: u32 = 0x88;
const IQA: u32 = 0x90;
const IRTA: u32 = 0xB8;

pub const TE: u32 = 1 << 31;
const SRTP: u32 = 1 << 30;
const WBF: u32 = 1 << 27;
const QIE: u32 = 1 << 26;
pub const IRE: u32 = 1 << 25;
const SIRTP: u32 = 1 << 24;
pub const CFI: u32 = 1 << 23;

const PFO: u32 = 1;
const PPF: u32 = 1 << 1;
const IQE: u32 = 1 << 4;

/// A unit.
#[derive(Debug)]
pub struct Unit {
    pub shape: UnitShape,
    /// Plain registers, by offset.
    plain: HashMap<u32, u32>,
    pub status: u32,
    /// The tables that were taken by SRTP and SIRTP.
    pub root: u64,
    pub interrupt_table: u64,
    fault_status: u32,
    records: Vec<[u64; 2]>,
    next_record: usize,
    is_masked: bool,
    event_waits: bool,
    /// Fault events that were signalled.
    pub events: u64,
    /// Submissions that are still to be refused.
    pub refuses: u32,
    pub contexts: Contexts,
    pub translations: Cached,
    /// Interrupt entries by index.
    pub interrupts: HashMap<u16, [u64; 2]>,
    /// Memory as a unit with a write buffer sees it.
    buffered: HashMap<u64, u64>,
}

impl Unit {
    pub fn new(shape: &UnitShape, memory: &mut Memory) -> Self {
        let firmware = shape.firmware;
        let bit = |is_on: bool, bit: u32| if is_on { bit } else { 0 };
        let mut unit = Self {
            shape: shape.clone(),
            plain: HashMap::from([(FECTL, 0)]),
            status: bit(firmware.translates, TE | SRTP)
                | bit(firmware.has_queue, QIE)
                | bit(firmware.remaps, IRE | SIRTP)
                | bit(firmware.passes_compatibility, CFI),
            root: 0,
            interrupt_table: 0,
            fault_status: 0,
            records: vec![[0; 2]; shape.fault_records as usize],
            next_record: 0,
            is_masked: true,
            event_waits: false,
            events: 0,
            refuses: 0,
            contexts: Contexts::default(),
            translations: Cached::default(),
            interrupts: HashMap::new(),
            buffered: HashMap::new(),
        };
        if firmware.translates {
            unit.root = crate::walk::open_tables(memory);
            unit.set64(RTADDR, unit.root | u64::from(firmware.is_scalable) << 10);
        }
        if firmware.protects {
            unit.plain.insert(PMEN, 1 << 31 | 1);
        }
        unit.buffered = memory.all_seen(true);
        unit
    }

    pub fn translates(&self) -> bool {
        self.status & TE != 0
    }

    pub fn protects(&self) -> bool {
        self.get(PMEN) & 1 != 0
    }

    pub fn event_address(&self) -> u64 {
        self.get64(FEADDR)
    }

    pub fn event_data(&self) -> u32 {
        self.get(FEDATA)
    }

    pub fn read(&self, offset: u32) -> u32 {
        if self.shape.silence == Silence::Absent {
            return u32::MAX;
        }
        let half = |value: u64| (value >> (offset % 8 * 8)) as u32;
        match offset {
            0x00 => 0x60,
            0x08 | 0x0C => half(self.shape.capability()),
            0x10 | 0x14 => half(self.shape.extended()),
            GSTS => self.status,
            FSTS => {
                let pending = self.records.iter().any(|record| record[1] >> 63 != 0);
                self.fault_status | if pending { PPF } else { 0 }
            }
            FECTL => u32::from(self.is_masked) << 31,
            _ => match self.record_at(offset) {
                Some((record, word)) => (self.records[record][word / 2] >> (word % 2 * 32)) as u32,
                None => self.get(offset),
            },
        }
    }

    pub fn write(
        &mut self,
        memory: &mut Memory,
        violations: &mut Vec<String>,
        (offset, value): (u32, u32),
    ) {
        match offset {
            GCMD => self.command(memory, violations, value),
            GSTS | IQH => {}
            FSTS => self.fault_status &= !(value & (PFO | IQE | 1 << 5 | 1 << 6)),
            FECTL => {
                self.is_masked = value >> 31 != 0;
                if !self.is_masked && std::mem::take(&mut self.event_waits) {
                    self.events += 1;
                }
            }
            PMEN if self.shape.silence == Silence::ProtectedRegions => {}
            PMEN => {
                let is_on = value & 1 << 31;
                self.plain.insert(PMEN, is_on | is_on >> 31);
            }
            IQT => {
                self.plain.insert(IQT, value);
                self.execute(memory, violations);
            }
            RTADDR if self.translates() && (self.get(RTADDR) ^ value) >> 10 & 3 != 0 => {
                violations.push("the root table's mode was changed during translation".into());
            }
            _ => match self.record_at(offset) {
                Some((record, 3)) if value >> 31 != 0 => self.records[record][1] &= !(1 << 63),
                Some(_) => {}
                None => {
                    self.plain.insert(offset, value);
                }
            },
        }
    }

    fn record_at(&self, offset: u32) -> Option<(usize, usize)> {
        let at = u64::from(offset).checked_sub(FAULT_RECORDS_AT)? as usize / 4;
        (at / 4 < self.records.len()).then_some((at / 4, at % 4))
    }

    fn command(&mut self, memory: &Memory, violations: &mut Vec<String>, value: u32) {
        const STATES: u32 = TE | QIE | IRE | CFI;
        let changes = (self.status ^ value) & STATES | value & (SRTP | SIRTP | WBF);
        if changes.count_ones() > 1 {
            violations.push(format!("one command changes {changes:#x}"));
        }
        let ignored = match self.shape.silence {
            Silence::Command(bit) => bit,
            _ => 0,
        };
        match changes & !ignored {
            SRTP => {
                self.root = self.get64(RTADDR);
                self.status |= SRTP;
            }
            SIRTP => {
                self.interrupt_table = self.get64(IRTA);
                self.status |= SIRTP;
            }
            WBF => self.buffered = memory.all_seen(self.shape.is_coherent),
            bit @ (TE | QIE | IRE | CFI) => {
                if bit == TE && value & TE != 0 && self.status & SRTP == 0 {
                    violations.push("translation was switched on without a root table".into());
                }
                if bit == IRE && value & IRE != 0 && self.status & SIRTP == 0 {
                    violations.push("remapping was switched on without a table".into());
                }
                if bit == QIE && value & QIE != 0 && self.get(IQT) != 0 {
                    violations.push("a queue was switched on that is not empty".into());
                }
                if bit == QIE {
                    self.set64(IQH, 0);
                }
                self.status = self.status & !bit | value & bit;
            }
            _ => {}
        }
        if changes & ignored & WBF != 0 {
            self.status |= WBF;
        }
    }

    /// Executes the queue from its head to its tail.
    fn execute(&mut self, memory: &mut Memory, violations: &mut Vec<String>) {
        if self.status & QIE == 0 || self.shape.silence == Silence::Queue {
            return;
        }
        if self.refuses > 0 && self.get64(IQH) != self.get64(IQT) {
            self.refuses -= 1;
            self.fault_status |= IQE;
        }
        let base = self.get64(IQA) & !0xFFF;
        while self.get64(IQH) != self.get64(IQT) && self.fault_status & IQE == 0 {
            let at = base + self.get64(IQH);
            // Units always snoop when they read their queue.
            let descriptor = [memory.load(at), memory.load(at + 8)];
            if !memory.is_taken(at) {
                violations.push(format!("a queue is at {at:#x}, which is free"));
            }
            if self.invalidate(memory, descriptor) {
                self.set64(IQH, (self.get64(IQH) + 16) % 4096);
            } else {
                violations.push(format!("descriptor {descriptor:x?} is unknown"));
                self.fault_status |= IQE;
            }
        }
    }

    fn invalidate(&mut self, memory: &mut Memory, [low, high]: [u64; 2]) -> bool {
        let granularity = low >> 4 & 3;
        let id = (low >> 16) as u16;
        match (low & 0xF, granularity) {
            (1, 1) => self.contexts.clear(),
            (1, 2) => self.contexts.forget_domain(id),
            (1, 3) => self.contexts.forget((low >> 32) as u16),
            (2, 1) => self.translations.clear(),
            (2, 2) => self.translations.forget_domain(id),
            (2, 3) => {
                let order = (high & 0x3F) as u32;
                let highest = self.shape.page_selective;
                let iova = high & !0xFFF;
                if highest.is_none_or(|highest| order > highest)
                    || !iova.is_multiple_of(0x1000 << order)
                {
                    return false;
                }
                self.translations.forget_pages(id, iova, 0x1000 << order);
            }
            (4, 0) => self.interrupts.clear(),
            (4, 1) => {
                self.interrupts.remove(&((low >> 32) as u16));
            }
            (5, _) => {
                if low >> 5 & 1 != 0 {
                    memory.store_by_unit(high & !3, low >> 32);
                }
            }
            _ => return false,
        }
        true
    }

    /// Reads 8 bytes of a table.
    pub fn table(&self, memory: &Memory, violations: &mut Vec<String>, pa: u64) -> u64 {
        if !memory.is_taken(pa) {
            violations.push(format!("a unit reads a table at {pa:#x}, which is free"));
        }
        if self.shape.buffers {
            return self.buffered.get(&pa).copied().unwrap_or(0);
        }
        memory.seen(pa, self.shape.is_coherent)
    }

    /// Records a fault.
    pub fn fault(&mut self, source: u16, reason: u8, (info, reads): (u64, bool)) {
        let was_pending = self.records.iter().any(|record| record[1] >> 63 != 0);
        let record = &mut self.records[self.next_record];
        if record[1] >> 63 != 0 {
            self.fault_status |= PFO;
            return;
        }
        *record = [
            info,
            1 << 63 | u64::from(reads) << 62 | u64::from(reason) << 32 | u64::from(source),
        ];
        self.next_record = (self.next_record + 1) % self.records.len();
        if !was_pending {
            if self.is_masked {
                self.event_waits = true;
            } else {
                self.events += 1;
            }
        }
    }

    fn get(&self, offset: u32) -> u32 {
        self.plain.get(&offset).copied().unwrap_or(0)
    }

    fn get64(&self, offset: u32) -> u64 {
        u64::from(self.get(offset)) | u64::from(self.get(offset + 4)) << 32
    }

    fn set64(&mut self, offset: u32, value: u64) {
        self.plain.insert(offset, value as u32);
        self.plain.insert(offset + 4, (value >> 32) as u32);
    }
}

//! The banks of a CPU as it read them in a machine check, for the report that another CPU prints.

use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use crate::{
    bank::{Reading, Status},
    capability::{Capability, GlobalStatus, MAX_BANKS},
    scan::{Banks, Scan},
};

/// One CPU's last machine check. Only that CPU writes it.
#[derive(Debug)]
pub struct Deposit {
    is_there: AtomicBool,
    has_registers: AtomicU32,
    capability: AtomicU64,
    global: AtomicU64,
    valid: AtomicU32,
    with_address: AtomicU32,
    with_misc: AtomicU32,
    banks: [[AtomicU64; 3]; MAX_BANKS],
}

impl Default for Deposit {
    fn default() -> Self {
        Self::new()
    }
}

impl Deposit {
    /// Creates an empty deposit.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            is_there: AtomicBool::new(false),
            has_registers: AtomicU32::new(0),
            capability: AtomicU64::new(0),
            global: AtomicU64::new(0),
            valid: AtomicU32::new(0),
            with_address: AtomicU32::new(0),
            with_misc: AtomicU32::new(0),
            banks: [const { [const { AtomicU64::new(0) }; 3] }; MAX_BANKS],
        }
    }

    /// Stores a reading, unless one is there already: the first of an event is the complete one.
    pub fn put(&self, scan: &Scan) {
        if self.is_there.load(Acquire) {
            return;
        }
        let has = u32::from(scan.capability.is_some()) | u32::from(scan.global.is_some()) << 1;
        self.has_registers.store(has, Relaxed);
        self.capability
            .store(scan.capability.unwrap_or_default().0, Relaxed);
        self.global
            .store(scan.global.unwrap_or_default().0, Relaxed);
        let [mut valid, mut with_address, mut with_misc] = [Banks::default(); 3];
        for reading in &scan.readings {
            let Some(slot) = self.banks.get(usize::from(reading.bank)) else {
                continue;
            };
            valid.add(reading.bank);
            slot[0].store(reading.status.0, Relaxed);
            if let Some(address) = reading.address {
                with_address.add(reading.bank);
                slot[1].store(address, Relaxed);
            }
            if let Some(misc) = reading.misc {
                with_misc.add(reading.bank);
                slot[2].store(misc, Relaxed);
            }
        }
        self.valid.store(valid.0, Relaxed);
        self.with_address.store(with_address.0, Relaxed);
        self.with_misc.store(with_misc.0, Relaxed);
        self.is_there.store(true, Release);
    }

    /// Forgets the reading, after an event that the machine survived.
    pub fn clear(&self) {
        self.is_there.store(false, Release);
    }

    /// Returns the reading if there is one.
    #[must_use]
    pub fn get(&self) -> Option<Scan> {
        if !self.is_there.load(Acquire) {
            return None;
        }
        let has = self.has_registers.load(Relaxed);
        let valid = Banks(self.valid.load(Relaxed));
        let with_address = Banks(self.with_address.load(Relaxed));
        let with_misc = Banks(self.with_misc.load(Relaxed));
        let numbered = (0..).zip(&self.banks).filter(|(bank, _)| valid.has(*bank));
        let readings = numbered.map(|(bank, slot)| Reading {
            bank,
            status: Status(slot[0].load(Relaxed)),
            address: with_address.has(bank).then(|| slot[1].load(Relaxed)),
            misc: with_misc.has(bank).then(|| slot[2].load(Relaxed)),
        });
        Some(Scan {
            capability: (has & 1 != 0).then(|| Capability(self.capability.load(Relaxed))),
            global: (has & 2 != 0).then(|| GlobalStatus(self.global.load(Relaxed))),
            readings: readings.collect(),
        })
    }
}

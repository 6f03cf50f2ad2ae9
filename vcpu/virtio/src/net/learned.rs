//! The addresses that a switch has learned behind trunk ports.
//!
//! Each entry is one word, so that no lock is needed. A set of entries is found by the address; when it is full, an entry
//! of it makes room. A lost entry costs copies and nothing else: frames to its address go to all trunk ports.

use alloc::{boxed::Box, vec};

use sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::header::Mac;

/// Number of entries of a set, and of sets.
const WAYS: usize = 4;
const SETS: usize = 128;
/// An entry: the address, the port's number, and a bit that says that there is one.
const PORT: u32 = 48;
const PRESENT: u64 = 1 << 63;

/// The table.
#[derive(Debug)]
pub struct Learned(Box<[AtomicU64]>);

impl Default for Learned {
    fn default() -> Self {
        let entries: vec::Vec<_> = (0..WAYS * SETS).map(|_| AtomicU64::new(0)).collect();
        Self(entries.into())
    }
}

impl Learned {
    /// Notes that an address is behind a port.
    pub fn learn(&self, mac: Mac, port: usize) {
        let new = PRESENT | (port as u64) << PORT | mac.0;
        let set = self.set(mac);
        let known = set.iter().find(|entry| is_of(entry.load(SeqCst), mac));
        let place = known
            .or_else(|| set.iter().find(|entry| entry.load(SeqCst) == 0))
            .unwrap_or(&set[(mac.0 >> 7) as usize % WAYS]);
        if place.load(SeqCst) != new {
            place.store(new, SeqCst);
        }
    }

    /// Returns the port behind which an address is.
    pub fn find(&self, mac: Mac) -> Option<usize> {
        let entries = self.set(mac).iter().map(|entry| entry.load(SeqCst));
        let found = entries.into_iter().find(|entry| is_of(*entry, mac))?;
        Some((found & !PRESENT) as usize >> PORT)
    }

    /// Forgets the addresses behind a port.
    pub fn forget(&self, port: usize) {
        for entry in &self.0 {
            let value = entry.load(SeqCst);
            if value & PRESENT != 0 && (value & !PRESENT) as usize >> PORT == port {
                // An entry that was replaced meanwhile stays.
                let _ = entry.compare_exchange(value, 0, SeqCst, SeqCst);
            }
        }
    }

    fn set(&self, mac: Mac) -> &[AtomicU64] {
        let hash = mac.0 ^ mac.0 >> 17 ^ mac.0 >> 31;
        let set = hash as usize % SETS;
        &self.0[set * WAYS..(set + 1) * WAYS]
    }
}

const fn is_of(entry: u64, mac: Mac) -> bool {
    entry & PRESENT != 0 && entry & ((1 << PORT) - 1) == mac.0
}

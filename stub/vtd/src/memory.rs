//! Memory: what CPUs see, what is in RAM, and which frames are taken.

use std::collections::{BTreeMap, HashMap};

const FRAME: u64 = 4096;
/// The first frame that is handed out.
const FIRST: u64 = 1 << 20;

/// Memory with one CPU's write-back cache in front of it, by words of 8 bytes.
#[derive(Debug, Default)]
pub struct Memory {
    /// Memory as CPUs see it, and units that snoop.
    cached: HashMap<u64, u64>,
    /// Memory as units see it that do not snoop.
    ram: HashMap<u64, u64>,
    /// The taken blocks: address and order.
    taken: BTreeMap<u64, u32>,
    next: u64,
    /// Frames that may still be taken.
    pub left: usize,
}

impl Memory {
    pub fn new() -> Self {
        Self {
            next: FIRST,
            left: usize::MAX,
            ..Self::default()
        }
    }

    /// Takes a block. No address is handed out twice, so that a use after free is always found.
    pub fn take(&mut self, order: u32) -> Option<u64> {
        let frames = 1usize << order;
        self.left = self.left.checked_sub(frames)?;
        let bytes = FRAME << order;
        let pa = self.next.next_multiple_of(bytes);
        self.next = pa + bytes;
        self.taken.insert(pa, order);
        Some(pa)
    }

    /// Frees a block. Returns false if it was not taken.
    pub fn give(&mut self, pa: u64, order: u32) -> bool {
        let was_taken = self.taken.get(&pa) == Some(&order);
        if was_taken {
            self.taken.remove(&pa);
            self.left = self.left.saturating_add(1 << order);
        }
        was_taken
    }

    pub fn is_taken(&self, pa: u64) -> bool {
        let before = self.taken.range(..=pa).next_back();
        before.is_some_and(|(start, order)| pa < start + (FRAME << order))
    }

    /// Returns the number of frames that are taken.
    pub fn taken(&self) -> u64 {
        self.taken.values().map(|order| 1 << order).sum()
    }

    pub fn load(&self, pa: u64) -> u64 {
        self.cached.get(&pa).copied().unwrap_or(0)
    }

    pub fn store(&mut self, pa: u64, value: u64) {
        self.cached.insert(pa, value);
    }

    pub fn write_back(&mut self, pa: u64, bytes: u64) {
        for at in (pa / 64 * 64..(pa + bytes).next_multiple_of(64)).step_by(8) {
            if let Some(value) = self.cached.get(&at) {
                self.ram.insert(at, *value);
            }
        }
    }

    /// Returns what a unit reads.
    pub fn seen(&self, pa: u64, snoops: bool) -> u64 {
        let seen = if snoops { &self.cached } else { &self.ram };
        seen.get(&pa).copied().unwrap_or(0)
    }

    /// Returns all of what a unit reads.
    pub fn all_seen(&self, snoops: bool) -> HashMap<u64, u64> {
        if snoops {
            self.cached.clone()
        } else {
            self.ram.clone()
        }
    }

    /// Stores as a unit does: caches see it.
    pub fn store_by_unit(&mut self, pa: u64, value: u64) {
        self.cached.insert(pa, value);
        self.ram.insert(pa, value);
    }
}

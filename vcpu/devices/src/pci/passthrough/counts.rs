//! Counters of a function.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of a function. Any CPU reads them.
#[derive(Debug, Default)]
pub struct Counts {
    config: AtomicU64,
    memory: AtomicU64,
    messages: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    /// Returns how often the guest accessed configuration registers.
    #[must_use]
    pub fn config(&self) -> u64 {
        self.config.load(Relaxed)
    }

    /// Returns how many accesses to memory of base address registers the host carried out.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.memory.load(Relaxed)
    }

    /// Returns how many interrupts the host delivered.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages.load(Relaxed)
    }

    /// Returns how often the host had no interrupt left for a vector.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Counts an interrupt that the host delivered. Several CPUs may do so.
    pub fn note_message(&self) {
        self.messages.fetch_add(1, Relaxed);
    }

    pub(super) fn note_config(&self) {
        add(&self.config, 1);
    }

    pub(super) fn note_memory(&self) {
        add(&self.memory, 1);
    }

    pub(super) fn note_refused(&self, vectors: usize) {
        add(&self.refused, vectors as u64);
    }
}

/// Adds to a counter that only the holder of the function's lock changes.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

//! Doorbells: registers that a guest writes to tell a function of work in its queues.

use alloc::sync::Arc;

use sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::Place;

/// Largest number of queues that are told apart.
const QUEUES: u64 = u64::BITS as u64;

/// The doorbells of a function, one for each queue, in a row. A write there needs no lock: the guest does not wait for a CPU
/// that works for the function.
#[derive(Clone, Debug)]
pub struct Doorbells {
    bar: usize,
    start: u64,
    /// Bytes of a doorbell.
    bytes: u64,
    rung: Arc<Rung>,
}

#[derive(Debug, Default)]
struct Rung {
    /// The queues whose doorbells were written, by a bit for each.
    queues: AtomicU64,
    /// Number of writes.
    count: AtomicU64,
}

impl Doorbells {
    /// Creates doorbells of so many bytes each, from `start` on in the memory of a base address register.
    #[must_use]
    pub fn new(bar: usize, start: u64, bytes: u64) -> Self {
        Self {
            bar,
            start,
            bytes,
            rung: Arc::default(),
        }
    }

    /// Notes a write, if it is to a doorbell. Returns whether it is.
    pub fn ring(&self, bar: usize, place: Place) -> bool {
        let offset = place.offset.wrapping_sub(self.start);
        if bar != self.bar || offset >= QUEUES * self.bytes {
            return false;
        }
        self.rung.count.fetch_add(1, SeqCst);
        self.rung
            .queues
            .fetch_or(1 << (offset / self.bytes), SeqCst);
        true
    }

    /// Takes the queues whose doorbells were written, by a bit for each.
    #[must_use]
    pub fn take(&self) -> u64 {
        self.rung.queues.swap(0, SeqCst)
    }

    /// Returns the number of writes.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.rung.count.load(SeqCst)
    }
}

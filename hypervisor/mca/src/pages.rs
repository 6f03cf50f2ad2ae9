//! Pages with lost data, from the handlers that find them to the code that takes them out of use.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Relaxed},
};

/// Number of pages that can wait at once.
pub const WAITING: usize = 64;
/// No page.
const NONE: u64 = u64::MAX;

/// Pages that wait to be taken out of use.
#[derive(Debug)]
pub struct Pages {
    waiting: [AtomicU64; WAITING],
    lost: AtomicU64,
}

impl Default for Pages {
    fn default() -> Self {
        Self::new()
    }
}

impl Pages {
    /// Creates an empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            waiting: [const { AtomicU64::new(NONE) }; WAITING],
            lost: AtomicU64::new(0),
        }
    }

    /// Adds the page at physical address `page`. A page that already waits is not added again.
    pub fn add(&self, page: u64) {
        if self.waiting.iter().any(|slot| slot.load(Relaxed) == page) {
            return;
        }
        let free = |slot: &&AtomicU64| slot.compare_exchange(NONE, page, AcqRel, Relaxed).is_ok();
        if self.waiting.iter().find(free).is_none() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Takes a page out of the list.
    pub fn take(&self) -> Option<u64> {
        let taken = self.waiting.iter().map(|slot| {
            // Most slots are empty, and a read does not move the cache line.
            match slot.load(Relaxed) {
                NONE => NONE,
                _ => slot.swap(NONE, AcqRel),
            }
        });
        taken.into_iter().find(|page| *page != NONE)
    }

    /// Returns true if a page waits.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.waiting.iter().any(|slot| slot.load(Relaxed) != NONE)
    }

    /// Returns the number of pages that found no room. They stay in use.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

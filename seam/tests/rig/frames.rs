//! The frame allocator of the tests: hands out tokens and keeps a ledger of them.

use core::ops::Range;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use seam::abi::{PAGE_4K, PageSize};
use seam::address::Hpa;
use seam::page::{Clean, Page};

pub struct Frames(Mutex<Ledger>);

struct Ledger {
    /// Frames that were never allocated.
    rest: Range<u64>,
    free: Vec<(Hpa, PageSize)>,
    /// The allocated 4 KiB pages; a large frame may be returned in parts.
    out: BTreeSet<u64>,
}

impl Frames {
    pub fn new(rest: Range<u64>) -> Self {
        Self(Mutex::new(Ledger {
            rest,
            free: Vec::new(),
            out: BTreeSet::new(),
        }))
    }

    /// Allocates a frame, preferably one that was used before.
    pub fn take(&self, size: PageSize) -> Page<Clean> {
        let ledger = &mut *self.ledger();
        let again = ledger.free.iter().position(|(_, free)| *free == size);
        let hpa = match again {
            Some(index) => ledger.free.swap_remove(index).0,
            None => {
                let start = ledger.rest.start.next_multiple_of(size.bytes());
                ledger.rest.start = start + size.bytes();
                assert!(ledger.rest.start <= ledger.rest.end, "out of frames");
                Hpa(start)
            }
        };
        for page in pages(hpa, size) {
            assert!(ledger.out.insert(page), "{page:#x} is handed out twice");
        }
        Page::mint(hpa, size).unwrap()
    }

    pub fn take_4k(&self) -> Page<Clean> {
        self.take(PageSize::Size4K)
    }

    /// Frees a frame.
    pub fn give(&self, page: Page<Clean>) {
        let (hpa, size) = page.surrender();
        let ledger = &mut *self.ledger();
        for page in pages(hpa, size) {
            assert!(ledger.out.remove(&page), "{page:#x} was never out");
        }
        ledger.free.push((hpa, size));
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap()
    }

    /// Returns the number of allocated 4 KiB pages.
    pub fn pages_out(&self) -> u64 {
        self.ledger().out.len() as u64
    }

    pub fn assert_all_back(&self) {
        let out = &self.ledger().out;
        assert!(out.is_empty(), "still out: {out:x?}");
    }
}

fn pages(hpa: Hpa, size: PageSize) -> impl Iterator<Item = u64> {
    (hpa.0..hpa.0 + size.bytes()).step_by(PAGE_4K as usize)
}

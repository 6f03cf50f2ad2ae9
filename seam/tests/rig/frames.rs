//! The frame allocator of the tests: hands out tokens, and keeps a ledger of them.

use core::ops::Range;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use seam::abi::{PAGE_4K, PageSize};
use seam::address::Hpa;
use seam::page::{Clean, Page};

pub struct Frames(Mutex<Ledger>);

struct Ledger {
    /// Frames that never left yet.
    rest: Range<u64>,
    free: Vec<(Hpa, PageSize)>,
    /// The 4 KiB pages that are out: a large frame may come back in parts.
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

    /// Hands out a frame, preferably one that was out before.
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

    /// Takes a frame back.
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

    /// 4 KiB pages that are out.
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

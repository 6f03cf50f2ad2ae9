//! Counts of what a TD owns, and pending work: pages that left the TD and are not written back yet, and ranges to be
//! freed.

use alloc::vec::Vec;
use core::ops::Range;

use super::error::Error;
use seam::abi::PageSize;
use seam::page::{Cached, Page};

use sync::Mutex;
use sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Memory that a TD owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Private pages of 4 KiB, 2 MiB and 1 GiB.
    pub pages: [u64; 3],
    /// Pages of its S-EPT.
    pub sept: u64,
    /// Pages that left the TD and could not be written back yet.
    pub stranded: u64,
}

impl Holding {
    /// Returns the bytes of private memory.
    pub fn bytes(&self) -> u64 {
        let all = self.pages.iter().zip(PageSize::ALL);
        all.map(|(pages, size)| pages * size.bytes()).sum()
    }
}

/// The counts, and the pages and ranges still to be processed.
#[derive(Debug)]
pub(super) struct Stock {
    pages: [AtomicU64; 3],
    sept: AtomicU64,
    sept_limit: u64,
    made_whole: AtomicU64,
    stranded: Mutex<Vec<Page<Cached>>>,
    queued: Mutex<Vec<Range<u64>>>,
}

impl Stock {
    /// Creates empty counts of a TD that may have at most `sept_limit` pages of S-EPT.
    pub const fn new(sept_limit: u64) -> Self {
        Self {
            pages: [const { AtomicU64::new(0) }; 3],
            sept: AtomicU64::new(0),
            sept_limit,
            made_whole: AtomicU64::new(0),
            stranded: Mutex::new(Vec::new()),
            queued: Mutex::new(Vec::new()),
        }
    }

    pub fn holding(&self) -> Holding {
        Holding {
            pages: [0, 1, 2].map(|size| self.pages[size as usize].load(Relaxed)),
            sept: self.sept.load(Relaxed),
            stranded: self.stranded.lock().len() as u64,
        }
    }

    pub fn add_page(&self, size: PageSize) {
        self.pages[size as usize].fetch_add(1, Relaxed);
    }

    pub fn remove_pages(&self, size: PageSize, count: u64) {
        self.pages[size as usize].fetch_sub(count, Relaxed);
    }

    /// Counts `pages` private pages, by size, and `sept` pages of the S-EPT as gone.
    pub fn remove(&self, pages: [u64; 3], sept: u64) {
        for (size, count) in PageSize::ALL.into_iter().zip(pages) {
            self.remove_pages(size, count);
        }
        self.remove_sept(sept);
    }

    /// Counts a page of `size` as 512 of the next smaller size.
    pub fn split(&self, size: PageSize) {
        self.pages[size as usize].fetch_sub(1, Relaxed);
        self.pages[size as usize - 1].fetch_add(512, Relaxed);
    }

    /// Counts 512 pages as one page of `size`.
    pub fn merge(&self, size: PageSize) {
        self.pages[size as usize - 1].fetch_sub(512, Relaxed);
        self.pages[size as usize].fetch_add(1, Relaxed);
    }

    /// Returns the number of 2 MiB pages joined in idle time.
    pub fn made_whole(&self) -> u64 {
        self.made_whole.load(Relaxed)
    }

    pub fn add_made_whole(&self) {
        self.made_whole.fetch_add(1, Relaxed);
    }

    /// Counts a page of the S-EPT that is about to be linked.
    ///
    /// # Errors
    /// [`Error::TooManyTables`] when the TD has all that it may have.
    pub fn add_sept(&self) -> Result<(), Error> {
        let more = |sept| (sept < self.sept_limit).then_some(sept + 1);
        match self.sept.fetch_update(Relaxed, Relaxed, more) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::TooManyTables(self.sept_limit)),
        }
    }

    pub fn remove_sept(&self, count: u64) {
        self.sept.fetch_sub(count, Relaxed);
    }

    /// Keeps a page that left the TD and could not be written back.
    ///
    /// # Errors
    /// Returns the page when there is no memory to keep it.
    pub fn strand(&self, page: Page<Cached>) -> Result<(), Page<Cached>> {
        let mut stranded = self.stranded.lock();
        if stranded.try_reserve(1).is_err() {
            return Err(page);
        }
        stranded.push(page);
        Ok(())
    }

    /// Takes a page whose write-back is to be tried again.
    pub fn next_stranded(&self) -> Option<Page<Cached>> {
        self.stranded.lock().pop()
    }

    /// Queues a range to be freed. Returns `false` when there is no memory for it.
    pub fn queue(&self, range: Range<u64>) -> bool {
        let mut queued = self.queued.lock();
        if queued.try_reserve(1).is_err() {
            return false;
        }
        queued.push(range);
        true
    }

    /// Takes a range from the queue.
    pub fn next_queued(&self) -> Option<Range<u64>> {
        self.queued.lock().pop()
    }
}

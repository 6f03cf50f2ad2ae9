//! Source and destination of a TD's frames: the host's frame allocator behind a lock, its memory behind a direct map,
//! and uncleared frames of dead TDs that are kept for other TDs.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use seam::abi::PageSize;
use seam::address::Hpa;
use seam::page::{Clean, Clear, Dirty, Page, Run, State};

use crate::frames::{
    Allocated, FRAME, Frame, Frames, ORDER_1G, ORDER_2M, ORDER_4K, ORDERS, Range, Retired,
};
use crate::pages::{Flush, frame_of, lost_frame_of, page_of};
use sync::Mutex;
use sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

/// Allocation of the host's frames for a TD's memory.
pub trait Pool {
    /// Allocates a frame for a TD. Returns `None` when there is none of that size.
    fn take(&self, size: PageSize) -> Option<Page<Clean>>;

    /// Allocates exactly the frame at `hpa`, for a TD. Returns `None` when it is not available.
    fn take_at(&self, hpa: Hpa, size: PageSize) -> Option<Page<Clean>>;

    /// Returns the bytes that can be allocated now, in frames of any size.
    fn free_bytes(&self) -> u64;

    /// Frees pages, all under one lock.
    fn give(&self, pages: impl Iterator<Item = Page<Clean>>);

    /// Clears at most 2 MiB.
    fn clear(&self, page: Page<Dirty>) -> Page<Clean>;

    /// Keeps an uncleared frame, for a TD alone.
    ///
    /// # Errors
    /// Returns the page when it cannot be kept and must be cleared.
    fn keep(&self, page: Page<Dirty>) -> Result<(), Page<Dirty>>;

    /// Takes a frame whose owner is in doubt out of use for good.
    fn quarantine<S: State>(&self, page: Page<S>);

    /// Notes that an allocated large frame will be freed in parts of the next smaller size.
    fn split(&self, hpa: Hpa, size: PageSize);

    /// Notes that allocated parts of the next smaller size are one large frame again.
    fn merge(&self, hpa: Hpa, size: PageSize);
}

/// Access to the frame allocator, independent of its lock.
pub trait Ledger {
    /// Calls `work` with exclusive access to the allocator. `work` neither allocates nor frees heap memory, because the
    /// heap takes its memory from the same allocator.
    fn with<R>(&self, work: impl FnOnce(&mut Frames) -> R) -> R;

    /// Returns the free memory in ascending order. Adjacent blocks form one range.
    fn free_ranges(&self) -> Vec<Range> {
        let mut ranges = Vec::new();
        while let Err(blocks) = self.with(|frames| frames.free_ranges(&mut ranges)) {
            // The allocation may itself split a block.
            ranges.reserve(blocks + ORDERS);
        }
        ranges
    }
}

impl Ledger for spin::Mutex<Frames> {
    fn with<R>(&self, work: impl FnOnce(&mut Frames) -> R) -> R {
        work(&mut self.lock())
    }
}

/// Maximum number of dead TDs' frames kept uncleared, for each size. The list then takes 2 MiB of the heap.
const MAX_KEPT: usize = 1 << 18;

/// Number of frames, counted from the last one kept, that are searched for a wanted frame: a guest that takes a page
/// back has usually given it up a moment ago.
const LOOKED_THROUGH: usize = 1024;

/// A pool of the host's frames.
#[derive(Debug)]
pub struct FramePool<L, M> {
    ledger: L,
    memory: M,
    kept: Mutex<[Vec<Page<Dirty>>; 3]>,
    refused: AtomicU64,
    /// Set once a page is broken. From then on no uncleared frame is kept, since a kept frame does not pass the
    /// allocator.
    has_broken: AtomicBool,
}

impl<L: Ledger, M: Flush + Clear> FramePool<L, M> {
    /// Creates a pool of the frames of `ledger`, whose memory `memory` reaches.
    pub const fn new(ledger: L, memory: M) -> Self {
        Self {
            ledger,
            memory,
            kept: Mutex::new([Vec::new(), Vec::new(), Vec::new()]),
            refused: AtomicU64::new(0),
            has_broken: AtomicBool::new(false),
        }
    }

    /// Returns the allocator.
    pub const fn ledger(&self) -> &L {
        &self.ledger
    }

    /// Returns the bytes in uncleared frames that are kept for TDs.
    pub fn kept_bytes(&self) -> u64 {
        let kept = self.kept.lock();
        let bytes = kept.iter().zip(PageSize::ALL);
        bytes
            .map(|(pages, size)| pages.len() as u64 * size.bytes())
            .sum()
    }

    /// Clears and frees one of the kept frames. Returns `false` when there is none.
    pub fn clear_kept(&self) -> bool {
        let page = self.kept.lock().iter_mut().find_map(Vec::pop);
        match page {
            Some(page) => {
                self.give(core::iter::once(clear_all(self, page)));
                true
            }
            None => false,
        }
    }

    /// Takes the 4 KiB page at `hpa`, whose memory is broken, out of use, now or when it is freed.
    ///
    /// # Errors
    /// As [`Frames::retire`].
    pub fn retire(&self, hpa: Hpa) -> Result<Retired, crate::frames::FrameError> {
        self.has_broken.store(true, SeqCst);
        let retired = self.ledger.with(|frames| frames.retire(hpa.0));
        while self.clear_kept() {}
        retired
    }

    /// Returns the number of requests that the allocator refused although the TD's books have the frame. Anything but
    /// zero is a bug of the host. The frames stay allocated.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn alloc(&self, size: PageSize) -> Option<Page<Clean>> {
        let allocated = self
            .ledger
            .with(|frames| frames.alloc_page(order(size)))
            .ok()?;
        self.page_of(allocated)
    }

    fn page_of(&self, allocated: Allocated) -> Option<Page<Clean>> {
        match page_of(allocated, &self.memory) {
            Ok(page) => Some(page),
            Err(_) => {
                self.note(self.ledger.with(|frames| frames.free(allocated.frame)));
                None
            }
        }
    }

    fn note(&self, result: Result<(), crate::frames::FrameError>) {
        if let Err(error) = result {
            log::error!("a TD's frame: {error}");
            self.refused.fetch_add(1, Relaxed);
        }
    }
}

/// Stands in for clearing when the next owner is a TD: the module writes the page before the guest can read it.
struct Unread;

impl Clear for Unread {
    fn clear(&self, _: Hpa, _: PageSize) {}
}

impl<L: Ledger, M: Flush + Clear> Pool for FramePool<L, M> {
    fn take(&self, size: PageSize) -> Option<Page<Clean>> {
        let kept = self.kept.lock()[size as usize].pop();
        if let Some(page) = kept {
            return Some(page.clear(&Unread));
        }
        loop {
            if let Some(page) = self.alloc(size) {
                return Some(page);
            }
            if !self.clear_kept() {
                return None;
            }
        }
    }

    fn take_at(&self, hpa: Hpa, size: PageSize) -> Option<Page<Clean>> {
        let frame = frame(hpa, size);
        if let Ok(allocated) = self.ledger.with(|frames| frames.alloc_page_at(frame)) {
            return self.page_of(allocated);
        }
        let pages = &mut self.kept.lock()[size as usize];
        let first = pages.len().saturating_sub(LOOKED_THROUGH);
        let found = pages[first..].iter().rposition(|page| page.hpa() == hpa)?;
        Some(pages.swap_remove(first + found).clear(&Unread))
    }

    fn free_bytes(&self) -> u64 {
        let free = self.ledger.with(|frames| {
            let counts = frames.counts().iter().enumerate();
            counts
                .map(|(order, c)| c.free * (FRAME << order))
                .sum::<u64>()
        });
        free + self.kept_bytes()
    }

    fn give(&self, pages: impl Iterator<Item = Page<Clean>>) {
        self.ledger.with(|frames| {
            for page in pages {
                // No cache has a dirty line of a clean page.
                self.note(frames.free_flushed(frame_of(page)));
            }
        });
    }

    fn clear(&self, page: Page<Dirty>) -> Page<Clean> {
        page.clear(&self.memory)
    }

    fn keep(&self, page: Page<Dirty>) -> Result<(), Page<Dirty>> {
        let pages = &mut self.kept.lock()[page.size() as usize];
        if self.has_broken.load(SeqCst) {
            return Err(page);
        }
        if pages.len() == MAX_KEPT || pages.try_reserve(1).is_err() {
            return Err(page);
        }
        pages.push(page);
        Ok(())
    }

    fn quarantine<S: State>(&self, page: Page<S>) {
        let frame = lost_frame_of(page);
        self.note(self.ledger.with(|frames| frames.quarantine(frame)));
    }

    fn split(&self, hpa: Hpa, size: PageSize) {
        if let Some(smaller) = smaller(size) {
            let frame = frame(hpa, size);
            self.note(self.ledger.with(|f| f.split(frame, order(smaller))));
        }
    }

    fn merge(&self, hpa: Hpa, size: PageSize) {
        if let Some(smaller) = smaller(size) {
            let frame = frame(hpa, size);
            self.note(self.ledger.with(|f| f.merge(frame, order(smaller))));
        }
    }
}

/// Pages to be freed together: the allocator is locked once for many of them.
pub(super) struct Home<'a, P: Pool> {
    pool: &'a P,
    pages: ArrayVec<Page<Clean>, AT_ONCE>,
}

const AT_ONCE: usize = 64;

impl<'a, P: Pool> Home<'a, P> {
    pub const fn new(pool: &'a P) -> Self {
        Self {
            pool,
            pages: ArrayVec::new_const(),
        }
    }

    pub fn push(&mut self, page: Page<Clean>) {
        if let Err(full) = self.pages.try_push(page) {
            self.go();
            self.pool.give(core::iter::once(full.element()));
        }
    }

    /// Frees the collected pages.
    pub fn go(&mut self) {
        if !self.pages.is_empty() {
            self.pool.give(self.pages.drain(..));
        }
    }
}

impl<P: Pool> Drop for Home<'_, P> {
    fn drop(&mut self) {
        self.go();
    }
}

/// Clears a page of any size.
pub(super) fn clear_all<P: Pool>(pool: &P, page: Page<Dirty>) -> Page<Clean> {
    if page.size() < PageSize::Size1G {
        return pool.clear(page);
    }
    let mut whole: Option<Run<Clean>> = None;
    let mut parts = match page.split() {
        Ok(parts) => parts,
        Err(page) => return pool.clear(page),
    };
    // 512 adjacent pages of 2 MiB, in order, always join into one page.
    if let Some(first) = parts.next() {
        let mut run = Run::from(pool.clear(first));
        for part in parts {
            if let Err(stray) = run.push(pool.clear(part)) {
                pool.quarantine(stray);
            }
        }
        whole = Some(run);
    }
    match whole.map(Run::join) {
        Some(Ok(page)) => page,
        _ => unreachable!("512 pages in order are one larger page"),
    }
}

const fn order(size: PageSize) -> u32 {
    match size {
        PageSize::Size4K => ORDER_4K,
        PageSize::Size2M => ORDER_2M,
        PageSize::Size1G => ORDER_1G,
    }
}

pub(super) const fn smaller(size: PageSize) -> Option<PageSize> {
    match size {
        PageSize::Size4K => None,
        PageSize::Size2M => Some(PageSize::Size4K),
        PageSize::Size1G => Some(PageSize::Size2M),
    }
}

const fn frame(hpa: Hpa, size: PageSize) -> Frame {
    Frame {
        pa: hpa.0,
        order: order(size),
    }
}

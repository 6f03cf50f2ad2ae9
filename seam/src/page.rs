//! Ownership of frames as types: a page that moves between the host and the TDX module.
//!
//! ```text
//!            mint           a call that takes it            REMOVE, RELOCATE, PROMOTE
//! allocator ------> Clean ------------------------> Donated -------------------------> Cached
//!     ^               |  ^                             |                                 | PAGE.WBINVD
//!     |   surrender   |  |          clear              |          RECLAIM                v
//!     +---------------+  +-----------------------------+------------------------------> Dirty
//!                              (from Dirty alone)
//! ```
//!
//! A [`Page`] can't be copied: its owner is responsible for the frame. A call that donates a page takes it by value,
//! and returns it in its error if the module refused. [`Page::mint`] and [`Page::surrender`] connect the tokens to the
//! rest of the host, and only its frame allocator calls them. [`Page::give_up`] leads to quarantine. The frame of a
//! dropped page is never used again; that is safe, and counted in [`lost_pages`].

use core::fmt;
use core::mem;
use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::abi::{PAGE_MASK, PageSize};
use crate::address::Hpa;
use crate::tdh::{Keyless, Tdr};

mod sealed {
    pub trait Sealed: Copy + PartialEq + core::fmt::Debug {}
}

/// The state of a page's frame. Sealed: there are only these four.
pub trait State: sealed::Sealed {}

/// Owned by the host, with no data of another key in it and no dirty line of it in any cache. It may be donated to the
/// module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clean;

/// Owned by the module. The host must not touch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Donated;

/// Returned by the module while caches may hold lines of it under a private key. The next step is
/// TDH.PHYMEM.PAGE.WBINVD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    pub(crate) hkid: u16,
}

/// Returned by the module and written back, but still holding data encrypted with another key. It must be cleared
/// before any read or partial write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirty;

impl sealed::Sealed for Clean {}
impl sealed::Sealed for Donated {}
impl sealed::Sealed for Cached {}
impl sealed::Sealed for Dirty {}
impl State for Clean {}
impl State for Donated {}
impl State for Cached {}
impl State for Dirty {}

/// One frame of 4 KiB, 2 MiB or 1 GiB in state `S`. It takes eight bytes in most states, also in an `Option`, so that a
/// mirror of a TD's memory can consist of pages.
#[must_use = "a dropped page is a frame lost"]
pub struct Page<S: State> {
    /// Bits 51:12 are the address, bits 2:1 the size. Bit 0 is set so that the value is never zero.
    raw: NonZeroU64,
    state: S,
}

const _: () = assert!(size_of::<Option<Page<Donated>>>() == 8);

impl Page<Clean> {
    /// Creates the token of a frame that just left the frame allocator. Only the allocator may call this, once each
    /// time it hands out the frame. Nobody else may map the frame, and no cache may hold a dirty line of it, because
    /// such a line would overwrite the module's data: the frame was flushed with CLFLUSH, or cleared with MOVDIR64B and
    /// not written since.
    ///
    /// The workspace's `clippy.toml` forbids it elsewhere.
    ///
    /// Returns `None` if `hpa` is not aligned to `size` or not below 2^52.
    pub fn mint(hpa: Hpa, size: PageSize) -> Option<Self> {
        if hpa.0 & (size.bytes() - 1) != 0 || hpa.0 & !PAGE_MASK != 0 {
            return None;
        }
        Some(Self::from_parts(hpa, size, Clean))
    }

    /// Consumes the token: the frame belongs to the allocator again.
    pub fn surrender(self) -> (Hpa, PageSize) {
        self.give_up()
    }
}

impl<S: State> Page<S> {
    fn from_parts(hpa: Hpa, size: PageSize, state: S) -> Self {
        Self {
            raw: NonZeroU64::MIN | hpa.0 | (size as u64) << 1,
            state,
        }
    }

    /// Returns the page's address.
    pub fn hpa(&self) -> Hpa {
        Hpa(self.raw.get() & PAGE_MASK)
    }

    /// Returns the page's size.
    pub fn size(&self) -> PageSize {
        match self.raw.get() >> 1 & 3 {
            0 => PageSize::Size4K,
            1 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }

    /// Moves the frame to another state.
    pub(crate) fn turn<T: State>(self, state: T) -> Page<T> {
        let raw = self.raw;
        mem::forget(self);
        Page { raw, state }
    }

    /// Consumes the token of a frame that can't be used again because its owner is unknown. The allocator quarantines
    /// the frame permanently.
    pub fn give_up(self) -> (Hpa, PageSize) {
        let parts = (self.hpa(), self.size());
        mem::forget(self);
        parts
    }

    /// Splits the page into 512 pages of the next smaller size.
    ///
    /// # Errors
    /// Returns a 4 KiB page unchanged.
    pub fn split(self) -> Result<Run<S>, Self> {
        let size = match self.size() {
            PageSize::Size4K => return Err(self),
            PageSize::Size2M => PageSize::Size4K,
            PageSize::Size1G => PageSize::Size2M,
        };
        let run = Run {
            next: self.hpa(),
            left: PAGES_IN_LARGER,
            size,
            state: self.state,
        };
        mem::forget(self);
        Ok(run)
    }
}

impl Page<Donated> {
    /// Marks the page as returned by the module while its key lives: caches may hold lines of it.
    pub(crate) fn returned(self, hkid: u16) -> Page<Cached> {
        self.turn(Cached { hkid })
    }
}

impl Page<Cached> {
    /// Returns the HKID whose lines may be in the caches.
    pub fn hkid(&self) -> u16 {
        self.state.hkid
    }
}

impl Page<Cached> {
    /// Skips TDH.PHYMEM.PAGE.WBINVD for a page that left a TD before the TD lost its key. The caches of all packages
    /// were written back before TDH.MNG.KEY.FREEID took the key away.
    pub fn outlived(self, _: &Tdr<Keyless>) -> Page<Dirty> {
        self.turn(Dirty)
    }
}

/// Zeroes whole frames with direct stores (MOVDIR64B) and orders them (MFENCE). The host's memory management implements
/// it.
///
/// No other write is allowed: on CPUs with the partial-write erratum, a smaller or cached write to memory that was a
/// TD's poisons the line, and the next read is a machine check.
pub trait Clear {
    /// Clears `size.bytes()` bytes from `hpa`.
    fn clear(&self, hpa: Hpa, size: PageSize);
}

impl Page<Dirty> {
    /// Clears the frame. It is then as clean as a frame that never left the host.
    pub fn clear(self, by: &impl Clear) -> Page<Clean> {
        by.clear(self.hpa(), self.size());
        self.turn(Clean)
    }
}

impl<S: State> fmt::Debug for Page<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.state, self.size(), self.hpa())
    }
}

impl<S: State> Drop for Page<S> {
    fn drop(&mut self) {
        LOST_PAGES.fetch_add(self.size().pages(), Ordering::Relaxed);
    }
}

/// Number of pages of one size in a page of the next.
const PAGES_IN_LARGER: u64 = 512;

/// Adjacent pages of one size and state, taken from the front and added at the end. TDH.MEM.PAGE.DEMOTE turns a large
/// page into a run, and TDH.MEM.PAGE.PROMOTE turns a run into a large page.
#[must_use = "a dropped run is its frames lost"]
pub struct Run<S: State> {
    next: Hpa,
    left: u64,
    size: PageSize,
    state: S,
}

impl<S: State> Run<S> {
    /// Adds a page at the end.
    ///
    /// # Errors
    /// Returns the page if it does not follow the last one, or differs in size or state.
    pub fn push(&mut self, page: Page<S>) -> Result<(), Page<S>> {
        let end = self.next.0 + self.left * self.size.bytes();
        if page.hpa().0 != end || page.size() != self.size || page.state != self.state {
            return Err(page);
        }
        mem::forget(page);
        self.left += 1;
        Ok(())
    }

    /// Joins 512 pages into one.
    ///
    /// # Errors
    /// Returns the run if it is not 512 pages from an aligned address on, or if they are 1 GiB pages.
    pub fn join(self) -> Result<Page<S>, Self> {
        let size = match self.size {
            PageSize::Size4K => PageSize::Size2M,
            PageSize::Size2M => PageSize::Size1G,
            PageSize::Size1G => return Err(self),
        };
        if self.left != PAGES_IN_LARGER || self.next.0 & (size.bytes() - 1) != 0 {
            return Err(self);
        }
        let page = Page::from_parts(self.next, size, self.state);
        mem::forget(self);
        Ok(page)
    }

    /// Returns the address of the first page.
    pub fn hpa(&self) -> Hpa {
        self.next
    }

    /// Returns the size of each page.
    pub fn size(&self) -> PageSize {
        self.size
    }
}

impl<S: State> From<Page<S>> for Run<S> {
    fn from(page: Page<S>) -> Self {
        let run = Self {
            next: page.hpa(),
            left: 1,
            size: page.size(),
            state: page.state,
        };
        mem::forget(page);
        run
    }
}

impl<S: State> Iterator for Run<S> {
    type Item = Page<S>;

    fn next(&mut self) -> Option<Page<S>> {
        self.left = self.left.checked_sub(1)?;
        let page = Page::from_parts(self.next, self.size, self.state);
        self.next.0 += self.size.bytes();
        Some(page)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl<S: State> ExactSizeIterator for Run<S> {}

impl<S: State> fmt::Debug for Run<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            next,
            left,
            size,
            state,
        } = self;
        write!(f, "{left} {state:?} {size:?} from {next:?}")
    }
}

impl<S: State> Drop for Run<S> {
    fn drop(&mut self) {
        LOST_PAGES.fetch_add(self.left * self.size.pages(), Ordering::Relaxed);
    }
}

/// Number of 4 KiB pages dropped since boot.
static LOST_PAGES: AtomicU64 = AtomicU64::new(0);

/// Returns the number of 4 KiB pages that were dropped instead of given back since boot. Any value but zero is a bug of
/// the host.
pub fn lost_pages() -> u64 {
    LOST_PAGES.load(Ordering::Relaxed)
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "the test plays the allocator and the pool"
)]
mod tests {
    use super::*;

    fn clean(hpa: u64, size: PageSize) -> Page<Clean> {
        Page::mint(Hpa(hpa), size).unwrap()
    }

    #[test]
    fn only_an_aligned_frame_gets_a_token() {
        assert!(Page::mint(Hpa(0x1000), PageSize::Size2M).is_none());
        assert!(Page::mint(Hpa(1 << 52), PageSize::Size4K).is_none());
        for size in PageSize::ALL {
            assert_eq!(clean(1 << 40, size).surrender(), (Hpa(1 << 40), size));
            assert_eq!(clean(0, size).surrender(), (Hpa(0), size));
        }
    }

    #[test]
    fn a_large_page_splits_into_512_and_joins_again() {
        let mut parts = clean(0x4000_0000, PageSize::Size2M).split().unwrap();
        assert_eq!(parts.len(), 512);
        let mut run = Run::from(parts.next().unwrap());
        let second = parts.next().unwrap();
        assert_eq!(second.hpa(), Hpa(0x4000_1000));
        let third = parts.next().unwrap();
        let third = run.push(third).expect_err("the second is missing");
        run.push(second).unwrap();
        run.push(third).unwrap();
        let mut run = run.join().expect_err("too few");
        for page in parts {
            run.push(page).unwrap();
        }
        let (hpa, size) = run.join().unwrap().surrender();
        assert_eq!((hpa, size), (Hpa(0x4000_0000), PageSize::Size2M));
    }

    #[test]
    fn a_dirty_page_is_clean_once_cleared() {
        struct Log(core::cell::Cell<Option<(Hpa, PageSize)>>);
        impl Clear for Log {
            fn clear(&self, hpa: Hpa, size: PageSize) {
                self.0.set(Some((hpa, size)));
            }
        }
        let log = Log(core::cell::Cell::new(None));
        let page = clean(0x20_0000, PageSize::Size2M).turn(Donated);
        let page = page.returned(33);
        assert_eq!(page.hkid(), 33);
        let cleared = page.turn(Dirty).clear(&log).surrender();
        assert_eq!(log.0.get(), Some(cleared));
    }
}

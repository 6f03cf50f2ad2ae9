//! Conversion between the allocator's frames and page tokens. Tokens are made from frames nowhere else.
//!
//! A [`Frame`] of the allocator identifies memory; a token ([`Page`]) identifies its owner. A frame allocated for the
//! module becomes a token here, outside the allocator's lock, and a clean token becomes a frame again. In between, the
//! ledger counts the frame as allocated.

use core::fmt;

use seam::{
    abi::PageSize,
    address::Hpa,
    page::{Clean, Page, State},
};

use crate::frames::{Allocated, Frame, ORDER_1G, ORDER_2M, ORDER_4K};

/// Flushes every cache line of a frame (CLFLUSH), then executes MFENCE.
///
/// The module accesses the page with another KeyID. A cache line that the host wrote back later would overwrite what
/// the module stored there.
pub trait Flush {
    /// Flushes `size.bytes()` bytes from `hpa`.
    fn flush(&self, hpa: Hpa, size: PageSize);
}

/// A frame that cannot be a page: it has none of the three sizes, or is not aligned. It is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAPage(pub Frame);

impl fmt::Display for NotAPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frame { pa, order } = self.0;
        write!(f, "the frame at {pa:#x} of order {order} is no page")
    }
}

/// Turns a newly allocated, unused frame into a token. Its cache lines are flushed first, unless no cache has a dirty
/// one.
///
/// # Errors
/// [`NotAPage`].
pub fn page_of(
    Allocated { frame, flushed }: Allocated,
    by: &impl Flush,
) -> Result<Page<Clean>, NotAPage> {
    let hpa = Hpa(frame.pa);
    let size = match frame.order {
        ORDER_4K => PageSize::Size4K,
        ORDER_2M => PageSize::Size2M,
        ORDER_1G => PageSize::Size1G,
        _ => return Err(NotAPage(frame)),
    };
    if !frame.pa.is_multiple_of(size.bytes()) {
        return Err(NotAPage(frame));
    }
    if !flushed {
        by.flush(hpa, size);
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the allocator makes tokens"
    )]
    Page::mint(hpa, size).ok_or(NotAPage(frame))
}

/// Returns the frame of a clean token, for the caller to free. Its order is that which the ledger has for it now.
#[must_use = "the frame is still allocated"]
pub fn frame_of(page: Page<Clean>) -> Frame {
    frame(page.surrender())
}

/// Returns the frame of a token that cannot be recovered, for the caller to quarantine.
#[must_use = "the frame is still allocated"]
pub fn lost_frame_of<S: State>(page: Page<S>) -> Frame {
    frame(page.give_up())
}

fn frame((hpa, size): (Hpa, PageSize)) -> Frame {
    let order = match size {
        PageSize::Size4K => ORDER_4K,
        PageSize::Size2M => ORDER_2M,
        PageSize::Size1G => ORDER_1G,
    };
    Frame { pa: hpa.0, order }
}

#[cfg(test)]
mod tests {
    use alloc::{boxed::Box, vec, vec::Vec};
    use core::cell::RefCell;

    use super::*;
    use crate::frames::{Frames, words_for};

    #[derive(Default)]
    struct Log(RefCell<Vec<(Hpa, PageSize)>>);

    impl Flush for Log {
        fn flush(&self, hpa: Hpa, size: PageSize) {
            self.0.borrow_mut().push((hpa, size));
        }
    }

    fn frames() -> Frames {
        let span = (1 << 30, 3 << 30);
        let mut frames = Frames::new();
        let words = Box::leak(vec![0; words_for(span)].into_boxed_slice());
        frames.add_zone(span, words).unwrap();
        frames.add(span).unwrap();
        frames
    }

    const fn unflushed(frame: Frame) -> Allocated {
        Allocated {
            frame,
            flushed: false,
        }
    }

    #[test]
    fn a_frame_without_dirty_lines_is_flushed_no_more() {
        let mut frames = frames();
        let log = Log::default();
        let first = frames.alloc_page(ORDER_2M).unwrap();
        assert!(!first.flushed);
        let page = page_of(first, &log).unwrap();
        frames.free_flushed(frame_of(page)).unwrap();
        let again = frames.alloc_page_at(first.frame).unwrap();
        assert!(again.flushed);
        let page = page_of(again, &log).unwrap();
        assert_eq!(log.0.borrow().len(), 1);
        // The host had a part of it in between, and may have written there.
        frames.free_flushed(frame_of(page)).unwrap();
        let part = Frame {
            pa: first.frame.pa,
            order: ORDER_4K,
        };
        frames
            .alloc_range((part.pa, part.pa + part.bytes()))
            .unwrap();
        frames.free(part).unwrap();
        assert!(!frames.alloc_page_at(first.frame).unwrap().flushed);
    }

    #[test]
    fn a_frame_is_handed_out_flushed_and_returns_unchanged() {
        let mut frames = frames();
        let before = *frames.counts();
        for order in [ORDER_4K, ORDER_2M, ORDER_1G] {
            let log = Log::default();
            let frame = frames.alloc(order).unwrap();
            let page = page_of(unflushed(frame), &log).unwrap();
            assert_eq!(*log.0.borrow(), [(page.hpa(), page.size())]);
            assert_eq!(page.size().bytes(), frame.bytes());
            let home = frame_of(page);
            assert_eq!(home, frame);
            frames.free(home).unwrap();
        }
        assert_eq!(*frames.counts(), before);
    }

    #[test]
    fn a_frame_that_is_no_page_is_left_alone() {
        let log = Log::default();
        for frame in [
            Frame { pa: 0, order: 3 },
            Frame {
                pa: 0x1000,
                order: ORDER_2M,
            },
        ] {
            assert_eq!(page_of(unflushed(frame), &log).err(), Some(NotAPage(frame)));
        }
        assert!(log.0.borrow().is_empty());
    }

    #[test]
    fn a_split_large_page_is_freed_in_parts() {
        let mut frames = frames();
        let before = *frames.counts();
        let large = frames.alloc(ORDER_2M).unwrap();
        let parts = page_of(unflushed(large), &Log::default())
            .unwrap()
            .split()
            .unwrap();
        frames.split(large, ORDER_4K).unwrap();
        for part in parts {
            frames.free(frame_of(part)).unwrap();
        }
        assert_eq!(*frames.counts(), before);
    }

    #[test]
    fn a_frame_in_doubt_is_never_handed_out_again() {
        let mut frames = frames();
        let frame = frames.alloc(ORDER_2M).unwrap();
        let page = page_of(unflushed(frame), &Log::default()).unwrap();
        frames.quarantine(lost_frame_of(page)).unwrap();
        assert_eq!(frames.counts()[ORDER_2M as usize].quarantined, 1);
        while let Ok(other) = frames.alloc(ORDER_2M) {
            assert_ne!(other, frame);
        }
    }
}

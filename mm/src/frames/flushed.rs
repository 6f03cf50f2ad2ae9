//! The blocks that were freed last without a dirty line in a cache. They need no flush when they are allocated next.

use arrayvec::ArrayVec;

use super::{Frame, Range};

/// Number of blocks that are remembered. Each allocation compares itself with all of them, which takes less than the
/// flush of a 4 KiB page.
const REMEMBERED: usize = 64;

/// Free blocks of which no cache has a dirty line, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Flushed(ArrayVec<Frame, REMEMBERED>);

impl Flushed {
    /// Notes that a block was freed.
    pub fn note(&mut self, frame: Frame) {
        if self.0.is_full() {
            self.0.remove(0);
        }
        self.0.push(frame);
    }

    /// Forgets everything in `range`, which is being allocated. Returns true if no cache has a dirty line of it.
    pub fn take(&mut self, range: Range) -> bool {
        let mut whole = false;
        self.0.retain(|frame| {
            let (start, end) = (frame.pa, frame.pa + frame.bytes());
            whole |= start <= range.0 && range.1 <= end;
            end <= range.0 || range.1 <= start
        });
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn frame(pa: u64, order: u32) -> Frame {
        Frame { pa, order }
    }

    #[test]
    fn a_block_is_flushed_until_a_part_of_it_is_allocated() {
        let mut flushed = Flushed::default();
        flushed.note(frame(0x20_0000, 9));
        assert!(!flushed.take((0x40_0000, 0x40_1000)));
        assert!(flushed.take((0x20_1000, 0x20_2000)));
        assert!(!flushed.take((0x20_1000, 0x20_2000)));
        flushed.note(frame(0x1000, 0));
        assert!(!flushed.take((0, 0x4000)), "only a part of it");
        assert!(!flushed.take((0x1000, 0x2000)));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut flushed = Flushed::default();
        for i in 0..=REMEMBERED as u64 {
            flushed.note(frame(i * 0x1000, 0));
        }
        assert!(!flushed.take((0, 0x1000)));
        assert!(flushed.take((0x1000, 0x2000)));
    }
}

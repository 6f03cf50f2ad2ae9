//! One zone: the free and the allocated blocks of a span of memory, in bitmaps.

use alloc::vec::Vec;

use super::bitmap::Bitmap;
use super::{Counts, FRAME, Frame, ORDER_1G, ORDERS, Range};

/// Returns the number of 64-bit words of bookkeeping for a zone of `span`: about 4 bits for each 4 KiB.
#[must_use]
pub fn words_for(span: Range) -> usize {
    let mut next = 0;
    for order in 0..ORDERS {
        let bits = Zone::bits(span, order as u32);
        Bitmap::layout(&mut next, bits);
        next += bits.div_ceil(64);
    }
    next
}

/// The memory of one span. Block indices count from `base`, which is aligned to the largest block.
#[derive(Debug)]
pub struct Zone {
    base: u64,
    span: Range,
    /// The ranges that were added.
    pub added: Vec<Range>,
    words: &'static mut [u64],
    free: [Bitmap; ORDERS],
    used: [usize; ORDERS],
}

impl Zone {
    /// Creates a zone without memory. `words` are [`words_for`] `span` zeroed words.
    pub fn new(span: Range, words: &'static mut [u64]) -> Self {
        let mut next = 0;
        let mut used = [0; ORDERS];
        let free = core::array::from_fn(|order| {
            let bits = Self::bits(span, order as u32);
            let free = Bitmap::layout(&mut next, bits);
            used[order] = next;
            next += bits.div_ceil(64);
            free
        });
        Self {
            base: Self::base(span),
            span,
            added: Vec::new(),
            words,
            free,
            used,
        }
    }

    fn base(span: Range) -> u64 {
        span.0 / (FRAME << ORDER_1G) * (FRAME << ORDER_1G)
    }

    fn bits(span: Range, order: u32) -> usize {
        (span.1 - Self::base(span)).div_ceil(FRAME << order) as usize
    }

    /// Returns the first address.
    pub fn start(&self) -> u64 {
        self.span.0
    }

    /// Returns the address after the last byte.
    pub fn end(&self) -> u64 {
        self.span.1
    }

    fn index(&self, pa: u64, order: u32) -> usize {
        ((pa - self.base) / (FRAME << order)) as usize
    }

    /// Returns whether the frame is recorded as allocated.
    pub fn has(&self, frame: Frame) -> bool {
        let inside = self.start() <= frame.pa
            && frame.pa < self.end()
            && frame.pa.is_multiple_of(frame.bytes());
        inside && {
            let index = self.index(frame.pa, frame.order);
            self.words[self.used[frame.order as usize] + index / 64] >> (index % 64) & 1 != 0
        }
    }

    /// Records the frame as allocated.
    pub fn remember(&mut self, frame: Frame) {
        let index = self.index(frame.pa, frame.order);
        self.words[self.used[frame.order as usize] + index / 64] |= 1 << (index % 64);
    }

    /// Records the frame as no longer allocated.
    pub fn forget(&mut self, frame: Frame) {
        let index = self.index(frame.pa, frame.order);
        self.words[self.used[frame.order as usize] + index / 64] &= !(1 << (index % 64));
    }

    /// Returns a free block of `order` that lies in one of `allowed`, and the order of the free block that contains it.
    pub fn find(&self, order: u32, allowed: &[Range]) -> Option<(Frame, u32)> {
        let size = FRAME << order;
        (order..=ORDER_1G).find_map(|from| {
            let mut next = Some(0);
            while let Some(index) = next {
                let index = self.free[from as usize].first(self.words, index)?;
                match place(self.block(index, from), size, allowed) {
                    Ok(pa) => return Some((Frame { pa, order }, from)),
                    Err(on) => {
                        let on = on.map(|pa| self.index(pa.max(self.base), from));
                        next = on.map(|on| on.max(index + 1));
                    }
                }
            }
            None
        })
    }

    /// Returns the order of the free block that contains `frame`.
    pub fn around(&self, frame: Frame) -> Option<u32> {
        let is_free = |o: &u32| self.free[*o as usize].get(self.words, self.index(frame.pa, *o));
        (frame.order..=ORDER_1G).find(is_free)
    }

    /// Cuts `frame` out of the free block of order `from` that contains it.
    pub fn cut(&mut self, frame: Frame, from: u32, counts: &mut [Counts; ORDERS]) {
        self.free[from as usize].clear(self.words, self.index(frame.pa, from));
        counts[from as usize].free -= 1;
        for o in frame.order..from {
            let beside = self.index(frame.pa, o) ^ 1;
            self.free[o as usize].set(self.words, beside);
            counts[o as usize].free += 1;
        }
        self.remember(frame);
    }

    /// Returns the free blocks, by order and then by address.
    pub fn free_blocks(&self) -> impl Iterator<Item = Range> + '_ {
        (0..=ORDER_1G).flat_map(move |order| {
            let free = &self.free[order as usize];
            let first = free.first(self.words, 0);
            let indices = core::iter::successors(first, |index| free.first(self.words, index + 1));
            indices.map(move |index| self.block(index, order))
        })
    }

    fn block(&self, index: usize, order: u32) -> Range {
        let start = self.base + index as u64 * (FRAME << order);
        (start, start + (FRAME << order))
    }

    /// Frees a block, and joins it with its free neighbours.
    pub fn release(&mut self, pa: u64, mut order: u32, counts: &mut [Counts; ORDERS]) {
        let mut index = self.index(pa, order);
        while order < ORDER_1G && self.free[order as usize].get(self.words, index ^ 1) {
            self.free[order as usize].clear(self.words, index ^ 1);
            counts[order as usize].free -= 1;
            index /= 2;
            order += 1;
        }
        self.free[order as usize].set(self.words, index);
        counts[order as usize].free += 1;
    }
}

/// Returns the first address in `block` of an aligned block of `size` bytes that lies in one of `allowed`. If there is
/// none, the error holds the address behind `block` from which a further search makes sense, if any.
pub fn place(block: Range, size: u64, allowed: &[Range]) -> Result<u64, Option<u64>> {
    let from = allowed.partition_point(|range| range.1 <= block.0);
    for range in &allowed[from..] {
        let at = range.0.max(block.0).next_multiple_of(size);
        if range.0 >= block.1 {
            return Err(Some(range.0));
        }
        if at + size <= range.1.min(block.1) {
            return Ok(at);
        }
        if range.1 > block.1 {
            return Err(Some(block.1));
        }
    }
    Err(None)
}

//! Physical frames: a buddy allocator from 4 KiB to 1 GiB, and the ledger of who has them.
//!
//! Every byte that the allocator was given is free, used or quarantined, and each of the three is counted on its own.
//! A frame is freed with the order that it was allocated with; anything else is refused and changes nothing. A
//! quarantined frame is never handed out again.
//!
//! Pure: the allocator keeps bitmaps in memory that it is given, and never touches the frames themselves.

use alloc::vec::Vec;
use core::fmt;

use arrayvec::ArrayVec;

/// Bytes of the smallest frame.
pub const FRAME: u64 = 4096;
/// Order of a 4 KiB frame.
pub const ORDER_4K: u32 = 0;
/// Order of a 2 MiB frame.
pub const ORDER_2M: u32 = 9;
/// Order of a 1 GiB frame, the largest.
pub const ORDER_1G: u32 = 18;
const ORDERS: usize = ORDER_1G as usize + 1;

/// A run of physical memory: its first address and the first one behind it.
pub type Range = (u64, u64);

/// A block of `4096 << order` bytes, aligned to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Physical address of its first byte.
    pub pa: u64,
    /// Its size is `4096 << order` bytes.
    pub order: u32,
}

impl Frame {
    /// Its size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        FRAME << self.order
    }
}

/// Why a request was refused; nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No free block is large enough.
    NoMemory,
    /// An order is above [`ORDER_1G`], or the wrong way round for a split.
    Order(u32),
    /// The frame is not allocated with this order.
    NotAllocated(Frame),
    /// The range overlaps what the allocator has already, or lies outside its zones.
    BadRange(Range),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => write!(f, "no free block is large enough"),
            Self::Order(order) => write!(f, "order {order} is not possible"),
            Self::NotAllocated(frame) => write!(
                f,
                "no frame of {} bytes is allocated at {:#x}",
                frame.bytes(),
                frame.pa
            ),
            Self::BadRange((start, end)) => {
                write!(f, "the range {start:#x}..{end:#x} can't be added")
            }
        }
    }
}

/// Blocks of one order: how many are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Blocks that stand free at this order.
    pub free: u64,
    /// Blocks handed out with this order.
    pub used: u64,
    /// Blocks of this order in quarantine.
    pub quarantined: u64,
}

/// The allocator.
#[derive(Debug, Default)]
pub struct Frames {
    zones: Vec<Zone>,
    counts: [Counts; ORDERS],
    total: u64,
}

impl Frames {
    /// An allocator without memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a zone for the memory in `span`, all of it absent. `words` are [`words_for`] `span` words of zeroes.
    ///
    /// # Errors
    /// [`Error::BadRange`] when the span is empty, overlaps a zone, or `words` are too few.
    pub fn add_zone(&mut self, span: Range, words: &'static mut [u64]) -> Result<(), Error> {
        let overlaps = |z: &Zone| span.0 < z.end() && z.start() < span.1;
        if span.0 >= span.1 || words.len() < words_for(span) || self.zones.iter().any(overlaps) {
            return Err(Error::BadRange(span));
        }
        self.zones.push(Zone::new(span, words));
        Ok(())
    }

    /// Makes the whole frames inside `range` free. The range lies in one zone and was not added before.
    ///
    /// # Errors
    /// [`Error::BadRange`].
    pub fn add(&mut self, range: Range) -> Result<(), Error> {
        let (mut at, end) = (range.0.next_multiple_of(FRAME), range.1 / FRAME * FRAME);
        if at >= end {
            return Ok(());
        }
        let zone = self
            .zones
            .iter_mut()
            .find(|z| z.start() <= at && end <= z.end())
            .filter(|z| !z.added.iter().any(|a| at < a.1 && a.0 < end))
            .ok_or(Error::BadRange(range))?;
        zone.added.push((at, end));
        while at < end {
            let order = (at / FRAME)
                .trailing_zeros()
                .min(((end - at) / FRAME).ilog2())
                .min(ORDER_1G);
            zone.release(at, order, &mut self.counts);
            self.total += FRAME << order;
            at += FRAME << order;
        }
        Ok(())
    }

    /// Takes a block of `4096 << order` bytes, from the last zone that has one: low memory is left for those who
    /// can't use any other.
    ///
    /// # Errors
    /// [`Error::NoMemory`], [`Error::Order`].
    pub fn alloc(&mut self, order: u32) -> Result<Frame, Error> {
        if order > ORDER_1G {
            return Err(Error::Order(order));
        }
        let counts = &mut self.counts;
        let pa = self
            .zones
            .iter_mut()
            .rev()
            .find_map(|zone| zone.take(order, counts))
            .ok_or(Error::NoMemory)?;
        self.counts[order as usize].used += 1;
        Ok(Frame { pa, order })
    }

    /// Gives a block back.
    ///
    /// # Errors
    /// [`Error::NotAllocated`].
    pub fn free(&mut self, frame: Frame) -> Result<(), Error> {
        let zone = self.zone_of_used(frame)?;
        self.zones[zone].forget(frame);
        self.counts[frame.order as usize].used -= 1;
        self.zones[zone].release(frame.pa, frame.order, &mut self.counts);
        Ok(())
    }

    /// Puts a block away for good: it may still be the TDX module's.
    ///
    /// # Errors
    /// [`Error::NotAllocated`].
    pub fn quarantine(&mut self, frame: Frame) -> Result<(), Error> {
        let zone = self.zone_of_used(frame)?;
        self.zones[zone].forget(frame);
        let counts = &mut self.counts[frame.order as usize];
        counts.used -= 1;
        counts.quarantined += 1;
        Ok(())
    }

    /// Makes one used block into used blocks of a smaller order, so that each can be given back alone.
    ///
    /// # Errors
    /// [`Error::NotAllocated`]; [`Error::Order`] when `order` is not below the block's.
    pub fn split(&mut self, frame: Frame, order: u32) -> Result<(), Error> {
        let zone = self.zone_of_used(frame)?;
        if order >= frame.order {
            return Err(Error::Order(order));
        }
        let pieces = 1 << (frame.order - order);
        self.zones[zone].forget(frame);
        for i in 0..pieces {
            self.zones[zone].remember(Frame {
                pa: frame.pa + i * (FRAME << order),
                order,
            });
        }
        self.counts[frame.order as usize].used -= 1;
        self.counts[order as usize].used += pieces;
        Ok(())
    }

    /// Makes the used blocks of `order` that fill `frame` into that one block again.
    ///
    /// # Errors
    /// [`Error::NotAllocated`] names the first piece that is missing; [`Error::Order`] when `order` is not below the
    /// block's.
    pub fn merge(&mut self, frame: Frame, order: u32) -> Result<(), Error> {
        if order >= frame.order || frame.order > ORDER_1G {
            return Err(Error::Order(order));
        }
        let pieces = 1 << (frame.order - order);
        let piece = |i| Frame {
            pa: frame.pa + i * (FRAME << order),
            order,
        };
        let zone = self.zone_of_used(piece(0))?;
        if !frame.pa.is_multiple_of(frame.bytes()) {
            return Err(Error::NotAllocated(frame));
        }
        if let Some(gap) = (0..pieces).map(piece).find(|p| !self.zones[zone].has(*p)) {
            return Err(Error::NotAllocated(gap));
        }
        for i in 0..pieces {
            self.zones[zone].forget(piece(i));
        }
        self.zones[zone].remember(frame);
        self.counts[order as usize].used -= pieces;
        self.counts[frame.order as usize].used += 1;
        Ok(())
    }

    /// Bytes that were added.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// The blocks of each order, from 4 KiB up.
    #[must_use]
    pub fn counts(&self) -> &[Counts; ORDERS] {
        &self.counts
    }

    fn zone_of_used(&self, frame: Frame) -> Result<usize, Error> {
        self.zones
            .iter()
            .position(|z| frame.order <= ORDER_1G && z.has(frame))
            .ok_or(Error::NotAllocated(frame))
    }
}

/// The zones that serve `ranges`, which are ascending: neighbours less than 1 GiB apart share one.
#[must_use]
pub fn zones_for(ranges: &[Range]) -> Vec<Range> {
    let mut zones: Vec<Range> = Vec::new();
    for &(start, end) in ranges.iter().filter(|r| r.0 < r.1) {
        match zones.last_mut() {
            Some(last) if start < last.1 + (FRAME << ORDER_1G) => last.1 = last.1.max(end),
            _ => zones.push((start, end)),
        }
    }
    zones
}

/// How many 64-bit words of bookkeeping a zone for `span` needs: about 4 bits for each 4 KiB.
#[must_use]
pub fn words_for(span: Range) -> usize {
    let mut next = 0;
    for order in 0..ORDERS {
        let bits = Zone::bits(span, order as u32);
        Summed::layout(&mut next, bits);
        next += bits.div_ceil(64);
    }
    next
}

/// The memory of one span. Block numbers count from `base`, which is aligned to the largest block.
#[derive(Debug)]
struct Zone {
    base: u64,
    span: Range,
    /// What was added.
    added: Vec<Range>,
    words: &'static mut [u64],
    free: [Summed; ORDERS],
    used: [usize; ORDERS],
}

impl Zone {
    fn new(span: Range, words: &'static mut [u64]) -> Self {
        let mut next = 0;
        let mut used = [0; ORDERS];
        let free = core::array::from_fn(|order| {
            let bits = Self::bits(span, order as u32);
            let free = Summed::layout(&mut next, bits);
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

    fn start(&self) -> u64 {
        self.span.0
    }

    fn end(&self) -> u64 {
        self.span.1
    }

    fn index(&self, pa: u64, order: u32) -> usize {
        ((pa - self.base) / (FRAME << order)) as usize
    }

    fn has(&self, frame: Frame) -> bool {
        let inside = self.start() <= frame.pa
            && frame.pa < self.end()
            && frame.pa.is_multiple_of(frame.bytes());
        inside && {
            let index = self.index(frame.pa, frame.order);
            self.words[self.used[frame.order as usize] + index / 64] >> (index % 64) & 1 != 0
        }
    }

    fn remember(&mut self, frame: Frame) {
        let index = self.index(frame.pa, frame.order);
        self.words[self.used[frame.order as usize] + index / 64] |= 1 << (index % 64);
    }

    fn forget(&mut self, frame: Frame) {
        let index = self.index(frame.pa, frame.order);
        self.words[self.used[frame.order as usize] + index / 64] &= !(1 << (index % 64));
    }

    fn take(&mut self, order: u32, counts: &mut [Counts; ORDERS]) -> Option<u64> {
        let (from, mut index) =
            (order..=ORDER_1G).find_map(|o| Some((o, self.free[o as usize].first(self.words)?)))?;
        self.free[from as usize].clear(self.words, index);
        counts[from as usize].free -= 1;
        for o in (order..from).rev() {
            index *= 2;
            self.free[o as usize].set(self.words, index + 1);
            counts[o as usize].free += 1;
        }
        let pa = self.base + index as u64 * (FRAME << order);
        self.remember(Frame { pa, order });
        Some(pa)
    }

    fn release(&mut self, pa: u64, mut order: u32, counts: &mut [Counts; ORDERS]) {
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

/// A bitmap with summaries above it, so that its first set bit is found in one step a level.
#[derive(Clone, Debug)]
struct Summed {
    bits: usize,
    /// Where each level starts; level 0 holds the bits, each bit of a higher level says whether a word below is set.
    levels: ArrayVec<usize, 8>,
}

impl Summed {
    fn layout(next: &mut usize, bits: usize) -> Self {
        let mut levels = ArrayVec::new();
        let mut words = bits.div_ceil(64).max(1);
        loop {
            levels.push(*next);
            *next += words;
            if words == 1 {
                return Self { bits, levels };
            }
            words = words.div_ceil(64);
        }
    }

    fn get(&self, words: &[u64], index: usize) -> bool {
        index < self.bits && words[self.levels[0] + index / 64] >> (index % 64) & 1 != 0
    }

    fn set(&self, words: &mut [u64], mut index: usize) {
        for level in &self.levels {
            let word = &mut words[level + index / 64];
            let was = *word;
            *word |= 1 << (index % 64);
            if was != 0 {
                return;
            }
            index /= 64;
        }
    }

    fn clear(&self, words: &mut [u64], mut index: usize) {
        for level in &self.levels {
            let word = &mut words[level + index / 64];
            *word &= !(1 << (index % 64));
            if *word != 0 {
                return;
            }
            index /= 64;
        }
    }

    fn first(&self, words: &[u64]) -> Option<usize> {
        self.levels.iter().rev().try_fold(0, |index, level| {
            let word = words[level + index];
            (word != 0).then(|| index * 64 + word.trailing_zeros() as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::{boxed::Box, vec};

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn frames(ranges: &[Range]) -> Frames {
        let mut frames = Frames::new();
        for span in zones_for(ranges) {
            let words = Box::leak(vec![0; words_for(span)].into_boxed_slice());
            frames.add_zone(span, words).unwrap();
        }
        for &range in ranges {
            frames.add(range).unwrap();
        }
        frames
    }

    fn bytes(frames: &Frames, of: impl Fn(&Counts) -> u64) -> u64 {
        let counts = frames.counts().iter().enumerate();
        counts.map(|(order, c)| of(c) * (FRAME << order)).sum()
    }

    #[test]
    fn the_largest_blocks_stand_free() {
        let frames = frames(&[(4 * GIB, 6 * GIB + 2 * MIB + FRAME)]);
        assert_eq!(frames.counts()[18].free, 2);
        assert_eq!(frames.counts()[9].free, 1);
        assert_eq!(frames.counts()[0].free, 1);
        assert_eq!(frames.total_bytes(), 2 * GIB + 2 * MIB + FRAME);
    }

    #[test]
    fn blocks_are_aligned_and_come_together_again() {
        let mut frames = frames(&[(GIB, 2 * GIB)]);
        let small = frames.alloc(ORDER_4K).unwrap();
        let large = frames.alloc(ORDER_2M).unwrap();
        assert!(large.pa.is_multiple_of(2 * MIB));
        assert_eq!(frames.counts()[18].free, 0);
        frames.free(small).unwrap();
        frames.free(large).unwrap();
        assert_eq!(frames.counts()[18].free, 1);
    }

    #[test]
    fn a_frame_goes_back_once_and_as_it_came() {
        let mut frames = frames(&[(GIB, 2 * GIB)]);
        let frame = frames.alloc(ORDER_2M).unwrap();
        let wrong = Frame { order: 0, ..frame };
        assert_eq!(frames.free(wrong), Err(Error::NotAllocated(wrong)));
        frames.free(frame).unwrap();
        assert_eq!(frames.free(frame), Err(Error::NotAllocated(frame)));
        let odd = Frame {
            pa: GIB + FRAME,
            order: ORDER_2M,
        };
        assert_eq!(frames.free(odd), Err(Error::NotAllocated(odd)));
    }

    #[test]
    fn quarantine_is_for_good() {
        let mut frames = frames(&[(GIB, GIB + 2 * FRAME)]);
        let bad = frames.alloc(ORDER_4K).unwrap();
        frames.quarantine(bad).unwrap();
        assert_eq!(frames.free(bad), Err(Error::NotAllocated(bad)));
        let other = frames.alloc(ORDER_4K).unwrap();
        assert_ne!(bad.pa, other.pa);
        assert_eq!(frames.alloc(ORDER_4K), Err(Error::NoMemory));
        assert_eq!(bytes(&frames, |c| c.quarantined), FRAME);
    }

    #[test]
    fn a_split_block_goes_back_piece_by_piece_or_merged() {
        let mut frames = frames(&[(GIB, 2 * GIB)]);
        let block = frames.alloc(ORDER_2M).unwrap();
        frames.split(block, ORDER_4K).unwrap();
        assert_eq!(frames.free(block), Err(Error::NotAllocated(block)));
        let piece = |i| Frame {
            pa: block.pa + i * FRAME,
            order: ORDER_4K,
        };
        frames.merge(block, ORDER_4K).unwrap();
        frames.split(block, ORDER_4K).unwrap();
        frames.free(piece(7)).unwrap();
        assert_eq!(
            frames.merge(block, ORDER_4K),
            Err(Error::NotAllocated(piece(7)))
        );
        for i in (0..512).filter(|i| *i != 7) {
            frames.free(piece(i)).unwrap();
        }
        assert_eq!(frames.counts()[18].free, 1);
    }

    #[test]
    fn memory_is_added_once_and_inside_its_zone() {
        let mut frames = frames(&[(GIB, GIB + 8 * FRAME)]);
        for range in [
            (GIB, GIB + FRAME),
            (GIB + 4 * FRAME, GIB + 9 * FRAME),
            (0, FRAME),
        ] {
            assert_eq!(frames.add(range), Err(Error::BadRange(range)));
        }
        assert_eq!(frames.total_bytes(), 8 * FRAME);
    }

    #[test]
    fn far_memory_gets_a_zone_of_its_own() {
        let zones = zones_for(&[(MIB, GIB), (GIB + MIB, 2 * GIB), (1024 * GIB, 1025 * GIB)]);
        assert_eq!(zones, [(MIB, 2 * GIB), (1024 * GIB, 1025 * GIB)]);
        let four_bits_a_frame = (words_for((0, 1024 * GIB)) * 64) as f64 / (1u64 << 28) as f64;
        assert!(four_bits_a_frame < 4.1, "{four_bits_a_frame}");
    }

    #[derive(Clone, Debug)]
    enum Action {
        Alloc(u32),
        Free(usize),
        Quarantine(usize),
        Split(usize, u32),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            4 => prop_oneof![Just(0), Just(0), Just(9), 0..=18u32].prop_map(Action::Alloc),
            3 => any::<usize>().prop_map(Action::Free),
            1 => any::<usize>().prop_map(Action::Quarantine),
            1 => (any::<usize>(), 0..4u32).prop_map(|(i, down)| Action::Split(i, down)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// No two blocks overlap, and free + used + quarantined is the total after every step.
        #[test]
        fn the_ledger_balances(actions in prop::collection::vec(action(), 1..80)) {
            let ranges = [(MIB, 600 * MIB + 3 * FRAME), (3 * GIB, 5 * GIB + 2 * MIB)];
            let mut frames = frames(&ranges);
            let (mut held, mut gone): (Vec<Frame>, Vec<Frame>) = (vec![], vec![]);
            for action in actions {
                match action {
                    Action::Alloc(order) => {
                        if let Ok(new) = frames.alloc(order) {
                            prop_assert!(new.pa.is_multiple_of(new.bytes()));
                            prop_assert!(ranges.iter().any(|r| r.0 <= new.pa && new.pa + new.bytes() <= r.1));
                            for old in held.iter().chain(&gone) {
                                prop_assert!(new.pa + new.bytes() <= old.pa || old.pa + old.bytes() <= new.pa);
                            }
                            held.push(new);
                        }
                    }
                    Action::Free(i) if !held.is_empty() => {
                        let frame = held.swap_remove(i % held.len());
                        frames.free(frame).unwrap();
                    }
                    Action::Quarantine(i) if !held.is_empty() => {
                        let frame = held.swap_remove(i % held.len());
                        frames.quarantine(frame).unwrap();
                        gone.push(frame);
                    }
                    Action::Split(i, down) if !held.is_empty() => {
                        let i = i % held.len();
                        let frame = held[i];
                        let order = frame.order.saturating_sub(down);
                        if frames.split(frame, order).is_ok() {
                            held.swap_remove(i);
                            held.extend((0..1 << (frame.order - order)).map(|i| Frame {
                                pa: frame.pa + i * (FRAME << order),
                                order,
                            }));
                        }
                    }
                    _ => {}
                }
                let used: u64 = held.iter().map(|f| f.bytes()).sum();
                prop_assert_eq!(bytes(&frames, |c| c.used), used);
                let quarantined: u64 = gone.iter().map(|f| f.bytes()).sum();
                prop_assert_eq!(bytes(&frames, |c| c.quarantined), quarantined);
                let free = bytes(&frames, |c| c.free);
                prop_assert_eq!(free + used + quarantined, frames.total_bytes());
            }
            for frame in held {
                frames.free(frame).unwrap();
            }
            if gone.is_empty() {
                let fresh = self::frames(&ranges);
                prop_assert_eq!(frames.counts(), fresh.counts());
            }
        }
    }
}

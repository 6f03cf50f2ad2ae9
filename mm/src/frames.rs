//! Physical frames: a buddy allocator from 4 KiB to 1 GiB, and the ledger of their states.
//!
//! Every byte given to the allocator is free, used or quarantined, and each of the three is counted separately. A frame
//! is freed with the order that it was allocated with; any other request is refused and changes nothing. A quarantined
//! frame is never allocated again.
//!
//! Pure: the allocator keeps its bitmaps in memory that the caller provides, and never touches the frames themselves.

mod bitmap;
mod flushed;
mod zone;

use alloc::vec::Vec;
use core::fmt;

use arrayvec::ArrayVec;

use flushed::Flushed;
pub use zone::words_for;
use zone::{Zone, place};

/// Bytes of the smallest frame.
pub const FRAME: u64 = 4096;
/// Order of a 4 KiB frame.
pub const ORDER_4K: u32 = 0;
/// Order of a 2 MiB frame.
pub const ORDER_2M: u32 = 9;
/// Order of a 1 GiB frame, the largest.
pub const ORDER_1G: u32 = 18;
/// Number of orders.
pub const ORDERS: usize = ORDER_1G as usize + 1;

/// A range of physical memory: its first address and the address after its last byte.
pub type Range = (u64, u64);

/// A block of `4096 << order` bytes, aligned to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Physical address of its first byte.
    pub pa: u64,
    /// Its size as an order: `4096 << order` bytes.
    pub order: u32,
}

impl Frame {
    /// Returns its size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        FRAME << self.order
    }
}

/// Reason why a request was refused. A refused request changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// No free block is large enough.
    NoMemory,
    /// The order is above [`ORDER_1G`], or the orders of a split or merge are the wrong way round.
    Order(u32),
    /// The frame is not allocated with this order.
    NotAllocated(Frame),
    /// The range overlaps memory that the allocator already has, or lies outside its zones.
    BadRange(Range),
}

impl fmt::Display for FrameError {
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

/// Number of blocks of one order, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Free blocks of this order.
    pub free: u64,
    /// Blocks allocated with this order.
    pub used: u64,
    /// Quarantined blocks of this order.
    pub quarantined: u64,
}

/// A buddy allocator of physical frames.
#[derive(Debug, Default)]
pub struct Frames {
    zones: Vec<Zone>,
    counts: [Counts; ORDERS],
    total: u64,
    /// Memory that a TD can have, in ascending, disjoint ranges; `None` while that is not known.
    for_tds: Option<Vec<Range>>,
    /// Pages of 4 KiB in allocated blocks whose memory is broken.
    broken: ArrayVec<u64, MAX_BROKEN>,
    flushed: Flushed,
}

/// A block for a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The block.
    pub frame: Frame,
    /// True if no cache has a dirty line of it: it was freed by [`Frames::free_flushed`] and not allocated since.
    pub flushed: bool,
}

/// Maximum number of broken pages that are in use at once.
pub const MAX_BROKEN: usize = 256;

/// The outcome of [`Frames::retire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// The page was free. It is out of use.
    Now,
    /// The page is in use. It goes out of use when its block is freed.
    WhenFreed,
    /// The page is not the allocator's.
    Unknown,
}

fn range_of(frame: Frame) -> Range {
    (frame.pa, frame.pa + frame.bytes())
}

/// All possible memory.
const EVERYWHERE: &[Range] = &[(0, u64::MAX)];

impl Frames {
    /// Creates an allocator without memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a zone for the memory in `span`, all of it absent. `words` are [`words_for`] `span` zeroed words.
    ///
    /// # Errors
    /// [`FrameError::BadRange`] when the span is empty, overlaps a zone, or `words` are too few.
    pub fn add_zone(&mut self, span: Range, words: &'static mut [u64]) -> Result<(), FrameError> {
        let overlaps = |z: &Zone| span.0 < z.end() && z.start() < span.1;
        if span.0 >= span.1 || words.len() < words_for(span) || self.zones.iter().any(overlaps) {
            return Err(FrameError::BadRange(span));
        }
        self.zones.push(Zone::new(span, words));
        Ok(())
    }

    /// Adds the whole frames inside `range` as free memory. The range lies in one zone and was not added before.
    ///
    /// # Errors
    /// [`FrameError::BadRange`].
    pub fn add(&mut self, range: Range) -> Result<(), FrameError> {
        let (at, end) = (range.0.next_multiple_of(FRAME), range.1 / FRAME * FRAME);
        if at >= end {
            return Ok(());
        }
        let zone = self
            .zones
            .iter_mut()
            .find(|z| z.start() <= at && end <= z.end())
            .filter(|z| !z.added.iter().any(|a| at < a.1 && a.0 < end))
            .ok_or(FrameError::BadRange(range))?;
        zone.added.push((at, end));
        for block in blocks_of((at, end)) {
            zone.release(block.pa, block.order, &mut self.counts);
            self.total += block.bytes();
        }
        Ok(())
    }

    /// Sets the memory that a TD can have to `ranges`, which are ascending and disjoint. From now on only the host uses
    /// the rest. Returns the ranges set before.
    pub fn set_for_tds(&mut self, ranges: Vec<Range>) -> Option<Vec<Range>> {
        self.for_tds.replace(ranges)
    }

    /// Allocates a block of `4096 << order` bytes that a TD can have. It comes from the last zone that has one, which
    /// leaves low memory to users that can use no other.
    ///
    /// # Errors
    /// [`FrameError::NoMemory`], [`FrameError::Order`].
    pub fn alloc(&mut self, order: u32) -> Result<Frame, FrameError> {
        Ok(self.alloc_page(order)?.frame)
    }

    /// Allocates a block as [`Self::alloc`] does, and returns whether it must be flushed.
    ///
    /// # Errors
    /// [`FrameError::NoMemory`], [`FrameError::Order`].
    pub fn alloc_page(&mut self, order: u32) -> Result<Allocated, FrameError> {
        let allowed = self.for_tds.as_deref().unwrap_or(EVERYWHERE);
        let frame = take_first(&mut self.zones, &mut self.counts, order, allowed)?;
        let flushed = self.flushed.take(range_of(frame));
        Ok(Allocated { frame, flushed })
    }

    /// Allocates a block for the host, which can use all memory.
    ///
    /// # Errors
    /// [`FrameError::NoMemory`], [`FrameError::Order`].
    pub fn alloc_for_host(&mut self, order: u32) -> Result<Frame, FrameError> {
        let frame = take_first(&mut self.zones, &mut self.counts, order, EVERYWHERE)?;
        self.flushed.take(range_of(frame));
        Ok(frame)
    }

    /// Allocates exactly `frame`, for a TD.
    ///
    /// # Errors
    /// [`FrameError::NoMemory`] when part of it is not free or not for TDs, or it is not aligned; [`FrameError::Order`].
    pub fn alloc_at(&mut self, frame: Frame) -> Result<(), FrameError> {
        self.alloc_page_at(frame).map(|_| ())
    }

    /// Allocates exactly `frame` as [`Self::alloc_at`] does, and returns whether it must be flushed.
    ///
    /// # Errors
    /// [`FrameError::NoMemory`], [`FrameError::Order`].
    pub fn alloc_page_at(&mut self, frame: Frame) -> Result<Allocated, FrameError> {
        if frame.order > ORDER_1G {
            return Err(FrameError::Order(frame.order));
        }
        let end = frame
            .pa
            .checked_add(frame.bytes())
            .ok_or(FrameError::NoMemory)?;
        let whole = (frame.pa, end);
        let allowed = self.for_tds.as_deref().unwrap_or(EVERYWHERE);
        let zone = self
            .zones
            .iter_mut()
            .filter(|_| place(whole, frame.bytes(), allowed) == Ok(frame.pa))
            .find(|zone| zone.start() <= frame.pa && end <= zone.end())
            .ok_or(FrameError::NoMemory)?;
        let from = zone.around(frame).ok_or(FrameError::NoMemory)?;
        zone.cut(frame, from, &mut self.counts);
        self.counts[frame.order as usize].used += 1;
        let flushed = self.flushed.take(whole);
        Ok(Allocated { frame, flushed })
    }

    /// Allocates all of `range`, as the blocks that [`blocks_of`] returns for it.
    ///
    /// # Errors
    /// [`FrameError::BadRange`] when part of it is not free, or it does not consist of whole frames.
    pub fn alloc_range(&mut self, range: Range) -> Result<(), FrameError> {
        let whole = range.0 <= range.1 && (range.0 | range.1).is_multiple_of(FRAME);
        let inside = |z: &&mut Zone| z.start() <= range.0 && range.1 <= z.end();
        let zone = self.zones.iter_mut().filter(|_| whole).find(inside);
        let zone = zone.ok_or(FrameError::BadRange(range))?;
        if blocks_of(range).any(|block| zone.around(block).is_none()) {
            return Err(FrameError::BadRange(range));
        }
        for block in blocks_of(range) {
            // Cutting out one block leaves its neighbours free, though in smaller blocks.
            let from = zone.around(block).ok_or(FrameError::BadRange(range))?;
            zone.cut(block, from, &mut self.counts);
            self.counts[block.order as usize].used += 1;
        }
        self.flushed.take(range);
        Ok(())
    }

    /// Replaces the content of `ranges` with the free memory in ascending order. Adjacent blocks form one range. It
    /// allocates nothing: `ranges` has room for every free block.
    ///
    /// # Errors
    /// The number of free blocks when `ranges` has less room; it is unchanged.
    pub fn free_ranges(&self, ranges: &mut Vec<Range>) -> Result<(), usize> {
        let blocks: u64 = self.counts.iter().map(|counts| counts.free).sum();
        let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
        if ranges.capacity() < blocks {
            return Err(blocks);
        }
        ranges.clear();
        ranges.extend(self.zones.iter().flat_map(Zone::free_blocks));
        ranges.sort_unstable();
        ranges.dedup_by(|next, last| {
            let adjacent = last.1 == next.0;
            if adjacent {
                last.1 = next.1;
            }
            adjacent
        });
        Ok(())
    }

    /// Frees a block.
    ///
    /// # Errors
    /// [`FrameError::NotAllocated`].
    pub fn free(&mut self, frame: Frame) -> Result<(), FrameError> {
        let zone = self.zone_of_used(frame)?;
        self.zones[zone].forget(frame);
        self.counts[frame.order as usize].used -= 1;
        if self.broken.is_empty() {
            self.zones[zone].release(frame.pa, frame.order, &mut self.counts);
        } else {
            self.release_sound(zone, frame);
        }
        Ok(())
    }

    /// Frees a block of which no cache has a dirty line: nobody wrote to it since it was flushed, or cleared by
    /// MOVDIR64B.
    ///
    /// # Errors
    /// [`FrameError::NotAllocated`].
    pub fn free_flushed(&mut self, frame: Frame) -> Result<(), FrameError> {
        self.free(frame)?;
        if self.broken.is_empty() {
            self.flushed.note(frame);
        }
        Ok(())
    }

    /// Takes the 4 KiB page that contains `pa` out of use for good, now or when its block is freed: its memory is
    /// broken.
    ///
    /// # Errors
    /// [`FrameError::NoMemory`] if [`MAX_BROKEN`] broken pages are in use already.
    pub fn retire(&mut self, pa: u64) -> Result<Retired, FrameError> {
        let page = Frame {
            pa: pa / FRAME * FRAME,
            order: ORDER_4K,
        };
        let has = |zone: &Zone| zone.added.iter().any(|a| (a.0..a.1).contains(&page.pa));
        let Some(zone) = self.zones.iter_mut().find(|zone| has(zone)) else {
            return Ok(Retired::Unknown);
        };
        if let Some(from) = zone.around(page) {
            zone.cut(page, from, &mut self.counts);
            self.counts[0].used += 1;
            self.flushed.take(range_of(page));
            self.quarantine(page)?;
            return Ok(Retired::Now);
        }
        if !self.broken.contains(&page.pa) {
            let room = self.broken.try_push(page.pa);
            room.map_err(|_| FrameError::NoMemory)?;
        }
        Ok(Retired::WhenFreed)
    }

    /// Frees a block without its broken pages, which go into quarantine.
    #[cold]
    fn release_sound(&mut self, zone: usize, frame: Frame) {
        let end = frame.pa + frame.bytes();
        let mut at = frame.pa;
        while at < end {
            let inside = self.broken.iter().filter(|pa| (at..end).contains(*pa));
            let next = inside.min().copied();
            for block in blocks_of((at, next.unwrap_or(end))) {
                self.zones[zone].release(block.pa, block.order, &mut self.counts);
            }
            at = next.map_or(end, |pa| pa + FRAME);
            if let Some(pa) = next {
                self.counts[0].quarantined += 1;
                self.broken.retain(|broken| *broken != pa);
            }
        }
    }

    /// Takes a block out of use for good: the TDX module may still own it.
    ///
    /// # Errors
    /// [`FrameError::NotAllocated`].
    pub fn quarantine(&mut self, frame: Frame) -> Result<(), FrameError> {
        let zone = self.zone_of_used(frame)?;
        self.zones[zone].forget(frame);
        let counts = &mut self.counts[frame.order as usize];
        counts.used -= 1;
        counts.quarantined += 1;
        Ok(())
    }

    /// Splits a used block into used blocks of a smaller order, so that each can be freed separately.
    ///
    /// # Errors
    /// [`FrameError::NotAllocated`]; [`FrameError::Order`] when `order` is not below the block's.
    pub fn split(&mut self, frame: Frame, order: u32) -> Result<(), FrameError> {
        let zone = self.zone_of_used(frame)?;
        if order >= frame.order {
            return Err(FrameError::Order(order));
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

    /// Merges the used blocks of `order` that make up `frame` into one block.
    ///
    /// # Errors
    /// [`FrameError::NotAllocated`] names the first piece that is missing; [`FrameError::Order`] when `order` is not below the
    /// block's.
    pub fn merge(&mut self, frame: Frame, order: u32) -> Result<(), FrameError> {
        if order >= frame.order || frame.order > ORDER_1G {
            return Err(FrameError::Order(order));
        }
        let pieces = 1 << (frame.order - order);
        let piece = |i| Frame {
            pa: frame.pa + i * (FRAME << order),
            order,
        };
        let zone = self.zone_of_used(piece(0))?;
        if !frame.pa.is_multiple_of(frame.bytes()) {
            return Err(FrameError::NotAllocated(frame));
        }
        if let Some(gap) = (0..pieces).map(piece).find(|p| !self.zones[zone].has(*p)) {
            return Err(FrameError::NotAllocated(gap));
        }
        for i in 0..pieces {
            self.zones[zone].forget(piece(i));
        }
        self.zones[zone].remember(frame);
        self.counts[order as usize].used -= pieces;
        self.counts[frame.order as usize].used += 1;
        Ok(())
    }

    /// Returns the number of bytes added.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// Returns the counts of each order, from 4 KiB up.
    #[must_use]
    pub fn counts(&self) -> &[Counts; ORDERS] {
        &self.counts
    }

    fn zone_of_used(&self, frame: Frame) -> Result<usize, FrameError> {
        self.zones
            .iter()
            .position(|z| frame.order <= ORDER_1G && z.has(frame))
            .ok_or(FrameError::NotAllocated(frame))
    }
}

/// Returns the largest blocks that make up a range of whole frames, in ascending order.
pub fn blocks_of(range: Range) -> impl Iterator<Item = Frame> {
    let (mut at, end) = range;
    core::iter::from_fn(move || {
        let left = end.checked_sub(at).filter(|left| *left > 0)?;
        let order = (at / FRAME)
            .trailing_zeros()
            .min((left / FRAME).ilog2())
            .min(ORDER_1G);
        let block = Frame { pa: at, order };
        at += block.bytes();
        Some(block)
    })
}

fn take_first(
    zones: &mut [Zone],
    counts: &mut [Counts; ORDERS],
    order: u32,
    allowed: &[Range],
) -> Result<Frame, FrameError> {
    if order > ORDER_1G {
        return Err(FrameError::Order(order));
    }
    let (zone, (frame, from)) = zones
        .iter_mut()
        .rev()
        .find_map(|zone| zone.find(order, allowed).map(|found| (zone, found)))
        .ok_or(FrameError::NoMemory)?;
    zone.cut(frame, from, counts);
    counts[order as usize].used += 1;
    Ok(frame)
}

/// Returns the zones that serve `ranges`, which are ascending. Neighbours less than 1 GiB apart share a zone.
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

#[cfg(test)]
mod tests;

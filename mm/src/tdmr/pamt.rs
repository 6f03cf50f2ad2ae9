//! Placement of the PAMTs.
//!
//! A PAMT may be anywhere in convertible memory that is not the open part of a TDMR. Memory that cannot be private
//! anyway costs nothing and is used first; otherwise a PAMT is carved from the edge of a free gap in a TDMR and
//! reserved there. The node that the TDMR describes takes precedence over everything else, and the scarce memory below
//! 4 GiB is used last.

use alloc::vec::Vec;
use core::cmp::Reverse;

use super::{LeftOut, Limits, Memory, Span, SpanSet, TDMR_UNIT, Why, reserved, segment::Segment};

/// A PAMT level, numbered like the page sizes in the TDX Module ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PamtLevel {
    /// An entry for every 4 KiB.
    Page4K = 0,
    /// An entry for every 2 MiB.
    Page2M = 1,
    /// An entry for every 1 GiB.
    Page1G = 2,
}

impl PamtLevel {
    /// All three, in numerical order.
    pub const ALL: [Self; 3] = [Self::Page4K, Self::Page2M, Self::Page1G];

    /// Returns the binary logarithm of the page size.
    pub const fn page_shift(self) -> u32 {
        12 + 9 * self as u32
    }
}

/// Places the PAMTs of every segment. A segment whose PAMT fits nowhere is halved while there are TDMRs left, and given
/// up otherwise.
pub(super) fn place(
    memory: &Memory,
    limits: &Limits,
    segments: Vec<Segment>,
    given_up: &mut Vec<LeftOut>,
) -> Vec<(Segment, [Span; 3])> {
    let mut room = Room {
        memory,
        limits,
        tdmrs: segments.clone(),
        pamts: Vec::new(),
        gaps: Vec::new(),
    };
    room.find_gaps();
    // Segments are taken from the end, the largest first: they are the hardest to place.
    let mut waiting = segments;
    waiting.sort_unstable_by_key(|segment| (segment.span.bytes(), Reverse(segment.span.start)));
    let mut placed = Vec::new();
    while let Some(segment) = waiting.pop() {
        if let Some(areas) = room.place(&segment) {
            placed.push((segment, areas));
            continue;
        }
        room.tdmrs.retain(|tdmr| tdmr.span != segment.span);
        if segment.span.bytes() > TDMR_UNIT && room.tdmrs.len() + 2 <= usize::from(limits.max_tdmrs)
        {
            let middle =
                segment.span.start + (segment.span.bytes() / 2).next_multiple_of(TDMR_UNIT);
            for span in [
                Span::new(segment.span.start, middle),
                Span::new(middle, segment.span.end),
            ] {
                let half = Segment { span, ..segment };
                room.tdmrs.push(half);
                let at = waiting.partition_point(|other| other.span.bytes() <= span.bytes());
                waiting.insert(at, half);
            }
        } else {
            given_up.push(LeftOut {
                span: segment.span,
                why: Why::NoRoomForPamt,
            });
        }
        room.find_gaps();
    }
    placed
}

/// Free memory for PAMTs.
struct Room<'a> {
    memory: &'a Memory,
    limits: &'a Limits,
    tdmrs: Vec<Segment>,
    pamts: Vec<Span>,
    gaps: Vec<Gap>,
}

/// A piece of free convertible memory, in one TDMR or in none.
#[derive(Clone, Copy)]
struct Gap {
    span: Span,
    node: Option<u32>,
    /// The TDMR from whose open part a PAMT would take it.
    tdmr: Option<Span>,
}

impl Room<'_> {
    /// Places all three areas of `segment`'s PAMT, in one block if possible.
    fn place(&mut self, segment: &Segment) -> Option<[Span; 3]> {
        let sizes = PamtLevel::ALL.map(|level| self.limits.pamt_bytes(level, segment.span.bytes()));
        if let Some(block) = self.take(sizes.iter().sum(), segment.node) {
            let mut at = block.start;
            return Some(sizes.map(|bytes| {
                let area = Span::new(at, at + bytes);
                at = area.end;
                area
            }));
        }
        let before = self.pamts.len();
        let mut areas = [Span::new(0, 0); 3];
        for (area, bytes) in areas.iter_mut().zip(sizes) {
            let Some(span) = self.take(bytes, segment.node) else {
                self.pamts.truncate(before);
                return None;
            };
            *area = span;
        }
        Some(areas)
    }

    /// Takes `bytes` of free memory where that wastes least, preferably in `node`.
    fn take(&mut self, bytes: u64, node: Option<u32>) -> Option<Span> {
        let fitting = self
            .gaps
            .iter()
            .enumerate()
            .filter(|(_, gap)| gap.span.bytes() >= bytes);
        let rank = |gap: &Gap| {
            let elsewhere = node.is_some() && gap.node.is_some() && gap.node != node;
            (
                elsewhere,
                gap.tdmr.is_some(),
                gap.span.start < 1 << 32,
                gap.span.bytes(),
                Reverse(gap.span.start),
            )
        };
        let (index, gap) = fitting.clone().min_by_key(|(_, gap)| rank(gap))?;
        let closed = self.closed();
        let best = self.carve(gap, bytes, &closed);
        let (index, area) = if best.lost == 0 {
            (index, best.area)
        } else {
            let carved = fitting.map(|(index, gap)| (index, gap, self.carve(gap, bytes, &closed)));
            let (index, _, best) =
                carved.min_by_key(|(_, gap, carved)| (carved.lost, rank(gap)))?;
            (index, best.area)
        };
        self.pamts.push(area);
        let gap = self.gaps.swap_remove(index);
        for span in [
            Span::new(gap.span.start, area.start),
            Span::new(area.end, gap.span.end),
        ] {
            self.gaps
                .extend((!span.is_empty()).then_some(Gap { span, ..gap }));
        }
        Some(area)
    }

    /// Returns the better end of `gap`: the one that loses less memory, then needs fewer reserved areas, then the upper
    /// one.
    fn carve(&self, gap: &Gap, bytes: u64, closed: &SpanSet) -> Carved {
        let Span { start, end } = gap.span;
        let carved = |area: Span| {
            let Some(tdmr) = gap.tdmr else {
                return Carved {
                    lost: 0,
                    areas: 0,
                    area,
                };
            };
            let closed = closed.within(tdmr).chain([area]).collect();
            let reserved = reserved::areas(tdmr, &closed, &self.memory.pool, self.limits);
            Carved {
                lost: reserved.lost,
                areas: reserved.areas.len(),
                area,
            }
        };
        let (upper, lower) = (
            carved(Span::new(end - bytes, end)),
            carved(Span::new(start, start + bytes)),
        );
        if (lower.lost, lower.areas) < (upper.lost, upper.areas) {
            lower
        } else {
            upper
        }
    }

    /// Returns the memory that cannot be open in any TDMR.
    fn closed(&self) -> SpanSet {
        self.memory
            .holes
            .spans()
            .iter()
            .chain(&self.pamts)
            .copied()
            .collect()
    }

    /// Determines the gaps for the current TDMRs and PAMTs. Memory in a TDMR counts as memory of that TDMR's node:
    /// where nodes interleave more finely than TDMRs, a PAMT has to straddle them anyway.
    fn find_gaps(&mut self) {
        let (pool, closed) = (&self.memory.pool, self.closed());
        let free = pool.subtract(&self.pamts.iter().copied().collect());
        let mut open = Vec::new();
        self.gaps.clear();
        for Segment { span, node } in &self.tdmrs {
            let reserved = reserved::areas(*span, &closed, pool, self.limits);
            for part in reserved
                .areas
                .into_iter()
                .collect::<SpanSet>()
                .gaps_in(*span)
            {
                open.push(part);
                self.gaps.extend(free.within(part).map(|gap| Gap {
                    span: gap,
                    node: *node,
                    tdmr: Some(*span),
                }));
            }
        }
        let outside = free.subtract(&open.into_iter().collect());
        self.gaps.extend(outside.spans().iter().map(|&span| Gap {
            span,
            node: self.memory.node_at(span.start),
            tdmr: None,
        }));
    }
}

struct Carved {
    /// Bytes reserved in the TDMR only because it has too few reserved areas.
    lost: u64,
    areas: usize,
    area: Span,
}

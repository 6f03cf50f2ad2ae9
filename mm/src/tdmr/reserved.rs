//! The reserved areas of a TDMR.

use alloc::vec::Vec;

use super::{Limits, Span, SpanSet};

/// A TDMR's reserved areas, and their cost beyond the areas that must be reserved.
pub(super) struct Reserved {
    pub areas: Vec<Span>,
    /// Bytes of the pool that are reserved only because there are too few areas.
    pub lost: u64,
}

/// Returns the reserved areas for a TDMR at `tdmr` that leave nothing of `closed` open and lose as little of `pool` as
/// possible.
///
/// Joining two neighbouring areas frees exactly one area and loses exactly the memory between them, so joining across
/// the cheapest gaps is optimal.
pub(super) fn areas(tdmr: Span, closed: &SpanSet, pool: &SpanSet, limits: &Limits) -> Reserved {
    let must: Vec<Span> = closed.within(tdmr).collect();
    let surplus = must
        .len()
        .saturating_sub(usize::from(limits.max_reserved_per_tdmr));
    if surplus == 0 {
        return Reserved {
            areas: must,
            lost: 0,
        };
    }
    let mut gaps: Vec<(u64, Span)> = must
        .windows(2)
        .map(|pair| Span::new(pair[0].end, pair[1].start))
        .map(|gap| (pool.bytes_in(gap), gap))
        .collect();
    gaps.sort_unstable();
    gaps.truncate(surplus);
    let lost = gaps.iter().map(|(bytes, _)| bytes).sum();
    let areas: SpanSet = must
        .into_iter()
        .chain(gaps.into_iter().map(|(_, gap)| gap))
        .collect();
    Reserved {
        areas: areas.spans().to_vec(),
        lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tdmr::machines::LIMITS_1_5;

    fn set(spans: &[(u64, u64)]) -> SpanSet {
        spans
            .iter()
            .map(|(start, end)| Span::new(*start, *end))
            .collect()
    }

    #[test]
    fn with_areas_to_spare_only_the_holes_are_reserved() {
        let closed = set(&[(0, 10), (20, 30)]);
        let reserved = areas(
            Span::new(5, 100),
            &closed,
            &set(&[(10, 20), (30, 100)]),
            &LIMITS_1_5,
        );
        assert_eq!(reserved.areas, [Span::new(5, 10), Span::new(20, 30)]);
        assert_eq!(reserved.lost, 0);
    }

    #[test]
    fn too_many_holes_lose_the_smallest_memory_between_them() {
        let limits = Limits {
            max_reserved_per_tdmr: 2,
            ..LIMITS_1_5
        };
        let closed = set(&[(0, 10), (20, 30), (32, 40), (90, 95)]);
        let pool = set(&[(10, 20), (30, 32), (40, 90), (95, 100)]);
        let reserved = areas(Span::new(0, 100), &closed, &pool, &limits);
        assert_eq!(reserved.areas, [Span::new(0, 40), Span::new(90, 95)]);
        assert_eq!(reserved.lost, 12);
    }

    #[test]
    fn a_gap_that_holds_nothing_usable_is_closed_first() {
        let limits = Limits {
            max_reserved_per_tdmr: 1,
            ..LIMITS_1_5
        };
        let closed = set(&[(0, 10), (90, 95)]);
        let reserved = areas(Span::new(0, 100), &closed, &set(&[(95, 100)]), &limits);
        assert_eq!(reserved.areas, [Span::new(0, 95)]);
        assert_eq!(reserved.lost, 0);
    }
}

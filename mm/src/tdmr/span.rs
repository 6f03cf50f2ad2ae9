//! Ranges of physical addresses, and ordered sets of them.

use alloc::vec::Vec;
use core::fmt;

/// Bytes `start..end` of physical memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first byte's address.
    pub start: u64,
    /// The address after the last byte.
    pub end: u64,
}

impl Span {
    /// Creates the span `start..end`; empty if `end` is not above `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self {
            start,
            end: if end > start { end } else { start },
        }
    }

    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        self.end - self.start
    }

    /// Returns whether the span is empty.
    pub const fn is_empty(self) -> bool {
        self.end == self.start
    }

    /// Returns the overlap of two spans.
    pub fn intersect(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Returns the whole units of `unit` bytes (a power of two) inside the span.
    pub fn shrink_to(self, unit: u64) -> Self {
        let start = self
            .start
            .checked_next_multiple_of(unit)
            .unwrap_or(u64::MAX);
        Self::new(start, self.end & !(unit - 1))
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A set of addresses, held as ascending spans that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpanSet {
    spans: Vec<Span>,
    /// `before[i]` is the number of bytes in `spans[..i]`.
    before: Vec<u64>,
}

impl SpanSet {
    /// Returns the spans in ascending order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Returns the number of bytes in the set.
    pub fn bytes(&self) -> u64 {
        self.before.last().map_or(0, |before| {
            before + self.spans.last().map_or(0, |s| s.bytes())
        })
    }

    /// Returns the number of the set's bytes in `span`, in logarithmic time.
    pub fn bytes_in(&self, span: Span) -> u64 {
        self.bytes_below(span.end) - self.bytes_below(span.start)
    }

    /// Returns the parts of the set in `span`, in ascending order.
    pub fn within(&self, span: Span) -> impl Iterator<Item = Span> + '_ {
        let first = self.spans.partition_point(|s| s.end <= span.start);
        self.spans[first..]
            .iter()
            .take_while(move |s| s.start < span.end)
            .map(move |s| s.intersect(span))
    }

    /// Returns the number of separate spans of the set in `span`.
    pub fn count_in(&self, span: Span) -> usize {
        let first = self.spans.partition_point(|s| s.end <= span.start);
        self.spans
            .partition_point(|s| s.start < span.end)
            .saturating_sub(first)
    }

    /// Returns the addresses in both sets.
    pub fn intersect(&self, other: &Self) -> Self {
        self.spans.iter().flat_map(|s| other.within(*s)).collect()
    }

    /// Returns the addresses in this set that are not in `other`.
    pub fn subtract(&self, other: &Self) -> Self {
        self.spans.iter().flat_map(|s| other.gaps_in(*s)).collect()
    }

    /// Returns the parts of `span` that are not in the set, in ascending order.
    pub fn gaps_in(&self, span: Span) -> impl Iterator<Item = Span> + '_ {
        let sentinel = Span {
            start: span.end,
            end: span.end,
        };
        let mut at = span.start;
        self.within(span)
            .chain(core::iter::once(sentinel))
            .filter_map(move |taken| {
                let gap = Span::new(at, taken.start);
                at = taken.end;
                (!gap.is_empty()).then_some(gap)
            })
    }

    fn bytes_below(&self, address: u64) -> u64 {
        let index = self.spans.partition_point(|s| s.end <= address);
        match self.spans.get(index) {
            Some(span) => self.before[index] + address.saturating_sub(span.start),
            None => self.bytes(),
        }
    }
}

impl FromIterator<Span> for SpanSet {
    /// Collects spans in any order. Overlapping and touching ones become one.
    fn from_iter<I: IntoIterator<Item = Span>>(spans: I) -> Self {
        let mut sorted: Vec<Span> = spans.into_iter().filter(|s| !s.is_empty()).collect();
        sorted.sort_unstable();
        let mut joined: Vec<Span> = Vec::with_capacity(sorted.len());
        for span in sorted {
            match joined.last_mut() {
                Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
                _ => joined.push(span),
            }
        }
        let before = joined
            .iter()
            .scan(0, |sum, span| {
                let before = *sum;
                *sum += span.bytes();
                Some(before)
            })
            .collect();
        Self {
            spans: joined,
            before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn set(spans: &[(u64, u64)]) -> SpanSet {
        spans
            .iter()
            .map(|(start, end)| Span::new(*start, *end))
            .collect()
    }

    #[test]
    fn touching_and_overlapping_spans_become_one() {
        assert_eq!(set(&[(4, 6), (0, 2), (2, 5), (8, 8)]), set(&[(0, 6)]));
    }

    #[test]
    fn gaps_are_what_the_set_leaves_of_a_span() {
        let gaps: Vec<_> = set(&[(2, 4), (6, 8)]).gaps_in(Span::new(1, 9)).collect();
        assert_eq!(
            gaps,
            vec![Span::new(1, 2), Span::new(4, 6), Span::new(8, 9)]
        );
    }

    proptest! {
        /// The set operations agree with the same operations on single addresses.
        #[test]
        fn sets_behave_like_sets_of_addresses(
            a in prop::collection::vec((0u64..60, 0u64..12), 0..8),
            b in prop::collection::vec((0u64..60, 0u64..12), 0..8),
            low in 0u64..80, len in 0u64..40,
        ) {
            let spans = |v: &[(u64, u64)]| v.iter().map(|(s, l)| Span::new(*s, s + l)).collect::<SpanSet>();
            let has = |set: &SpanSet, x: u64| set.spans().iter().any(|s| s.start <= x && x < s.end);
            let (a, b) = (spans(&a), spans(&b));
            let (both, only_a) = (a.intersect(&b), a.subtract(&b));
            for x in 0..80 {
                prop_assert_eq!(has(&both, x), has(&a, x) && has(&b, x));
                prop_assert_eq!(has(&only_a, x), has(&a, x) && !has(&b, x));
            }
            let window = Span::new(low, low + len);
            prop_assert_eq!(a.bytes_in(window), (low..low + len).filter(|x| has(&a, *x)).count() as u64);
            prop_assert_eq!(a.count_in(window), if window.is_empty() { a.count_in(window) } else { a.within(window).count() });
            prop_assert_eq!(a.bytes(), (0..80).filter(|x| has(&a, *x)).count() as u64);
        }
    }
}

//! The module's rules for TDMRs, stated independently of the planner.
//!
//! Nothing here is shared with the planner, so that a mistake there cannot hide here.
//!
//! Source: TDX Module ABI 1.5, TDH.SYS.CONFIG, and the checks of release 1.5.01.

use alloc::vec::Vec;

use super::{Limits, PamtLevel, Span, Tdmr};

/// A violated rule of `TDH.SYS.CONFIG`. TDMRs are identified by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// OPERAND_INVALID: there are no TDMRs, or more than MAX_TDMRS.
    TdmrCount(usize),
    /// INVALID_TDMR: base or size is not a positive multiple of 1 GiB, or an address has HKID bits.
    InvalidTdmr(usize),
    /// NON_ORDERED_TDMR: the TDMR starts before the previous one ends.
    NonOrderedTdmr(usize),
    /// There are more reserved areas than MAX_RESERVED_PER_TDMR.
    ReservedCount(usize),
    /// INVALID_RESERVED_IN_TDMR: a reserved area is empty, not made of whole pages, or not inside the TDMR.
    InvalidReserved(usize, usize),
    /// NON_ORDERED_RESERVED_IN_TDMR: a reserved area starts before the previous one ends.
    NonOrderedReserved(usize, usize),
    /// INVALID_PAMT: a PAMT area is not made of whole pages, too small, or has HKID bits.
    InvalidPamt(usize, PamtLevel),
    /// PAMT_OUTSIDE_CMRS: part of a PAMT area is in no CMR.
    PamtOutsideCmrs(usize, PamtLevel),
    /// PAMT_OVERLAP: a PAMT area overlaps another one, of the TDMR named second.
    PamtOverlap(usize, PamtLevel, usize),
    /// PAMT_OVERLAP: a PAMT area lies in the open part of the TDMR named second.
    PamtInOpenTdmr(usize, PamtLevel, usize),
    /// TDMR_OUTSIDE_CMRS: a byte of the TDMR is neither reserved nor in a CMR.
    TdmrOutsideCmrs(usize),
}

/// Returns every rule of `TDH.SYS.CONFIG` that `tdmrs` violate on a platform with these CMRs and limits.
pub fn violations(tdmrs: &[Tdmr], cmrs: &[Span], limits: &Limits) -> Vec<Violation> {
    let mut found = Vec::new();
    if tdmrs.is_empty() || tdmrs.len() > usize::from(limits.max_tdmrs) {
        found.push(Violation::TdmrCount(tdmrs.len()));
    }
    let cmrs = joined(cmrs);
    let pamts: Vec<(usize, PamtLevel, Span)> = tdmrs
        .iter()
        .enumerate()
        .flat_map(|(i, t)| PamtLevel::ALL.map(|level| (i, level, t.pamt[level as usize])))
        .collect();

    for (i, tdmr) in tdmrs.iter().enumerate() {
        let Span { start, end } = tdmr.span;
        if !start.is_multiple_of(1 << 30)
            || !end.is_multiple_of(1 << 30)
            || start >= end
            || end > limits.first_hkid_address
        {
            found.push(Violation::InvalidTdmr(i));
        }
        if i > 0 && start < tdmrs[i - 1].span.end {
            found.push(Violation::NonOrderedTdmr(i));
        }
        if tdmr.reserved.len() > usize::from(limits.max_reserved_per_tdmr) {
            found.push(Violation::ReservedCount(i));
        }
        for (j, area) in tdmr.reserved.iter().enumerate() {
            if area.start >= area.end || !whole_pages(*area) || area.start < start || area.end > end
            {
                found.push(Violation::InvalidReserved(i, j));
            }
            if j > 0 && area.start < tdmr.reserved[j - 1].end {
                found.push(Violation::NonOrderedReserved(i, j));
            }
        }
        if open_parts(tdmr).any(|part| !inside_one(&cmrs, part)) {
            found.push(Violation::TdmrOutsideCmrs(i));
        }
    }

    for (n, &(i, level, area)) in pamts.iter().enumerate() {
        let (page, entry) = match level {
            PamtLevel::Page4K => (4096, limits.pamt_entry_bytes[0]),
            PamtLevel::Page2M => (2 << 20, limits.pamt_entry_bytes[1]),
            PamtLevel::Page1G => (1 << 30, limits.pamt_entry_bytes[2]),
        };
        let needed = (tdmrs[i].span.end - tdmrs[i].span.start) / page * u64::from(entry);
        if !whole_pages(area)
            || area.end - area.start < needed
            || area.end > limits.first_hkid_address
        {
            found.push(Violation::InvalidPamt(i, level));
        }
        if !inside_one(&cmrs, area) {
            found.push(Violation::PamtOutsideCmrs(i, level));
        }
        for &(other, _, other_area) in &pamts[..n] {
            if overlap(area, other_area) {
                found.push(Violation::PamtOverlap(i, level, other));
            }
        }
        for (other, tdmr) in tdmrs.iter().enumerate() {
            if overlap(area, tdmr.span) && open_parts(tdmr).any(|part| overlap(part, area)) {
                found.push(Violation::PamtInOpenTdmr(i, level, other));
            }
        }
    }
    found
}

/// Returns the parts of a TDMR between its reserved areas.
fn open_parts(tdmr: &Tdmr) -> impl Iterator<Item = Span> + '_ {
    let starts = [tdmr.span.start]
        .into_iter()
        .chain(tdmr.reserved.iter().map(|area| area.end));
    let ends = tdmr
        .reserved
        .iter()
        .map(|area| area.start)
        .chain([tdmr.span.end]);
    starts
        .zip(ends)
        .filter(|(start, end)| start < end)
        .map(|(start, end)| Span { start, end })
}

/// Returns the CMRs in order, adjacent ones merged, as the module sees them.
fn joined(cmrs: &[Span]) -> Vec<Span> {
    let mut cmrs: Vec<Span> = cmrs
        .iter()
        .copied()
        .filter(|cmr| cmr.start < cmr.end)
        .collect();
    cmrs.sort_unstable();
    cmrs.dedup_by(|next, last| {
        let touching = next.start <= last.end;
        if touching {
            last.end = last.end.max(next.end);
        }
        touching
    });
    cmrs
}

fn whole_pages(span: Span) -> bool {
    span.start.is_multiple_of(4096) && span.end.is_multiple_of(4096)
}

fn overlap(a: Span, b: Span) -> bool {
    a.start < b.end && b.start < a.end
}

fn inside_one(cmrs: &[Span], span: Span) -> bool {
    cmrs.iter()
        .any(|cmr| cmr.start <= span.start && span.end <= cmr.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tdmr::machines::{GIB, LIMITS_1_5};
    use alloc::vec;

    const CMRS: [Span; 2] = [
        Span {
            start: GIB,
            end: 5 * GIB,
        },
        Span {
            start: 8 * GIB,
            end: 9 * GIB,
        },
    ];

    /// A TDMR at 1 GiB with its PAMT in the second CMR.
    fn good() -> Tdmr {
        let pamt = 8 * GIB;
        Tdmr {
            span: Span::new(GIB, 3 * GIB),
            pamt: [
                Span::new(pamt, pamt + (8 << 20)),
                Span::new(pamt + (8 << 20), pamt + (8 << 20) + 0x4000),
                Span::new(pamt + (9 << 20), pamt + (9 << 20) + 0x1000),
            ],
            reserved: vec![
                Span::new(GIB, GIB + 0x2000),
                Span::new(2 * GIB, 2 * GIB + 0x1000),
            ],
            node: None,
        }
    }

    fn check(tdmrs: &[Tdmr]) -> Vec<Violation> {
        violations(tdmrs, &CMRS, &LIMITS_1_5)
    }

    #[test]
    fn a_good_tdmr_violates_nothing() {
        assert_eq!(check(&[good()]), []);
    }

    #[test]
    fn the_number_of_tdmrs_is_limited() {
        assert_eq!(check(&[]), [Violation::TdmrCount(0)]);
        let one = Limits {
            max_tdmrs: 1,
            ..LIMITS_1_5
        };
        let mut second = good();
        second.span = Span::new(3 * GIB, 4 * GIB);
        second.reserved.clear();
        second.pamt = second
            .pamt
            .map(|area| Span::new(area.start + (32 << 20), area.end + (32 << 20)));
        assert_eq!(
            violations(&[good(), second], &CMRS, &one),
            [Violation::TdmrCount(2)]
        );
    }

    #[test]
    fn each_wrong_tdmr_field_is_told() {
        let with = |change: fn(&mut Tdmr)| {
            let mut tdmr = good();
            change(&mut tdmr);
            check(&[tdmr])
        };
        use PamtLevel::*;
        use Violation::*;
        assert_eq!(with(|t| t.span.start += 4096)[0], InvalidTdmr(0));
        assert_eq!(with(|t| t.span.end += 4096)[0], InvalidTdmr(0));
        assert_eq!(
            with(|t| t.span = Span::new(5 * GIB, 5 * GIB))[0],
            InvalidTdmr(0)
        );
        assert_eq!(with(|t| t.span.end = 6 * GIB)[0], TdmrOutsideCmrs(0));
        assert_eq!(with(|t| t.reserved[1].end += 1)[0], InvalidReserved(0, 1));
        assert_eq!(
            with(|t| t.reserved[1] = Span::new(3 * GIB, 3 * GIB + 4096))[0],
            InvalidReserved(0, 1)
        );
        assert_eq!(
            with(|t| t.reserved[1].start = GIB + 4096),
            [NonOrderedReserved(0, 1)]
        );
        assert_eq!(
            with(|t| t.reserved = vec![Span::new(GIB, GIB + 4096); 17])[0],
            ReservedCount(0)
        );
        assert_eq!(with(|t| t.pamt[0].end -= 4096), [InvalidPamt(0, Page4K)]);
        assert_eq!(with(|t| t.pamt[1].end -= 1), [InvalidPamt(0, Page2M)]);
        assert_eq!(with(|t| t.pamt[1] = t.pamt[0]), [PamtOverlap(0, Page2M, 0)]);
        assert_eq!(
            with(|t| t.pamt[2] = Span::new(7 * GIB, 7 * GIB + 4096)),
            [PamtOutsideCmrs(0, Page1G)]
        );
        assert_eq!(
            with(|t| t.pamt[2] = Span::new(GIB + 0x2000, GIB + 0x3000)),
            [PamtInOpenTdmr(0, Page1G, 0)]
        );
        assert_eq!(
            with(|t| t.pamt[2] = Span::new(GIB + 0x1000, GIB + 0x2000)),
            []
        );
    }

    #[test]
    fn tdmrs_ascend_without_overlap() {
        let found = check(&[good(), good()]);
        assert!(found.contains(&Violation::NonOrderedTdmr(1)));
        assert!(found.contains(&Violation::PamtOverlap(1, PamtLevel::Page4K, 0)));
    }

    #[test]
    fn abutting_cmrs_count_as_one() {
        let cmrs = [
            Span::new(2 * GIB, 5 * GIB),
            CMRS[1],
            Span::new(GIB, 2 * GIB),
            Span::new(0, 0),
        ];
        assert_eq!(violations(&[good()], &cmrs, &LIMITS_1_5), []);
    }

    #[test]
    fn an_address_with_hkid_bits_is_told() {
        let limits = Limits {
            first_hkid_address: 2 * GIB,
            ..LIMITS_1_5
        };
        let found = violations(&[good()], &CMRS, &limits);
        assert!(found.contains(&Violation::InvalidTdmr(0)));
        assert!(found.contains(&Violation::InvalidPamt(0, PamtLevel::Page4K)));
    }
}

//! Tests of the planner on machines like real servers, and on machines like none.

extern crate std;

use alloc::{vec, vec::Vec};
use proptest::prelude::*;
use std::{
    println,
    time::{Duration, Instant},
};

use super::machines::*;
use super::*;

fn reasons(plan: &Plan) -> Vec<Why> {
    let mut reasons: Vec<Why> = plan.left_out.iter().map(|left| left.why).collect();
    reasons.sort_unstable();
    reasons.dedup();
    reasons
}

#[test]
fn a_small_machine_becomes_one_tdmr_around_the_pci_hole_less() {
    let machine = Machine::default()
        .ram(0x10_0000, 2 * GIB, 0)
        .ram(4 * GIB, 6 * GIB, 0);
    let plan = machine.plan(&LIMITS_1_5);
    assert_eq!(
        plan.tdmrs.iter().map(|t| t.span).collect::<Vec<_>>(),
        [Span::new(0, 2 * GIB), Span::new(4 * GIB, 6 * GIB)]
    );
    // The first MiB is in no CMR here, so it is reserved.
    assert_eq!(plan.tdmrs[0].reserved[0], FIRST_MIB);
    assert_eq!(plan.pamt_bytes(), 2 * LIMITS_1_5.pamt_total(2 * GIB));
    assert_eq!(LIMITS_1_5.pamt_total(2 * GIB), 8 * MIB + 0x4000 + 0x1000);
    assert_eq!(plan.left_out, []);
    assert_eq!(plan.private.bytes(), 4 * GIB - MIB - plan.pamt_bytes());
}

#[test]
fn memory_that_cannot_be_private_holds_the_pamt_first() {
    // The block has just as much memory as its PAMT would take: not worth a TDMR, but enough for another block's PAMT.
    let cost = LIMITS_1_5.pamt_total(GIB);
    let machine = Machine::default()
        .ram(7 * GIB, 7 * GIB + cost, 0)
        .ram(8 * GIB, 9 * GIB, 0);
    let plan = machine.plan(&LIMITS_1_5);
    assert_eq!(plan.tdmrs.len(), 1);
    assert_eq!(plan.pamt.spans(), [Span::new(7 * GIB, 7 * GIB + cost)]);
    assert_eq!(plan.private.spans(), [Span::new(8 * GIB, 9 * GIB)]);
    assert_eq!(plan.tdmrs[0].reserved, []);
}

#[test]
fn memory_left_out_is_reported_with_the_reason() {
    let mut machine =
        Machine::default()
            .ram(8 * GIB, 9 * GIB, 0)
            .ram(7 * GIB, 7 * GIB + 3 * MIB, 0);
    let outside = Span::new(6 * GIB, 6 * GIB + 4 * MIB);
    machine.usable.push(UsableRegion {
        span: outside,
        node: Some(0),
    });
    let plan = machine.plan(&LIMITS_1_5);
    let small = Span::new(7 * GIB, 7 * GIB + 3 * MIB);
    assert_eq!(
        plan.left_out,
        [
            LeftOut {
                span: outside,
                why: Why::OutsideCmrs
            },
            LeftOut {
                span: small,
                why: Why::NotWorthItsPamt
            }
        ]
    );
}

#[test]
fn an_excluded_image_costs_no_reserved_area() {
    let machine = Machine::default()
        .ram(4 * GIB, 8 * GIB, 0)
        .excluding(5 * GIB, 5 * GIB + 16 * MIB);
    let plan = machine.plan(&LIMITS_1_5);
    assert_eq!(plan.tdmrs.len(), 1);
    assert_eq!(
        plan.tdmrs[0].reserved.len(),
        1,
        "the PAMT alone is reserved"
    );
    assert_eq!(
        plan.private
            .bytes_in(Span::new(5 * GIB, 5 * GIB + 16 * MIB)),
        0
    );
}

#[test]
fn each_node_holds_its_own_pamt() {
    let machine = Machine::default()
        .ram(4 * GIB, 260 * GIB, 0)
        .ram(260 * GIB, 516 * GIB, 1)
        .ram(516 * GIB, 772 * GIB, 2);
    let plan = machine.plan(&LIMITS_1_5);
    assert_eq!(plan.tdmrs.len(), 3);
    for tdmr in &plan.tdmrs {
        assert!(
            tdmr.pamt
                .iter()
                .all(|area| area.intersect(tdmr.span) == *area)
        );
    }
}

#[test]
fn low_memory_is_spared() {
    let machine = Machine::default()
        .ram(MIB, 2 * GIB, 0)
        .ram(4 * GIB, 68 * GIB, 0);
    let plan = machine.plan(&LIMITS_1_5);
    assert!(plan.pamt.spans().iter().all(|span| span.start >= 4 * GIB));
}

#[test]
fn more_holes_than_reserved_areas_split_the_tdmr_at_no_loss() {
    // 24 holes of 1 MiB, 4 GiB apart: too many for one TDMR, which has at most 16 reserved areas.
    let mut machine = Machine::default();
    for i in 0..25 {
        machine = machine.ram((4 + 4 * i) * GIB + MIB, (8 + 4 * i) * GIB, 0);
    }
    let plan = machine.plan(&LIMITS_1_5);
    assert_eq!(plan.tdmrs.len(), 2);
    assert_eq!(plan.left_out, []);
}

#[test]
fn more_holes_in_one_block_than_reserved_areas_lose_the_smallest_pieces() {
    let limits = Limits {
        max_reserved_per_tdmr: 4,
        ..LIMITS_1_5
    };
    let mut machine = Machine::default();
    for i in 0..8 {
        machine = machine.ram(
            4 * GIB + 100 * i * MIB,
            4 * GIB + (100 * i + 20 + i) * MIB,
            0,
        );
    }
    machine = machine.ram(5 * GIB, 8 * GIB, 0);
    let plan = machine.plan(&limits);
    assert_eq!(reasons(&plan), [Why::TooFewReservedAreas]);
    let lost: u64 = plan.left_out.iter().map(|left| left.span.bytes()).sum();
    // 8 holes and 4 areas: four joins, across the pieces of 21 to 24 MiB. Part of what is lost holds a PAMT.
    assert!(lost <= (21 + 22 + 23 + 24) * MIB, "{lost:#x}");
    assert!(lost + plan.pamt_bytes() >= (21 + 22 + 23 + 24) * MIB);
}

#[test]
fn more_regions_than_tdmrs_join_the_close_and_give_up_the_small() {
    let limits = Limits {
        max_tdmrs: 2,
        ..LIMITS_1_5
    };
    // Two pieces 1 GiB apart: joining them costs PAMT for 1 GiB. The lone 2 MiB over its PAMT costs less to give up.
    let machine = Machine::default()
        .ram(4 * GIB, 8 * GIB, 0)
        .ram(9 * GIB, 12 * GIB, 0)
        .ram(100 * GIB, 100 * GIB + 6 * MIB, 0)
        .ram(200 * GIB, 300 * GIB, 0);
    let plan = machine.plan(&limits);
    let spans: Vec<Span> = plan.tdmrs.iter().map(|t| t.span).collect();
    assert_eq!(
        spans,
        [
            Span::new(4 * GIB, 12 * GIB),
            Span::new(200 * GIB, 300 * GIB)
        ]
    );
    assert_eq!(reasons(&plan), [Why::TooFewTdmrs]);
}

#[test]
fn interleaved_nodes_lose_locality_before_memory() {
    let mut machine = Machine::default();
    for i in 0..1024 {
        machine = machine.ram((4 + i) * GIB, (5 + i) * GIB, (i % 2) as u32);
    }
    let plan = machine.plan(&LIMITS_1_5);
    assert_eq!(plan.tdmrs.len(), 64);
    assert_eq!(plan.left_out, []);
}

#[test]
fn a_pamt_too_large_for_any_gap_halves_the_tdmr() {
    // 64 GiB with free memory in pieces of 100 MiB: the PAMT of 256 MiB fits nowhere, that of a 16 GiB TDMR does.
    let mut machine = Machine::default().ram(64 * GIB, 128 * GIB, 0);
    for i in 0..640 {
        machine = machine.excluding(
            64 * GIB + (100 + 101 * i) * MIB,
            64 * GIB + (101 + 101 * i) * MIB,
        );
    }
    machine
        .excluded
        .push(Span::new(128 * GIB - 960 * MIB, 128 * GIB));
    let plan = machine.plan(&LIMITS_1_5);
    assert!(plan.tdmrs.len() >= 4, "{}", plan.tdmrs.len());
    assert_eq!(plan.left_out, []);
}

#[test]
fn an_impossible_plan_is_refused_with_the_reason() {
    let refused =
        |machine: &Machine, limits: &Limits| plan(&machine.map(), limits).expect_err("refused");
    let machine = Machine::default().ram(4 * GIB, 8 * GIB, 0);
    assert_eq!(
        refused(
            &machine,
            &Limits {
                max_tdmrs: 0,
                ..LIMITS_1_5
            }
        ),
        PlanError::ZeroLimit("MAX_TDMRS")
    );
    assert_eq!(
        refused(
            &machine,
            &Limits {
                pamt_entry_bytes: [16, 0, 16],
                ..LIMITS_1_5
            }
        ),
        PlanError::ZeroLimit("PAMT_2M_ENTRY_SIZE")
    );
    assert_eq!(
        refused(&Machine::default(), &LIMITS_1_5),
        PlanError::NothingConvertible
    );
    let no_cmrs = Machine {
        cmrs: vec![],
        ..machine.clone()
    };
    assert_eq!(
        refused(&no_cmrs, &LIMITS_1_5),
        PlanError::NothingConvertible
    );
    let tiny = Machine::default().ram(4 * GIB, 4 * GIB + MIB, 0);
    assert_eq!(
        refused(&tiny, &LIMITS_1_5),
        PlanError::NothingCovered(Why::NotWorthItsPamt)
    );
    let mut shredded = Machine::default();
    for i in 0..64 {
        shredded = shredded.ram(4 * GIB + 2 * i * MIB, 4 * GIB + (2 * i + 1) * MIB, 0);
    }
    assert_eq!(
        refused(&shredded, &LIMITS_1_5),
        PlanError::NothingCovered(Why::NoRoomForPamt)
    );
}

#[test]
fn odd_input_is_accepted_as_far_as_it_makes_sense() {
    let region = |start, end, node| UsableRegion {
        span: Span { start, end },
        node,
    };
    let machine = Machine {
        cmrs: vec![
            Span::new(0, 0),
            Span::new(4 * GIB + 0x1001, 6 * GIB - 1),
            Span::new(5 * GIB, 9 * GIB),
        ],
        usable: vec![
            region(5 * GIB + 100, 9 * GIB, None),
            region(4 * GIB + 7, 6 * GIB + 5, Some(3)),
        ],
        excluded: vec![Span::new(7 * GIB + 1, 7 * GIB + 2)],
    };
    let plan = machine.plan(&Limits {
        first_hkid_address: 8 * GIB + 12345,
        ..LIMITS_1_5
    });
    assert_eq!(reasons(&plan), [Why::OutsideCmrs, Why::BeyondHkidBits]);
    assert!(plan.tdmrs.iter().all(|tdmr| tdmr.span.end <= 8 * GIB));
}

/// Computes the net memory that a plan must reach, block by block: the memory of each 1 GiB block less its PAMT, summed
/// over the most valuable runs of adjacent blocks, one for each TDMR.
fn promised(machine: &Machine, limits: &Limits) -> u64 {
    use std::collections::BTreeMap;
    let excluded: SpanSet = machine
        .excluded
        .iter()
        .copied()
        .chain([FIRST_MIB])
        .collect();
    let usable: SpanSet = machine.usable.iter().map(|region| region.span).collect();
    let cmrs: SpanSet = machine.cmrs.iter().copied().collect();
    let pool = usable.intersect(&cmrs).subtract(&excluded);
    let mut blocks: BTreeMap<u64, u64> = BTreeMap::new();
    for span in pool.spans() {
        for block in span.start / GIB..span.end.div_ceil(GIB) {
            *blocks.entry(block).or_default() += span
                .intersect(Span::new(block * GIB, (block + 1) * GIB))
                .bytes();
        }
    }
    let cost = limits.pamt_total(GIB);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (block, bytes) in blocks.into_iter().filter(|(_, bytes)| *bytes > cost) {
        match runs.last_mut() {
            Some((next, sum)) if *next == block => {
                *next += 1;
                *sum += bytes - cost;
            }
            _ => runs.push((block + 1, bytes - cost)),
        }
    }
    let mut values: Vec<u64> = runs.into_iter().map(|(_, sum)| sum).collect();
    values.sort_unstable_by(|a, b| b.cmp(a));
    values.iter().take(usize::from(limits.max_tdmrs)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn every_server_is_covered_as_far_as_arithmetic_allows(machine in server(), max_tdmrs in 1u16..=64) {
        let limits = Limits { max_tdmrs, ..LIMITS_1_5 };
        if let Ok(plan) = plan(&machine.map(), &limits) {
            machine.check(&plan, &limits);
            prop_assert!(!reasons(&plan).contains(&Why::NoRoomForPamt));
            prop_assert!(!reasons(&plan).contains(&Why::TooFewReservedAreas));
            // Every TDMR rounds its three PAMT areas up to whole pages.
            let rounding = 3 * PAGE * plan.tdmrs.len() as u64;
            prop_assert!(plan.private.bytes() + rounding >= promised(&machine, &limits));
        } else {
            prop_assert_eq!(promised(&machine, &limits), 0);
        }
    }

    #[test]
    fn every_plan_satisfies_the_rules_whatever_the_map((machine, limits) in shreds()) {
        if let Ok(plan) = plan(&machine.map(), &limits) {
            machine.check(&plan, &limits);
        }
    }

    #[test]
    fn a_map_in_any_order_has_the_same_plan(machine in server()) {
        let mut turned = machine.clone();
        turned.cmrs.reverse();
        turned.usable.reverse();
        turned.excluded.reverse();
        prop_assert_eq!(plan(&machine.map(), &LIMITS_1_5), plan(&turned.map(), &LIMITS_1_5));
    }
}

/// Prints the planning time of large maps; run with `--release -- --nocapture`. It asserts the plan, not the time.
#[test]
fn large_maps_are_planned_at_once() {
    for (name, machine) in maps_of_64_tib() {
        let (mut planned, mut fastest) = (Err(PlanError::NothingConvertible), Duration::MAX);
        for _ in 0..5 {
            let begin = Instant::now();
            planned = plan(&machine.map(), &LIMITS_1_5);
            fastest = fastest.min(begin.elapsed());
        }
        let planned = planned.expect("a plan");
        println!(
            "{name}: {} regions, {} TDMRs, {} GiB private, {} GiB PAMT, planned in {fastest:?} at best",
            machine.usable.len(),
            planned.tdmrs.len(),
            planned.private.bytes() >> 30,
            planned.pamt_bytes() >> 30,
        );
        machine.check(&planned, &LIMITS_1_5);
        assert!(planned.private.bytes() + 3 * PAGE * 64 >= promised(&machine, &LIMITS_1_5));
    }
}

#[test]
fn a_tdmr_info_holds_sizes_and_offsets() {
    let machine = Machine::default()
        .ram(MIB, 2 * GIB, 0)
        .ram(4 * GIB, 8 * GIB, 0);
    let plan = machine.plan(&LIMITS_1_5);
    let (tdmr, info) = (&plan.tdmrs[1], plan.tdmrs[1].info());
    assert_eq!((info.base, info.size), (4 * GIB, 4 * GIB));
    assert_eq!(
        (info.pamt_4k.base, info.pamt_4k.size),
        (tdmr.pamt[0].start, 16 * MIB)
    );
    assert_eq!(
        (info.pamt_2m.base, info.pamt_2m.size),
        (tdmr.pamt[1].start, 32 << 10)
    );
    assert_eq!(
        (info.pamt_1g.base, info.pamt_1g.size),
        (tdmr.pamt[2].start, 4096)
    );
    assert_eq!(info.reserved[0].offset, tdmr.reserved[0].start - 4 * GIB);
    assert_eq!(info.reserved[0].size, tdmr.reserved[0].bytes());
    assert_eq!(info.reserved[1].size, 0);
}

//! Tests of joining split pages in idle time.

use std::sync::atomic::AtomicU64;

use mm::private::{Clearing, Error, Found, NoneRuns, Outcome, Pool, Search};
use seam::abi::{Leaf, Operand, PAGE_2M, PAGE_4K, PageSize, Status};
use seam::address::Gpa;

use crate::build::end;
use crate::kit::{Host, Td};
use crate::reclaim::reclaim;

/// The page that is removed and mapped again.
const PAGE: Gpa = Gpa(PAGE_2M + 7 * PAGE_4K);
/// Number of steps in which a search asks about all pages of a block.
const STEPS: usize = 8;

/// Maps large pages. The guest accepts one of them, which then loses a small page.
fn with_a_gap(td: &Td<'_>) {
    td.host.with(0, |cpu| {
        td.map.populate(cpu, 0..3 * PAGE_2M).unwrap();
        let accepted = td.accept(PAGE_2M, PageSize::Size2M);
        assert_eq!(accepted, Some(Status::SUCCESS));
        let taken = td.map.remove(cpu, PAGE.0..PAGE.0 + PAGE_4K, &NoneRuns);
        assert!(matches!(taken, Ok(Outcome::Removed(_))), "{taken:?}");
    });
    assert_eq!(td.map.holding().pages, [511, 2, 0]);
}

fn map_again(td: &Td<'_>) {
    map_at(td, PAGE);
}

fn map_at(td: &Td<'_>, gpa: Gpa) {
    let mapped = td
        .host
        .with(0, |cpu| td.map.map(cpu, gpa, PageSize::Size4K));
    mapped.unwrap();
}

fn accept(td: &Td<'_>) {
    accept_at(td, PAGE);
}

fn accept_at(td: &Td<'_>, gpa: Gpa) {
    let accepted = td.accept(gpa.0, PageSize::Size4K);
    assert_eq!(accepted, Some(Status::SUCCESS));
}

/// Runs a search to its end. Returns the results of its steps, and the most pages that one step asked about.
fn search(td: &Td<'_>) -> (Vec<Found>, u64) {
    let (mut search, mut steps, mut most) = (Search::default(), Vec::new(), 0);
    loop {
        let before = td.host.calls(Leaf::MemSeptRd);
        let step = td
            .host
            .with(0, |cpu| td.map.search(cpu, &mut search, &NoneRuns));
        most = most.max(td.host.calls(Leaf::MemSeptRd) - before);
        match step.unwrap() {
            Found::Nothing => return (steps, most),
            step => steps.push(step),
        }
    }
}

#[test]
fn a_returning_page_gets_its_own_frame_and_the_block_is_joined() {
    for clearing in [Clearing::Clear, Clearing::Leave, Clearing::Keep] {
        // With patterns, the module would report an uncleared frame given to a TD as a violation.
        let cleared = clearing == Clearing::Clear;
        let host = Host::new(if cleared { "patterns" } else { "" });
        let td = Td::with_clearing(&host, 33, 1, clearing);
        td.map.finalize(&host.on(0)).unwrap();
        let (first, second) = (host.frame(), host.frame());
        with_a_gap(&td);
        let next = Gpa(PAGE.0 + PAGE_4K);
        host.with(0, |cpu| {
            let taken = td.map.remove(cpu, next.0..next.0 + PAGE_4K, &NoneRuns);
            taken.unwrap();
        });
        // An allocation of any frame now gets this one or, where frames are kept, that of the other page.
        host.give(first);
        map_again(&td);
        assert!(!td.map.is_joinable(), "a page is missing");
        map_at(&td, next);
        assert!(td.map.is_joinable());
        accept(&td);
        accept_at(&td, next);
        host.give(second);
        host.audit();
        let (steps, most) = search(&td);
        assert_eq!(steps.last(), Some(&Found::Whole), "{clearing:?}: {steps:?}");
        assert_eq!((steps.len(), most), (STEPS, 64));
        assert_eq!(td.map.holding().pages, [0, 3, 0]);
        assert_eq!(td.map.made_whole(), 1);
        assert!(!td.map.is_joinable());
        host.audit();
        td.release();
        reclaim(td, Clearing::Clear);
        while host.pool.clear_kept() {}
        host.assert_spotless();
    }
}

/// Removes the page once more, maps it again, and accepts it.
fn change(host: &Host, td: &Td<'_>) {
    host.with(0, |cpu| {
        td.map.remove(cpu, PAGE.0..PAGE.0 + PAGE_4K, &NoneRuns)
    })
    .unwrap();
    map_again(td);
    accept(td);
}

#[test]
fn a_page_whose_frame_is_taken_gets_another_and_its_block_stays_split() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    with_a_gap(&td);
    // The frame that was given back has no free neighbours, so it is allocated next.
    let theirs = host.frame();
    map_again(&td);
    accept(&td);
    assert!(!td.map.is_joinable());
    assert_eq!(search(&td).0, []);
    let whole = host.with(0, |cpu| {
        td.map
            .promote(cpu, Gpa(PAGE_2M), PageSize::Size2M, &NoneRuns)
    });
    assert_eq!(whole, Err(Error::NotWhole));
    host.give(theirs);
    host.audit();
    // The page can still get its own frame back.
    change(&host, &td);
    assert_eq!(search(&td).0.last(), Some(&Found::Whole));
    host.audit();
    end(td);
}

#[test]
fn the_pool_hands_out_each_frame_once() {
    let host = Host::new("");
    let frame = host.pool.take(PageSize::Size4K).unwrap();
    let hpa = frame.hpa();
    assert!(host.pool.take_at(hpa, PageSize::Size4K).is_none());
    host.pool.give(core::iter::once(frame));
    let frame = host.pool.take_at(hpa, PageSize::Size4K).unwrap();
    assert_eq!(frame.hpa(), hpa);
    assert!(host.pool.take_at(hpa, PageSize::Size4K).is_none());
    let large = seam::address::Hpa(hpa.0 / PAGE_2M * PAGE_2M);
    assert!(host.pool.take_at(large, PageSize::Size2M).is_none());
    host.pool.give(core::iter::once(frame));
    assert_eq!(host.out(), (0, 0));
}

#[test]
fn an_unaccepted_block_costs_one_call_and_is_given_up_after_a_few_searches() {
    let host = Host::new("");
    let td = Td::runnable(&host, 33, 1);
    with_a_gap(&td);
    map_again(&td);
    let mut searches = 0;
    while td.map.is_joinable() {
        let (steps, most) = search(&td);
        assert!(most <= 1, "{most}");
        assert!(steps.len() <= 1, "{steps:?}");
        searches += 1;
        assert!(searches < 10);
    }
    assert_eq!(td.map.holding().pages, [512, 2, 0]);
    assert_eq!(host.calls(Leaf::MemRangeBlock), 2, "the gap's alone");
    accept(&td);
    assert_eq!(search(&td).0, []);
    // The next change allows another try.
    change(&host, &td);
    assert_eq!(search(&td).0.last(), Some(&Found::Whole));
    end(td);
}

#[test]
fn a_page_that_is_split_because_the_guest_accepts_4_kib_is_one_again_when_it_accepted_all() {
    let host = Host::new("");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| {
        td.map.map(cpu, Gpa(0), PageSize::Size2M).unwrap();
        td.map
            .demote(cpu, Gpa(0), PageSize::Size2M, &NoneRuns)
            .unwrap();
    });
    assert_eq!(search(&td).0, [Found::More]);
    for page in 0..512 {
        td.accept(page * PAGE_4K, PageSize::Size4K);
    }
    assert_eq!(search(&td).0.last(), Some(&Found::Whole));
    assert_eq!(td.map.holding().pages, [0, 1, 0]);
    end(td);
}

#[test]
fn after_a_refusal_pages_are_unchanged_and_the_next_search_continues() {
    let busy = Status::OPERAND_BUSY.with(Operand::RCX);
    for (leaf, status) in [
        (Leaf::MemSeptRd, Status::OPERAND_INVALID),
        (Leaf::MemRangeBlock, Status::OPERAND_INVALID),
        (Leaf::MemTrack, Status::OPERAND_INVALID),
        (Leaf::MemPagePromote, Status::OPERAND_INVALID),
        (Leaf::MemPagePromote, busy.with(Operand::RDX)),
    ] {
        let host = Host::new("patterns");
        let td = Td::runnable(&host, 33, 1);
        with_a_gap(&td);
        map_again(&td);
        accept(&td);
        let before = host.out();
        let calls = AtomicU64::new(0);
        let mut failed = Search::default();
        let error = host.strangely((leaf, status), 1..u64::MAX, &calls, |cpu| {
            loop {
                match td.map.search(cpu, &mut failed, &NoneRuns) {
                    Ok(Found::More) => {}
                    Err(Error::Seam(error)) => return error,
                    other => panic!("{}: {other:?}", leaf.name()),
                }
            }
        });
        assert_eq!(error.leaf(), leaf);
        assert_eq!((td.map.holding().pages, host.out()), ([512, 2, 0], before));
        // The page is usable, at the latest when the guest touches it.
        host.with(0, |cpu| td.map.unblock(cpu, PAGE, &NoneRuns))
            .unwrap();
        let accepted = td.accept(PAGE.0, PageSize::Size4K).unwrap();
        assert_eq!(
            accepted.code(),
            Status::PAGE_ALREADY_ACCEPTED,
            "{}",
            leaf.name()
        );
        while host.with(0, |cpu| td.map.search(cpu, &mut failed, &NoneRuns)) != Ok(Found::Nothing) {
        }
        assert!(td.map.is_joinable(), "{}", leaf.name());
        assert_eq!(search(&td).0.last(), Some(&Found::Whole), "{}", leaf.name());
        assert_eq!(td.map.holding().pages, [0, 3, 0]);
        let frames = host
            .server
            .audit(crate::kit::BASE..crate::kit::BASE + host.size);
        assert!(frames.is_ok());
        end_refused(td);
    }
}

/// A later search unblocks and joins the pages that failed work left blocked, even if the guest never touches it.
#[test]
fn a_search_unblocks_what_an_earlier_one_left_blocked() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    with_a_gap(&td);
    map_again(&td);
    accept(&td);
    let calls = AtomicU64::new(0);
    let mut failed = Search::default();
    let track = (Leaf::MemTrack, Status::OPERAND_INVALID);
    host.strangely(track, 1..u64::MAX, &calls, |cpu| {
        while td.map.search(cpu, &mut failed, &NoneRuns) != Ok(Found::Nothing) {}
    });
    assert_eq!(
        host.with(0, |cpu| td.map.map(cpu, PAGE, PageSize::Size4K)),
        Err(Error::Blocked)
    );
    let mut searches = 0;
    while td.map.is_joinable() || searches == 0 {
        search(&td);
        searches += 1;
    }
    assert_eq!(td.map.holding().pages, [0, 3, 0]);
    end_refused(td);
}

/// Terminates a TD for which the test made calls fail. Such calls count as illegal.
fn end_refused(td: Td<'_>) {
    let host = td.host;
    td.release();
    reclaim(td, Clearing::Clear);
    assert_eq!(host.out(), (0, 0));
    assert_eq!(host.server.module().violations().total(), 0);
}

#[test]
fn a_closing_map_is_left_alone_and_searched_after_it_reopens() {
    let host = Host::new("");
    let td = Td::runnable(&host, 33, 1);
    with_a_gap(&td);
    map_again(&td);
    accept(&td);
    let mut half = Search::default();
    host.with(0, |cpu| {
        for _ in 0..3 {
            let step = td.map.search(cpu, &mut half, &NoneRuns);
            assert_eq!(step, Ok(Found::More));
        }
        td.map
            .close(|_| core::ops::ControlFlow::Continue(()))
            .unwrap();
        let asked = host.calls(Leaf::MemSeptRd);
        let step = td.map.search(cpu, &mut half, &NoneRuns);
        assert_eq!(step, Ok(Found::Nothing));
        assert_eq!(host.calls(Leaf::MemSeptRd), asked);
        td.map.reopen().unwrap();
    });
    assert_eq!(search(&td).0.last(), Some(&Found::Whole));
    end(td);
}

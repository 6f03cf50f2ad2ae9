//! Tests that idle CPUs promote a block again after a guest has shared one of its pages and taken the page back.

use std::thread::sleep;
use std::time::Duration;

use host::platform::Platform;
use host::td::Td;
use host::td::end::{Ended, Way};
use host::td::join::PAUSE_US;
use host::td::life::State;
use mm::private::Pool;
use seam::abi::{Leaf, PageSize, Status};

use super::kit::{Server, TWO, td};
use super::site::{Act, Script, Site, accept, call, on_site};

const MAP_GPA: u64 = 0x1_0001;
const SHARED: u64 = 1 << 47;
/// Memory outside the image.
const BLOCK: u64 = 14 << 20;
/// The page that is shared and taken back.
const PAGE: u64 = BLOCK + 0x7000;
/// Maximum number of SEAMCALLs of a step: the search, the promotion of one page, and a second TDH.MEM.TRACK.
const MOST_CALLS: u64 = 64 + 5;

fn share() -> Act {
    Act::Call(call(MAP_GPA, [SHARED | PAGE, 0x1000, 0, 0]))
}

fn take_back() -> Act {
    Act::Call(call(MAP_GPA, [PAGE, 0x1000, 0, 0]))
}

fn pages(td: &Td) -> [u64; 3] {
    td.holding().pages
}

/// Lets the guest do `acts`, all in one turn.
fn play(site: &Site<'_>, acts: &[Act]) -> Script {
    let script = site.play(acts);
    assert_eq!(script.left(), 0);
    script
}

/// Starts a TD whose guest has accepted a page of 2 MiB. Returns its number of pages by size.
fn whole(site: &Site<'_>) -> [u64; 3] {
    site.tds.start(1).unwrap();
    let script = play(site, &[Act::Touch(BLOCK), accept(BLOCK | 1)]);
    assert_eq!(script.answers()[0].regs().rax, Status::SUCCESS.0);
    pages(&td(&site.tds, 1))
}

fn after_a_pause(site: &Site<'_>) {
    sleep(Duration::from_micros(PAUSE_US + 1000));
    while site.tds.work() {}
}

fn with_site(test: impl FnOnce(&Site<'_>)) {
    let server = Server::new("");
    on_site(&server, TWO, test);
    server.assert_spotless();
}

#[test]
fn a_page_that_was_shared_and_taken_back_is_a_part_of_2_mib_again() {
    with_site(|site| {
        let pool = site.rig.pool();
        // Take frames next to those that TDs are built from, so that they precede those of the block.
        site.tds.create(1).unwrap();
        let small = || pool.take(PageSize::Size4K).unwrap();
        let (first, second) = (small(), small());
        let before = whole(site);
        let one = td(&site.tds, 1);
        play(site, &[share()]);
        assert_eq!(pages(&one), [before[0] + 511, before[1] - 1, 0]);
        // The next request for a frame gets this one.
        pool.give(core::iter::once(first));
        while site.tds.work() {}
        assert_eq!(site.rig.calls(Leaf::MemSeptRd), 0, "a page is missing");
        play(site, &[take_back(), accept(PAGE)]);
        assert_eq!(pages(&one), [before[0] + 512, before[1] - 1, 0]);
        let calls = || Leaf::ALL.iter().map(|leaf| site.rig.calls(*leaf)).sum();
        let mut most = 0;
        loop {
            let so_far: u64 = calls();
            let did = site.tds.work();
            most = most.max(calls() - so_far);
            if !did {
                break;
            }
        }
        assert!((64..=MOST_CALLS).contains(&most), "{most}");
        assert_eq!(pages(&one), before);
        pool.give(core::iter::once(second));
        assert_eq!(one.map().unwrap().made_whole(), 1);
        // The guest has its page, and can do it again.
        let script = play(site, &[accept(PAGE), share(), take_back(), accept(PAGE)]);
        let status = Status(script.answers()[0].regs().rax);
        assert_eq!(status.code(), Status::PAGE_ALREADY_ACCEPTED);
        after_a_pause(site);
        assert_eq!(pages(&one), before);
    });
}

#[test]
fn a_page_that_is_accepted_in_parts_is_one_page_again() {
    with_site(|site| {
        site.tds.start(1).unwrap();
        let one = td(&site.tds, 1);
        play(site, &[Act::Touch(BLOCK)]);
        let before = pages(&one);
        let all: Vec<_> = (0..512).map(|page| accept(BLOCK + page * 0x1000)).collect();
        play(site, &all);
        assert_eq!(pages(&one), [before[0] + 512, before[1] - 1, 0]);
        while site.tds.work() {}
        assert_eq!(pages(&one), before);
    });
}

#[test]
fn unaccepted_memory_stays_split() {
    with_site(|site| {
        let before = whole(site);
        let one = td(&site.tds, 1);
        play(site, &[share(), take_back(), Act::Touch(PAGE)]);
        let blocks = site.rig.calls(Leaf::MemRangeBlock);
        while site.tds.work() {}
        assert_eq!(site.rig.calls(Leaf::MemSeptRd), 1, "one question is enough");
        assert_eq!(site.rig.calls(Leaf::MemRangeBlock), blocks);
        assert_eq!(pages(&one), [before[0] + 512, before[1] - 1, 0]);
        play(site, &[accept(PAGE)]);
        after_a_pause(site);
        assert_eq!(pages(&one), before);
    });
}

#[test]
fn a_block_with_another_frame_in_it_stays_split() {
    with_site(|site| {
        let before = whole(site);
        play(site, &[share(), take_back()]);
        // Others take enough frames to include the returned one.
        let pool = site.rig.pool();
        let theirs: Vec<_> = (0..2048)
            .filter_map(|_| pool.take(PageSize::Size4K))
            .collect();
        play(site, &[accept(PAGE)]);
        while site.tds.work() {}
        assert_eq!(site.rig.calls(Leaf::MemSeptRd), 0);
        let now = pages(&td(&site.tds, 1));
        assert_eq!(now, [before[0] + 512, before[1] - 1, 0]);
        pool.give(theirs.into_iter());
    });
}

#[test]
fn a_td_that_is_terminated_meanwhile_is_left_alone() {
    for steps in [0, 1, 5] {
        with_site(|site| {
            let before = whole(site);
            play(site, &[share(), take_back(), accept(PAGE)]);
            assert!((0..steps).all(|_| site.tds.work()));
            let asked = site.rig.calls(Leaf::MemSeptRd);
            assert_eq!(asked, steps * 64);
            // Steps are also made for a paused TD.
            if steps == 5 {
                site.tds.pause(1).unwrap();
                assert!(site.tds.work());
                assert_eq!(site.rig.calls(Leaf::MemSeptRd), asked + 64);
            }
            let asked = site.rig.calls(Leaf::MemSeptRd);
            site.tds.ask_end(1).unwrap();
            assert_eq!(site.tds.state(1), State::Terminating);
            assert!(matches!(site.tds.terminate(1), Ok(Ended::Now(_))));
            assert!(pages(&td(&site.tds, 1)) != before);
            while site.tds.work() {}
            assert_eq!(site.tds.state(1), State::Reclaimed);
            assert_eq!(site.rig.calls(Leaf::MemSeptRd), asked);
        });
    }
}

#[test]
fn memory_that_comes_back_comes_first() {
    with_site(|site| {
        let before = whole(site);
        play(site, &[share(), take_back(), accept(PAGE)]);
        site.tds.start(2).unwrap();
        site.tds.terminate(2).unwrap();
        while site.tds.state(2) != State::Reclaimed {
            assert!(site.tds.work());
            assert_eq!(site.rig.calls(Leaf::MemSeptRd), 0);
        }
        while site.tds.work() {}
        assert_eq!(pages(&td(&site.tds, 1)), before);
    });
}

#[test]
fn after_a_failed_call_the_guest_keeps_its_pages_and_the_next_search_joins_them() {
    for leaf in [
        Leaf::MemSeptRd,
        Leaf::MemRangeBlock,
        Leaf::MemTrack,
        Leaf::MemPagePromote,
        Leaf::PhymemPageWbinvd,
    ] {
        let name = leaf.name();
        let server = Server::new("");
        on_site(&server, TWO, |site| {
            let before = whole(site);
            let one = td(&site.tds, 1);
            play(site, &[share(), take_back(), accept(PAGE)]);
            let split = pages(&one);
            site.rig.refuse(leaf, 1..=u64::MAX, Status::OPERAND_INVALID);
            while site.tds.work() {}
            site.rig.refuse_no_more();
            if leaf != Leaf::PhymemPageWbinvd {
                assert_eq!(pages(&one), split, "{name}");
            }
            // A blocked page is unblocked when the guest touches it.
            let script = play(site, &[Act::Touch(PAGE), accept(PAGE)]);
            let status = Status(script.answers()[0].regs().rax);
            assert_eq!(status.code(), Status::PAGE_ALREADY_ACCEPTED, "{name}");
            after_a_pause(site);
            assert_eq!(pages(&one), before, "{name}");
            let shrunk = site.tds.shrink(1, 12 << 20);
            assert!(shrunk.is_ok(), "{name}: {shrunk:?}");
            assert!(one.holding().stranded == 0);
        });
        server.assert_nothing_lost();
    }
}

#[test]
fn a_dynamic_destroy_frees_joined_pages() {
    with_site(|site| {
        let before = whole(site);
        play(site, &[share(), take_back(), accept(PAGE)]);
        while site.tds.work() {}
        assert_eq!(pages(&td(&site.tds, 1)), before);
        site.rig.set_guest(0, None);
        assert!(matches!(
            site.tds.destroy(1, Way::Dynamic),
            Ok(Ended::Now(_))
        ));
    });
}

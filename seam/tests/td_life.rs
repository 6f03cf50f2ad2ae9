//! A TD's whole life through the typed calls, against the emulated module, with and without faults.

#![expect(
    clippy::disallowed_methods,
    reason = "the test plays the allocator and the pool"
)]

mod rig;

use rig::{Rig, Td};
use seam::abi::{Leaf, PAGE_2M, PageSize, PageType, SeptState, Status};
use seam::address::{Gpa, Level};
use seam::advice::Remedy;
use seam::error::Cause;
use seam::hkid::Hkid;
use seam::retry::Reason;

/// The first HKID after the module's own.
const HKID: u16 = 33;

fn whole_life(rig: &Rig, hkid: u16) {
    let mut td = Td::build(rig, Hkid::mint(hkid));
    td.reshape();
    assert_eq!(td.terminate().surrender(), hkid);
}

#[test]
fn a_td_lives_and_leaves_nothing_behind() {
    let rig = Rig::ready("patterns");
    whole_life(&rig, HKID);
    rig.assert_spotless();
    assert_eq!(rig.pauses(), 0);
}

#[test]
fn frames_and_hkids_serve_one_td_after_the_other() {
    let rig = Rig::ready("patterns");
    let mut hkid = Hkid::mint(HKID);
    for _ in 0..3 {
        hkid = Td::build(&rig, hkid).terminate();
    }
    hkid.surrender();
    rig.assert_spotless();
}

#[test]
fn the_module_and_the_host_agree_whose_a_page_is() {
    let rig = Rig::ready("");
    let td = Td::build(&rig, Hkid::mint(HKID));
    let tdh = rig.on(0);
    let entry = tdh.mem_sept_rd(&td.tdr, Gpa(PAGE_2M), Level::Pd).unwrap();
    assert_eq!(entry.level, Some(Level::Pd));
    assert_eq!(entry.state, SeptState::Pending as u8);
    let page = td.pages.last().unwrap();
    assert_eq!(entry.hpa(), page.hpa());
    let metadata = tdh.phymem_page_rdmd(page.hpa()).unwrap();
    assert_eq!(metadata.page_type, Some(PageType::Reg));
    assert_eq!(metadata.size, Some(PageSize::Size2M));
    assert_eq!(metadata.owner, td.tdr.hpa());
    td.terminate().surrender();
    rig.assert_spotless();
}

#[test]
fn any_leaf_may_be_busy_for_a_while() {
    for leaf in Leaf::ALL {
        let rig = Rig::ready(&format!("patterns\nbusy {} calls 1-3", leaf.name()));
        whole_life(&rig, HKID);
        rig.assert_spotless();
        let calls: u64 = (0..4)
            .map(|lp| rig.on(lp).counters().leaf(*leaf).calls)
            .sum();
        assert_eq!(rig.retries(Reason::Busy), calls.min(3), "{leaf:?}");
    }
}

#[test]
fn any_leaf_may_be_busy_for_so_long_that_it_is_given_up_and_tried_anew() {
    // Busy for longer than the policy retries, so that every page is returned in an error once.
    for leaf in Leaf::ALL {
        let rig = Rig::ready(&format!("patterns\nbusy {} calls 1-300", leaf.name()));
        whole_life(&rig, HKID);
        rig.assert_spotless();
    }
}

#[test]
fn entropy_may_be_short() {
    for leaf in [
        "TDH.MNG.CREATE",
        "TDH.MNG.ADDCX",
        "TDH.MNG.KEY.CONFIG",
        "TDH.SYS.KEY.CONFIG",
    ] {
        let rig = Rig::ready(&format!("patterns\nno-entropy {leaf} calls 1-2"));
        whole_life(&rig, HKID);
        rig.assert_spotless();
        let short = rig.retries(Reason::NoEntropy) + rig.retries(Reason::KeyGeneration);
        // Only the page that completes a TDCS takes entropy.
        assert_eq!(short, if leaf == "TDH.MNG.ADDCX" { 0 } else { 2 }, "{leaf}");
    }
}

#[test]
fn interrupts_stop_what_can_be_stopped_and_it_goes_on() {
    let hooks = "patterns\ninterrupted TDH.PHYMEM.CACHE.WB calls 1-5\ninterrupted TDH.MEM.PAGE.DEMOTE calls 1-2\ninterrupted TDH.MEM.PAGE.PROMOTE calls 1-4";
    let rig = Rig::ready(hooks);
    whole_life(&rig, HKID);
    rig.assert_spotless();
    assert_eq!(rig.retries(Reason::Interrupted), 2 + 4);
    let counters = rig.on(0).counters().leaf(Leaf::PhymemCacheWb);
    assert!(counters.interrupted > 0, "{counters:?}");
}

#[test]
fn whatever_happens_by_chance_nothing_is_lost() {
    for seed in 1..=16 {
        let rig = Rig::ready(&format!(
            "patterns\nseed {seed}\nbusy * chance 1/3\ninterrupted * chance 1/3\nno-entropy * chance 1/3"
        ));
        whole_life(&rig, HKID);
        rig.assert_spotless();
        assert!(rig.retries(Reason::Busy) > 0);
    }
}

#[test]
fn a_step_left_out_is_refused_counted_and_mended() {
    let rig = Rig::ready("patterns");
    let mut td = Td::build(&rig, Hkid::mint(HKID));
    let tdh = rig.on(0);
    let page = td.pages.pop().unwrap();
    let rejected = tdh
        .mem_page_remove(&td.tdr, Gpa(PAGE_2M), page)
        .expect_err("it is not blocked");
    let (error, page) = rejected.into_parts();
    assert!(error.is(Status::GPA_RANGE_NOT_BLOCKED));
    assert_eq!(rig.illegal(), 1);
    tdh.mem_range_block(&td.tdr, Gpa(PAGE_2M), Level::Pd)
        .unwrap();
    let (error, page) = tdh
        .mem_page_remove(&td.tdr, Gpa(PAGE_2M), page)
        .expect_err("it is not tracked")
        .into_parts();
    assert!(error.is(Status::TLB_TRACKING_NOT_DONE));
    tdh.mem_track(&td.tdr).unwrap();
    let page = tdh.mem_page_remove(&td.tdr, Gpa(PAGE_2M), page).unwrap();
    rig.put_away(page);
    td.terminate().surrender();
    rig.frames.assert_all_back();
    assert_eq!(rig.illegal(), 2);
}

#[test]
fn an_hkid_that_is_taken_is_refused_with_everything_given_back() {
    let rig = Rig::ready("patterns");
    let td = Td::build(&rig, Hkid::mint(HKID));
    // Plays a pool that hands out the same HKID twice.
    let (error, (page, hkid)) = rig
        .on(0)
        .mng_create(rig.frames.take_4k(), Hkid::mint(HKID))
        .expect_err("it is taken")
        .into_parts();
    assert!(error.is(Status::HKID_NOT_FREE));
    rig.frames.give(page);
    assert_eq!(hkid.surrender(), HKID);
    td.terminate().surrender();
    rig.frames.assert_all_back();
}

#[test]
fn a_vcpu_that_is_not_flushed_leaves_the_td_as_it_was() {
    let rig = Rig::ready("patterns");
    let td = Td::build(&rig, Hkid::mint(HKID));
    let Td { tdr, .. } = &td;
    assert_eq!(tdr.hkid(), HKID);
    let (error, tdr) = rig
        .on(0)
        .mng_vpflushdone(td.tdr)
        .expect_err("its vCPUs are associated")
        .into_parts();
    assert!(error.is(Status::FLUSHVP_NOT_DONE));
    Td { tdr, ..td }.terminate().surrender();
    rig.frames.assert_all_back();
}

#[test]
fn a_page_that_turns_out_to_be_another_tds_never_comes_home() {
    let rig = Rig::ready("patterns");
    let (mut one, mut other) = (
        Td::create(&rig, Hkid::mint(HKID)),
        Td::create(&rig, Hkid::mint(HKID + 1)),
    );
    // Corrupts the host's records: each TD's last page is recorded as the other's.
    let pages = (one.pages.pop().unwrap(), other.pages.pop().unwrap());
    one.pages.push(pages.1);
    other.pages.push(pages.0);
    let wrong = one.pages.last().unwrap().hpa();
    let (mut one, hkid) = one.release();
    let (mut other, other_hkid) = other.release();
    let (error, page) = rig
        .on(0)
        .phymem_page_reclaim(&one.tdr, one.pages.pop().unwrap())
        .expect_err("it is the other's")
        .into_parts();
    let cause = Cause::WrongPage {
        expected: one.tdr.hpa(),
        told: other.tdr.hpa(),
    };
    assert_eq!(error.cause(), cause);
    assert_eq!(error.advice().unwrap().remedy, Remedy::Report);
    // The page can only be quarantined permanently; everything else is reclaimed.
    assert_eq!(page.give_up().0, wrong);
    one.pages.push(other.pages.pop().unwrap());
    one.reclaim();
    other.reclaim();
    assert_eq!(rig.frames.pages_out(), 1);
    hkid.surrender();
    other_hkid.surrender();
}

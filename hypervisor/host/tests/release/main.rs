//! Tests that HKIDs go to TDs and come back, whatever fails on the way.

mod kit;
#[path = "../rig/mod.rs"]
mod rig;

use std::sync::Arc;

use host::platform::Platform;
use host::tdx::hkids::Holder;
use host::tdx::release::{CreateError, NotReleased, Why};
use kit::{Host, Td};
use mm::private::{Mode, Pool};
use rig::Setup;
use seam::abi::{Leaf, Operand, PageSize, Status};
use seam::retry::Reason;
use sync::call::NoAnswer;

/// A status with which the module refuses for good.
const REFUSED: Status = Status::OPERAND_INVALID;
const ALWAYS: std::ops::RangeInclusive<u64> = 1..=u64::MAX;

#[test]
fn an_hkid_comes_back_and_the_memory_can_be_reclaimed() {
    let host = Host::new("");
    let td = Td::new(&host, &[1, 3, 0]);
    assert_eq!(host.hkids(), (1, 0));
    let released = host.end(&td).unwrap();
    let packages: Vec<u32> = released.write_back.iter().map(|w| w.package).collect();
    assert_eq!(packages, [0, 1]);
    assert_eq!((host.hkids(), td.map.mode()), ((0, 0), Mode::Keyless));
    td.bury();
    host.assert_spotless();
}

#[test]
fn a_td_without_vcpus_needs_no_flush() {
    let host = Host::new("");
    let td = Td::new(&host, &[]);
    host.end(&td).unwrap();
    assert_eq!(host.rig.calls(Leaf::VpFlush), 0);
    td.bury();
    host.assert_spotless();
}

#[test]
fn a_second_request_is_harmless() {
    let host = Host::new("");
    let td = Td::new(&host, &[1]);
    host.end(&td).unwrap();
    let calls = host.rig.calls(Leaf::PhymemCacheWb);
    assert_eq!(host.end(&td).unwrap().write_back, []);
    assert_eq!(host.rig.calls(Leaf::PhymemCacheWb), calls);
    td.bury();
    host.assert_spotless();
}

#[test]
fn one_td_is_released_once_at_a_time() {
    let host = Host::new("");
    let td = Td::new(&host, &[1]);
    let results = host.release(&[&td, &td]);
    assert!(results[0].is_ok());
    assert_eq!(results[1], Err(NotReleased::UnderWay));
    td.bury();
    host.assert_spotless();
}

#[test]
fn tds_that_end_together_share_one_write_back() {
    let host = Host::new("");
    let tds = [&[1][..], &[2, 3], &[]].map(|cpus| Td::new(&host, cpus));
    for result in host.release(&[&tds[0], &tds[1], &tds[2]]) {
        result.unwrap();
    }
    assert_eq!(host.rig.calls(Leaf::PhymemCacheWb), 2);
    assert_eq!(host.hkids(), (0, 0));
    tds.into_iter().for_each(Td::bury);
    host.assert_spotless();
}

#[test]
fn terminations_on_several_cpus_do_not_interfere() {
    let host = Arc::new(Host::new(""));
    for _ in 0..8 {
        let jobs = [1, 2, 3].map(|cpu| {
            let td = Td::new(&host, &[0, 1, 2, 3]);
            let host = Arc::clone(&host);
            host.rig.clone().start(cpu, move || {
                host.end(&td).unwrap();
                td
            })
        });
        // The test's own thread flushes the vCPUs on CPU 0.
        let mut tds: Vec<_> = jobs.into_iter().map(|job| job.wait(&host.rig)).collect();
        tds.drain(..).for_each(Td::bury);
    }
    assert_eq!(
        host.rig.retries(Reason::Busy),
        0,
        "nobody met a busy module"
    );
    host.assert_spotless();
}

#[test]
fn a_write_back_that_is_interrupted_goes_on() {
    let host = Host::new("interrupted TDH.PHYMEM.CACHE.WB calls 1-6");
    let td = Td::new(&host, &[1]);
    let released = host.end(&td).unwrap();
    let interruptions: u32 = released.write_back.iter().map(|w| w.interruptions).sum();
    assert!(interruptions > 2, "{released:?}");
    td.bury();
    host.assert_spotless();
}

#[test]
fn a_busy_call_is_tried_again() {
    let host = Host::new(
        "busy TDH.MNG.CREATE call 1
         busy:TDVPR TDH.VP.FLUSH call 1
         busy:KOT TDH.MNG.VPFLUSHDONE call 1
         busy:WBCACHE TDH.PHYMEM.CACHE.WB calls 1-2
         busy:KOT TDH.MNG.KEY.FREEID call 1",
    );
    let td = Td::new(&host, &[1, 2]);
    host.end(&td).unwrap();
    assert_eq!(host.rig.retries(Reason::Busy), 6);
    td.bury();
    host.assert_spotless();
}

#[test]
fn one_td_too_many_is_refused_until_another_has_ended() {
    let host = Host::of(&Setup {
        hkids: 3,
        ..Setup::default()
    });
    let tds = [Td::new(&host, &[]), Td::new(&host, &[])];
    let page = host.rig.pool().take(PageSize::Size4K).unwrap();
    let (error, page) = host.coordinator.create(&host.rig, page).unwrap_err();
    assert!(matches!(error, CreateError::NoHkid(_)), "{error}");
    host.rig.pool().give(std::iter::once(page));
    let [first, second] = tds;
    host.end(&first).unwrap();
    let third = Td::new(&host, &[]);
    assert_eq!(third.hkid, first.hkid);
    for result in host.release(&[&second, &third]) {
        result.unwrap();
    }
    [first, second, third].into_iter().for_each(Td::bury);
    host.assert_spotless();
}

#[test]
fn a_td_that_cannot_be_created_takes_no_hkid() {
    for status in [
        REFUSED.with(Operand::RDX),
        Status::OPERAND_BUSY.with(Operand::KOT),
        Status::RND_NO_ENTROPY,
    ] {
        let host = Host::new("");
        host.rig.refuse(Leaf::MngCreate, ALWAYS, status);
        let page = host.rig.pool().take(PageSize::Size4K).unwrap();
        let (error, page) = host.coordinator.create(&host.rig, page).unwrap_err();
        assert!(error.to_string().contains("TDH.MNG.CREATE"), "{error}");
        host.rig.pool().give(std::iter::once(page));
        assert_eq!((host.hkids(), host.rig.out()), ((0, 0), (0, 0)));
    }
}

/// Releases a TD while `leaf` is refused for ever, before the point of no return: the TD continues, and ends later.
fn unchanged(leaf: Leaf, status: Status) {
    let host = Host::new("");
    let td = Td::new(&host, &[1, 2]);
    host.rig.refuse(leaf, ALWAYS, status);
    let error = host.end(&td).unwrap_err();
    assert!(matches!(error, NotReleased::Unchanged(_)), "{error}");
    assert!(error.to_string().contains(leaf.name()), "{error}");
    assert_eq!((host.hkids(), td.map.mode()), ((1, 0), Mode::Keyed));
    host.rig.refuse_no_more();
    td.associate(3);
    host.end(&td).unwrap();
    td.bury();
    host.rig.audit();
    assert_eq!((host.hkids(), host.rig.out()), ((0, 0), (0, 0)));
}

#[test]
fn a_failure_before_the_point_of_no_return_leaves_the_td_as_it_was() {
    let busy = Status::OPERAND_BUSY;
    unchanged(Leaf::VpFlush, busy.with(Operand::TDVPR));
    unchanged(Leaf::VpFlush, REFUSED.with(Operand::RCX));
    unchanged(Leaf::MngVpflushdone, busy.with(Operand::KOT));
    unchanged(Leaf::MngVpflushdone, REFUSED.with(Operand::RCX));
}

/// Releases a TD while `leaf` is refused for ever, after the point of no return: its HKID is in quarantine until the
/// release is tried again.
fn stuck(leaf: Leaf, status: Status) {
    let host = Host::new("");
    let td = Td::new(&host, &[1, 2]);
    host.rig.refuse(leaf, ALWAYS, status);
    let error = host.end(&td).unwrap_err();
    assert!(matches!(error, NotReleased::Stuck(_)), "{error}");
    assert!(error.to_string().contains(leaf.name()), "{error}");
    assert_eq!((host.hkids(), td.map.mode()), ((0, 1), Mode::Releasing));
    host.rig.refuse_no_more();
    let other = Td::new(&host, &[1]);
    assert_ne!(other.hkid, td.hkid);
    host.end(&td).unwrap();
    host.end(&other).unwrap();
    [td, other].into_iter().for_each(Td::bury);
    host.rig.audit();
    assert_eq!((host.hkids(), host.rig.out()), ((0, 0), (0, 0)));
}

#[test]
fn a_failure_behind_the_point_of_no_return_is_quarantine_until_a_retry() {
    let busy = Status::OPERAND_BUSY;
    stuck(Leaf::PhymemCacheWb, busy.with(Operand::WBCACHE));
    stuck(Leaf::PhymemCacheWb, REFUSED.with(Operand::RCX));
    stuck(Leaf::MngKeyFreeid, busy.with(Operand::KOT));
    stuck(Leaf::MngKeyFreeid, Status::WBCACHE_NOT_COMPLETE);
}

#[test]
fn a_cpu_that_does_not_flush_its_vcpu_leaves_the_td_as_it_was() {
    let host = Host::new("");
    let (silent, other) = (Td::new(&host, &[1, 2]), Td::new(&host, &[3]));
    host.rig.set_silent(2, true);
    let results = host.release(&[&silent, &other]);
    let why = Why::Vcpus(NoAnswer::of(&[2]));
    assert_eq!(results[0], Err(NotReleased::Unchanged(why)));
    assert!(results[1].is_ok(), "{results:?}");
    assert_eq!((host.hkids(), silent.map.mode()), ((1, 0), Mode::Keyed));
    host.rig.set_silent(2, false);
    host.end(&silent).unwrap();
    [silent, other].into_iter().for_each(Td::bury);
    host.assert_spotless();
}

#[test]
fn another_cpu_of_the_package_replaces_a_silent_one() {
    let host = Host::new("");
    let td = Td::new(&host, &[0]);
    host.rig.set_silent(2, true);
    host.end(&td).unwrap();
    td.bury();
    host.assert_spotless();
}

#[test]
fn a_failed_write_back_stops_only_the_tds_that_need_it() {
    let host = Host::new("");
    let td = Td::new(&host, &[0]);
    for cpu in [2, 3] {
        host.rig.set_silent(cpu, true);
    }
    let error = host.end(&td).unwrap_err();
    let expected = Why::Silent {
        package: 1,
        cpus: NoAnswer::of(&[2, 3]),
    };
    assert_eq!(error, NotReleased::Stuck(expected));
    let reason = "the caches of package 1 can't be written back: no answer from CPU 2, 3";
    let holder = &host.coordinator.hkids().list()[usize::from(td.hkid - 32)];
    assert_eq!(*holder, (td.hkid, Holder::Quarantined(reason.into())));
    for cpu in [2, 3] {
        host.rig.set_silent(cpu, false);
    }
    // The write-back of package 0 counts. A TD that was flushed later needs both packages.
    let released = host.end(&td).unwrap();
    let packages: Vec<u32> = released.write_back.iter().map(|w| w.package).collect();
    assert_eq!(packages, [1]);
    td.bury();
    host.assert_spotless();
}

#[test]
fn a_pass_that_failed_half_way_serves_no_td_that_was_flushed_since() {
    let host = Host::new("interrupted TDH.PHYMEM.CACHE.WB calls 1-2");
    let first = Td::new(&host, &[0]);
    // Both packages are interrupted once, and then stay busy.
    let busy = Status::OPERAND_BUSY.with(Operand::WBCACHE);
    host.rig.refuse(Leaf::PhymemCacheWb, 3..=u64::MAX, busy);
    assert!(matches!(host.end(&first), Err(NotReleased::Stuck(_))));
    let second = Td::new(&host, &[1]);
    host.rig.refuse_no_more();
    host.end(&second).unwrap();
    host.end(&first).unwrap();
    [first, second].into_iter().for_each(Td::bury);
    host.assert_spotless();
}

#[test]
fn a_reader_of_the_map_does_not_stop_a_release() {
    let host = Arc::new(Host::new(""));
    let td = Arc::new(Td::new(&host, &[1]));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let looking = {
        let (td, stop) = (Arc::clone(&td), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                td.map.mode();
                td.map.keyed(|_| Ok(())).ok();
            }
        })
    };
    let ended = host.end(&td);
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    looking.join().unwrap();
    ended.unwrap();
    Arc::into_inner(td).unwrap().bury();
    host.assert_spotless();
}

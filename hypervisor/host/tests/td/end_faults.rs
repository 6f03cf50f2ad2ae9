//! Tests of termination with a failure at every step. The operator is told, the rest can be done later, and each frame
//! is free or in quarantine with a reason.

use std::ops::RangeInclusive;

use host::td::end::{Ended, Way};
use host::td::error::Error;
use host::td::life::State;
use host::td::registry::Tds;
use seam::abi::{Leaf, Operand, PAGE_4K, Status};
use seam::call::Fault;

use super::kit::{FULL, Server};
use super::rig::{Event, Rig};

/// The leafs of a TD's end, by the way of termination.
const TERMINATE: [Leaf; 6] = [
    Leaf::VpFlush,
    Leaf::MngVpflushdone,
    Leaf::PhymemCacheWb,
    Leaf::MngKeyFreeid,
    Leaf::PhymemPageReclaim,
    Leaf::PhymemPageWbinvd,
];
const DYNAMIC: [Leaf; 10] = [
    Leaf::MemRangeBlock,
    Leaf::MemTrack,
    Leaf::MemPageRemove,
    Leaf::MemSeptRemove,
    Leaf::PhymemPageWbinvd,
    Leaf::VpFlush,
    Leaf::MngVpflushdone,
    Leaf::PhymemCacheWb,
    Leaf::MngKeyFreeid,
    Leaf::PhymemPageReclaim,
];

const BUSY: Status = Status::OPERAND_BUSY.with(Operand::RCX);
const UNEXPECTED: Status = Status::OPERAND_INVALID.with(Operand::RCX);
const FOR_EVER: RangeInclusive<u64> = 1..=u64::MAX;

/// Returns every leaf of both ways.
fn steps() -> impl Iterator<Item = (Way, Leaf)> {
    let terminate = TERMINATE.map(|leaf| (Way::Terminate, leaf));
    let dynamic = DYNAMIC.map(|leaf| (Way::Dynamic, leaf));
    terminate.into_iter().chain(dynamic)
}

/// Returns the numbers of the first, a middle and the last call of a leaf in a termination without failures.
fn calls(server: &Server, way: Way, leaf: Leaf) -> Vec<u64> {
    let tds = server.tds(FULL);
    tds.start(1).unwrap();
    let before = server.rig.calls(leaf);
    tds.destroy(1, way).unwrap();
    let count = server.rig.calls(leaf) - before;
    assert!(count > 0, "{way:?}: {}", leaf.name());
    let mut numbers = vec![1, count.div_ceil(2), count];
    numbers.dedup();
    numbers
}

/// Outcome of a termination with a failure.
struct Came {
    result: Result<Ended, Error>,
    /// All messages to the operator.
    told: String,
    /// 4 KiB pages in quarantine.
    quarantined: u64,
}

/// Terminates a TD with the failure that `arrange` sets up. Then removes the failure, and completes the termination.
fn end_with(server: &Server, way: Way, arrange: impl FnOnce()) -> Came {
    let tds = server.tds(FULL);
    tds.start(1).unwrap();
    arrange();
    let result = tds.destroy(1, way);
    let notes = tds.notes(1).unwrap();
    let mut told = notes.problem.unwrap_or_default();
    if let Err(error) = &result {
        told = format!("{error}\n{told}");
    }
    // The TD must be either alive or ended.
    server.rig.refuse_no_more();
    for cpu in 1..4 {
        server.rig.set_silent(cpu, false);
    }
    go_on(server, &tds);
    let (used, quarantined) = server.rig.out();
    assert_eq!((used, server.hkids()), (0, (0, 0)), "{told}");
    let listed = tds.notes(1).unwrap().quarantine;
    for refusal in &listed {
        told = format!("{told}\n{refusal}");
    }
    let pages: u64 = listed.iter().map(|refusal| refusal.size.pages()).sum();
    assert_eq!(quarantined, pages * PAGE_4K, "every page is listed: {told}");
    server.rig.audit();
    Came {
        result,
        told,
        quarantined: pages,
    }
}

/// Completes a termination that failed.
fn go_on(server: &Server, tds: &Tds<'_, Rig>) {
    match tds.state(1) {
        State::Runnable => {
            let td = tds.get(1).unwrap();
            // The TD is unchanged: its vCPUs can be used, and its memory can be changed.
            drop(td.hold(&server.rig, 0).unwrap());
            let map = td.map().unwrap();
            assert_eq!(map.mode(), mm::private::Mode::Keyed);
            drop(td);
            assert!(matches!(tds.destroy(1, Way::Terminate), Ok(Ended::Now(_))));
        }
        State::Terminating | State::Teardown => drop(tds.retry(1).unwrap()),
        State::Reclaimed => {}
        state => panic!("a TD that is {state}"),
    }
    assert_eq!(tds.state(1), State::Reclaimed);
}

#[test]
fn a_call_that_is_busy_once_is_repeated() {
    let server = Server::new("");
    for (way, leaf) in steps() {
        let numbers = calls(&server, way, leaf);
        let all = numbers.last().copied().unwrap_or_default();
        for number in numbers {
            let before = server.rig.calls(leaf);
            let came = end_with(&server, way, || {
                server.rig.refuse(leaf, number..=number, BUSY);
            });
            assert!(matches!(came.result, Ok(Ended::Now(_))), "{}", leaf.name());
            assert_eq!(came.told, "");
            let made = server.rig.calls(leaf) - before;
            assert_eq!(made, all + 1, "{way:?}: {}", leaf.name());
        }
    }
    server.assert_spotless();
}

#[test]
fn a_call_that_is_interrupted_many_times_completes() {
    let server = Server::new("");
    for (way, leaf) in steps() {
        let status = match leaf {
            Leaf::PhymemCacheWb => Status::INTERRUPTED_RESUMABLE,
            _ => Status::INTERRUPTED_RESTARTABLE,
        };
        // An interrupted pass of TDH.PHYMEM.CACHE.WB can only be resumed if the module has begun it.
        if leaf != Leaf::PhymemCacheWb {
            let came = end_with(&server, way, || server.rig.refuse(leaf, 1..=200, status));
            assert!(matches!(came.result, Ok(Ended::Now(_))), "{}", leaf.name());
            assert_eq!(came.told, "");
        }
    }
    server.assert_spotless();
    let server = Server::new("interrupted TDH.PHYMEM.CACHE.WB calls 1-200");
    for way in [Way::Terminate, Way::Dynamic] {
        let came = end_with(&server, way, || {});
        assert!(matches!(came.result, Ok(Ended::Now(_))), "{}", came.told);
        assert_eq!(came.told, "");
    }
    // Two terminations on two packages, each pass in several parts.
    let calls = server.rig.calls(Leaf::PhymemCacheWb);
    assert!(calls >= 2 * 2 + 8, "{calls}");
    server.assert_spotless();
}

#[test]
fn a_permanently_busy_release_is_reported_and_completed_later() {
    let server = Server::new("");
    for (way, leaf) in steps() {
        let came = end_with(&server, way, || server.rig.refuse(leaf, FOR_EVER, BUSY));
        assert!(came.result.is_err(), "{way:?}: {}", leaf.name());
        assert!(came.told.contains(leaf.name()), "{}", came.told);
        assert_eq!(came.quarantined, 0, "{}", came.told);
    }
    server.assert_spotless();
}

#[test]
fn an_unexpected_error_at_any_step_is_reported_and_doubtful_pages_are_quarantined() {
    let mut quarantines = 0;
    for (way, leaf) in steps() {
        let numbers = calls(&Server::new(""), way, leaf);
        let last = numbers.last().copied().unwrap_or_default();
        for number in numbers {
            let server = Server::new("");
            let came = end_with(&server, way, || {
                server.rig.refuse(leaf, number..=number, UNEXPECTED);
            });
            // A failed reclaim of the TDR is retried before the operator is told.
            let is_tdr =
                number == last && matches!(leaf, Leaf::PhymemPageReclaim | Leaf::PhymemPageWbinvd);
            if is_tdr {
                assert!(matches!(came.result, Ok(Ended::Now(_))), "{}", came.told);
            } else {
                assert!(came.told.contains(leaf.name()), "{way:?}: {}", came.told);
            }
            if leaf == Leaf::PhymemPageReclaim {
                quarantines += u32::from(came.quarantined > 0);
            } else {
                assert_eq!(came.quarantined, 0, "{}", came.told);
            }
        }
    }
    // The first page and a middle one; the last one is the TDR, whose reclaim is retried.
    assert!(quarantines >= 4, "{quarantines}");
}

#[test]
fn a_faulting_instruction_is_reported_and_nothing_is_lost() {
    for (way, leaf) in steps() {
        let server = Server::new("");
        let came = end_with(&server, way, || {
            server.rig.fault(leaf, FOR_EVER, Fault::NotVmx);
        });
        assert!(came.result.is_err(), "{way:?}: {}", leaf.name());
        assert!(came.told.contains(leaf.name()), "{}", came.told);
        assert_eq!(came.quarantined, 0, "{}", came.told);
        server.assert_nothing_lost();
    }
}

#[test]
fn a_silent_cpu_stops_no_other_and_is_reported() {
    for way in [Way::Terminate, Way::Dynamic] {
        for cpu in 1..4 {
            let server = Server::new("");
            let came = end_with(&server, way, || server.rig.set_silent(cpu, true));
            // The vCPUs are associated with CPUs 0 and 1. CPU 2 or 3 can write back the caches of package 1.
            let is_needed = cpu == 1;
            assert_eq!(came.result.is_err(), is_needed, "CPU {cpu}: {}", came.told);
            assert_eq!(came.told.contains("CPU 1"), is_needed, "{}", came.told);
            server.assert_spotless();
        }
    }
}

#[test]
fn a_cpu_that_falls_silent_in_the_middle_of_an_end_leaves_nothing_behind() {
    for way in [Way::Terminate, Way::Dynamic] {
        for cpu in 1..4 {
            for leaf in [Leaf::VpFlush, Leaf::PhymemCacheWb] {
                let server = Server::new("");
                let came = end_with(&server, way, || {
                    server.rig.set_silent_after(cpu, Event::Call(leaf));
                });
                // The CPU completes the work that it had begun, and others do the rest.
                assert!(matches!(came.result, Ok(Ended::Now(_))), "{}", came.told);
                server.assert_spotless();
            }
        }
    }
}

#[test]
fn a_package_that_falls_silent_keeps_one_td_in_quarantine_and_no_other() {
    let server = Server::new("");
    let tds = server.tds(&format!("{FULL}{}", FULL.replace("full", "other")));
    tds.start(1).unwrap();
    for cpu in [2, 3] {
        server.rig.set_silent(cpu, true);
    }
    let error = tds.destroy(1, Way::Terminate).unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains("package 1") && told.contains("\"td retry\""),
        "{told}"
    );
    assert_eq!(tds.notes(1).unwrap().problem, Some(told));
    assert_eq!((tds.state(1), server.hkids()), (State::Terminating, (0, 1)));
    let held = server.rig.out().0;
    assert!(held > 16 << 20, "all of its memory waits: {held:#x}");
    for cpu in [2, 3] {
        server.rig.set_silent(cpu, false);
    }
    // The rest of the host continues. The HKID is not used again before its caches were written back.
    let quarantined = tds.get(1).unwrap().hkid();
    tds.start(2).unwrap();
    assert_ne!(tds.get(2).unwrap().hkid(), quarantined);
    assert!(matches!(tds.destroy(2, Way::Terminate), Ok(Ended::Now(_))));
    assert_eq!(server.rig.out().0, held);
    tds.retry(1).unwrap();
    server.assert_spotless();
}

/// Shrinks a running TD with a failure at every step.
#[test]
fn a_failed_shrink_continues_where_it_stopped() {
    let server = Server::new("");
    for leaf in [
        Leaf::MemRangeBlock,
        Leaf::MemTrack,
        Leaf::MemPageRemove,
        Leaf::MemSeptRemove,
        Leaf::PhymemPageWbinvd,
    ] {
        let tds = server.tds(&FULL.replace("16M", "32M"));
        tds.start(1).unwrap();
        server.rig.refuse(leaf, FOR_EVER, BUSY);
        // Tables are not removed where the firmware keeps them.
        if let Err(error) = tds.shrink(1, 14 << 20) {
            assert!(error.to_string().contains(leaf.name()), "{error}");
        }
        server.rig.refuse_no_more();
        assert_eq!(tds.state(1), State::Runnable);
        tds.shrink(1, 14 << 20).unwrap();
        let td = tds.get(1).unwrap();
        assert_eq!(td.layout().bytes(), 14 << 20);
        assert!(
            td.holding().bytes() <= (14 << 20) + (2 << 20),
            "{:?}",
            td.holding()
        );
        drop(td);
        tds.destroy(1, Way::Terminate).unwrap();
        server.assert_spotless();
    }
}

//! The rules of a TD's end that concern more than its memory; the others are tested in `mm`. Each rule has a test here,
//! by number. Some have further tests elsewhere: docs/rules.md lists all.
//!
//! 1. Terminating is entered once, and from then on no vCPU is used: the user checks the state after taking the lock.
//! 3. Running vCPUs are kicked out and waited for; if a CPU does not answer, nothing has changed.
//! 4. Each vCPU is flushed on the CPU that it is associated with, even if it never ran; every package's caches are
//!    written back; the HKID comes back after that, and not before.
//! 7. Terminate is optional, and a second request is harmless.
//! 9. The release of the HKID and the reclaim of the memory are separate phases, which are visible and can be resumed.
//! 10. After terminate, operations that free memory work, and operations that would use the TD fail.
//! 12. An idle CPU still answers when its vCPUs have to be flushed or its package's caches have to be written back:
//!     none is parked.

use std::sync::Arc;
use std::time::Duration;

use host::td::end::{Ended, Way, reclaim_step};
use host::td::error::Error;
use host::td::life::State;
use host::td::vcpu::Refused;
use mm::private::Outcome;
use seam::abi::{Leaf, Operand, Status};

use super::kit::{FULL, ONE, Server, Stubborn, td};
use super::rig::Setup;

#[test]
fn rule_1_terminating_is_entered_once_and_no_vcpu_is_used_from_then_on() {
    let server = Server::new("");
    let tds = server.tds(ONE);
    tds.start(1).unwrap();
    let one = td(&tds, 1);
    let held = one.hold(&server.rig, 0).unwrap();
    assert_eq!(tds.ask_end(1), Ok(()));
    assert_eq!(tds.ask_end(1), Err(State::Terminating));
    let over = Refused::State(State::Terminating);
    // The holder of the lock finds out before it uses the vCPU again. A new user finds out when it has taken the lock.
    assert_eq!(held.tdvpr().err(), Some(over.clone()));
    assert!(!held.may_run());
    assert_eq!(one.hold(&server.rig, 1).err(), Some(over));
    drop(held);
    assert!(matches!(tds.destroy(1, Way::Terminate), Ok(Ended::Now(_))));
    drop(one);
    server.assert_spotless();
}

/// Simulates a vCPU that stays in the guest until its CPU is interrupted.
#[test]
fn rule_3_vcpus_that_run_are_kicked_out_and_waited_for() {
    const LEAVING: Duration = Duration::from_millis(20);
    let server = Server::new("");
    let tds = server.tds(ONE);
    tds.start(1).unwrap();
    let one = td(&tds, 1);
    let running = {
        let (rig, one) = (server.rig.clone(), Arc::clone(&one));
        server.rig.start(1, move || {
            let held = one.hold(&rig, 1).unwrap();
            // From the hold on, the vCPU counts as being in the guest, whatever has happened to the TD since.
            loop {
                while !rig.is_called(1) {
                    std::thread::yield_now();
                }
                rig.serve();
                if !held.may_run() {
                    break;
                }
            }
            // The CPU has answered, but holds the vCPU a moment longer: the answer alone must not end the wait.
            std::thread::sleep(LEAVING);
        })
    };
    while one.vcpus().user(1) != Some(1) {
        server.rig.serve();
    }
    assert!(matches!(tds.terminate(1), Ok(Ended::Now(_))));
    assert_eq!(one.vcpus().user(1), None, "it was waited for");
    running.wait(&server.rig);
    drop(one);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn rule_3_a_cpu_that_does_not_let_go_in_time_changes_nothing() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    tds.start(1).unwrap();
    let full = td(&tds, 1);
    let stubborn = Stubborn::holding(&server.rig, &full);
    let owned = full.holding();
    let error = tds.terminate(1).unwrap_err();
    assert_eq!(error, Error::Stuck([1].into()));
    assert_eq!((full.state(), full.holding()), (State::Runnable, owned));
    assert_eq!(server.rig.calls(Leaf::VpFlush), 0);
    assert_eq!(server.hkids(), (1, 0));
    stubborn.let_go(&server.rig);
    assert!(matches!(tds.terminate(1), Ok(Ended::Now(_))));
    drop(full);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn rule_4_vcpus_are_flushed_where_they_are_and_every_package_is_written_back() {
    let server = Server::new("");
    let tds = server.tds(&ONE.replace("vcpus = 2", "vcpus = 4"));
    tds.create(1).unwrap();
    // None of the vCPUs has run.
    tds.terminate(1).unwrap();
    assert_eq!(server.rig.calls_by_cpu(Leaf::VpFlush), [1, 1, 1, 1]);
    let write_backs = server.rig.calls_by_cpu(Leaf::PhymemCacheWb);
    assert_eq!(write_backs[0] + write_backs[1], 1);
    assert_eq!(write_backs[2] + write_backs[3], 1);
    assert_eq!(server.hkids(), (0, 0), "it is back before the memory is");
    assert!(server.rig.out().0 > 0);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn rule_4_an_hkid_whose_caches_were_not_written_back_is_quarantined_with_all_frames() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    tds.start(1).unwrap();
    let busy = Status::OPERAND_BUSY.with(Operand::WBCACHE);
    server.rig.refuse(Leaf::PhymemCacheWb, 1..=u64::MAX, busy);
    let out = server.rig.out();
    assert!(matches!(tds.terminate(1), Err(Error::NotReleased(_))));
    assert_eq!((server.hkids(), server.rig.out()), ((0, 1), out));
    assert!(!tds.work(), "no reclaim is possible");
    server.rig.refuse_no_more();
    tds.retry(1).unwrap();
    server.assert_spotless();
}

#[test]
fn rule_7_terminate_is_optional_and_asking_twice_is_harmless() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    tds.start(1).unwrap();
    let control = server.rig.calls(Leaf::MngAddcx) + server.rig.calls(Leaf::VpAddcx);
    assert!(matches!(tds.destroy(1, Way::Dynamic), Ok(Ended::Now(_))));
    assert_eq!(tds.state(1), State::Reclaimed);
    // All private memory was removed while the key was in force. Only control pages are reclaimed, including a TDVPR
    // for each vCPU and the TDR.
    assert_eq!(server.rig.calls(Leaf::PhymemPageReclaim), control + 2 + 1);
    server.assert_spotless();
    tds.start(1).unwrap();
    assert!(matches!(tds.terminate(1), Ok(Ended::Now(_))));
    let calls = server.rig.calls(Leaf::MngVpflushdone);
    assert_eq!(tds.terminate(1), Ok(Ended::Already(State::Teardown)));
    assert_eq!(server.rig.calls(Leaf::MngVpflushdone), calls);
    while tds.work() {}
    assert_eq!(tds.terminate(1), Ok(Ended::Already(State::Reclaimed)));
    server.assert_spotless();
}

#[test]
fn rule_9_release_and_reclaim_are_phases_that_can_be_seen_and_resumed() {
    let server = Server::new("");
    let tds = server.tds(&format!("{FULL}{}", FULL.replace("full", "next")));
    tds.start(1).unwrap();
    tds.terminate(1).unwrap();
    let full = td(&tds, 1);
    assert_eq!(full.state(), State::Teardown);
    assert!(reclaim_step(tds.host(), &full));
    let reclaim = full.reclaim().unwrap();
    let time = host::td::host::Time(&server.rig);
    assert!(!reclaim.progress(&time).is_done);
    // New TDs start during the reclaim.
    tds.start(2).unwrap();
    let busy = Status::OPERAND_BUSY.with(Operand::RCX);
    server
        .rig
        .refuse(Leaf::PhymemPageReclaim, 1..=u64::MAX, busy);
    while tds.work() {}
    assert!(reclaim.progress(&time).is_stuck);
    server.rig.refuse_no_more();
    drop(full);
    tds.retry(1).unwrap();
    assert_eq!(
        (tds.state(1), tds.state(2)),
        (State::Reclaimed, State::Runnable)
    );
    tds.destroy(2, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn rule_10_after_terminate_what_frees_works_and_what_uses_fails() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    tds.start(1).unwrap();
    tds.terminate(1).unwrap();
    let illegal = server.rig.illegal();
    let over = Error::State(State::Teardown);
    assert_eq!(tds.shrink(1, 14 << 20), Ok(Outcome::LeftToReclaim));
    assert_eq!(tds.pause(1), Err(over.clone()));
    assert_eq!(tds.resume(1), Err(over.clone()));
    assert_eq!(tds.start(1), Err(over.clone()));
    assert_eq!(tds.create(1).err(), Some(over));
    assert_eq!(server.rig.illegal(), illegal);
    let ended = tds.destroy(1, Way::Dynamic);
    assert!(matches!(ended, Ok(Ended::Now(_))), "{ended:?}");
    assert_eq!(tds.state(1), State::Reclaimed);
    server.assert_spotless();
}

#[test]
fn rule_12_a_cpu_that_has_nothing_to_do_answers_for_its_vcpus_and_its_package() {
    // Each CPU is the only one of its package; all except the first sleep.
    let server = Server::of(&Setup {
        packages: [0, 1, 2].into(),
        ..Setup::default()
    });
    let tds = server.tds(&ONE.replace("vcpus = 2", "vcpus = 3"));
    tds.start(1).unwrap();
    assert!(matches!(tds.destroy(1, Way::Terminate), Ok(Ended::Now(_))));
    assert_eq!(server.rig.calls_by_cpu(Leaf::VpFlush), [1, 1, 1]);
    assert_eq!(server.rig.calls_by_cpu(Leaf::PhymemCacheWb), [1, 1, 1]);
    server.assert_spotless();
}

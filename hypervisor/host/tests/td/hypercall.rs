//! Tests of hypercalls, above all of a TD's request to terminate itself.

use host::hypercall::{CAPS, serve};
use host::td::end::{Ended, Way};
use host::td::life::State;
use host::td::registry::Tds;
use host::td::vcpu::Refused;
use seam::abi::Gprs;
use seam::abi::hypercall::{Function, SIGNATURE, Status, TdState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::kit::{ONE, Server, td};
use super::rig::Rig;

/// Two TDs, of which the second may name others.
fn two() -> String {
    let boss = ONE
        .replace("one", "boss")
        .replace("vcpus = 2", "control = true");
    format!("{ONE}{boss}")
}

/// Makes a hypercall as TD `caller`.
fn call(tds: &Tds<'_, Rig>, caller: u32, function: Function, r12: u64) -> Gprs {
    let mut regs = Gprs {
        r10: SIGNATURE,
        r11: function as u64,
        r12,
        ..Gprs::default()
    };
    serve(tds, &td(tds, caller), &mut regs);
    regs
}

/// Works until there is nothing left to do.
fn work(tds: &Tds<'_, Rig>) {
    while tds.work() {}
}

#[test]
fn a_host_says_what_it_can_do_and_what_the_caller_may() {
    let server = Server::new("");
    let tds = server.tds(&two());
    for (id, control) in [(1, 0), (2, 1)] {
        tds.start(id).unwrap();
        let regs = call(&tds, id, Function::Caps, 0);
        assert_eq!(
            (regs.r10, regs.r11, regs.r12, regs.r13),
            (0, CAPS, id.into(), control)
        );
        assert_eq!(CAPS & 1, 1, "bit 0 is terminate");
    }
    for id in [1, 2] {
        tds.destroy(id, Way::Terminate).unwrap();
    }
    server.assert_spotless();
}

#[test]
fn a_td_knows_of_itself_and_one_with_control_of_all() {
    let server = Server::new("");
    let tds = server.tds(&format!("{}{}", two(), ONE.replace("one", "later")));
    for id in [1, 2] {
        tds.start(id).unwrap();
    }
    let list = |caller, from| {
        let regs = call(&tds, caller, Function::TdList, from);
        assert_eq!(regs.r10, 0);
        let name: Vec<u8> = [regs.rbx, regs.rdi, regs.rsi, regs.r8]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .take_while(|byte| *byte != 0)
            .collect();
        let name = String::from_utf8(name).unwrap();
        (
            name,
            [regs.r11, regs.r12, regs.r13, regs.r14 >> 20, regs.r15],
        )
    };
    let runnable = TdState::Runnable as u64;
    let own = 1 << 32;
    let nothing = (String::new(), [0; 5]);
    assert_eq!(
        list(1, 0),
        ("one".into(), [1, runnable | own, 16 << 20, 2, 2])
    );
    assert_eq!(list(1, 2), nothing);
    assert_eq!(list(2, 0), ("one".into(), [1, runnable, 16 << 20, 2, 2]));
    assert_eq!(
        list(2, 2),
        ("boss".into(), [2, runnable | own, 16 << 20, 2, 1])
    );
    let created = TdState::Created as u64;
    assert_eq!(list(2, 3), ("later".into(), [3, created, 16 << 20, 0, 2]));
    assert_eq!(list(2, 4), nothing);
    for id in [1, 2] {
        tds.destroy(id, Way::Terminate).unwrap();
    }
    server.assert_spotless();
}

/// Rule 8.
#[test]
fn rule_8_a_call_with_something_reserved_in_it_changes_nothing() {
    let server = Server::new("");
    let tds = server.tds(&two());
    for id in [1, 2] {
        tds.start(id).unwrap();
    }
    for spoil in [
        |regs: &mut Gprs| regs.r13 = 1,
        |regs: &mut Gprs| regs.rbx = 1 << 63,
        |regs: &mut Gprs| regs.rbp = 1,
        |regs: &mut Gprs| regs.r12 |= 1 << 32,
    ] {
        let mut regs = Gprs {
            r10: SIGNATURE,
            r11: Function::TdTerminate as u64,
            r12: 1,
            ..Gprs::default()
        };
        spoil(&mut regs);
        serve(&tds, &td(&tds, 2), &mut regs);
        assert_eq!(regs.r10, Status::InvalidOperand as u64);
        assert_eq!(regs.r11, 0);
    }
    for r10 in [1, SIGNATURE + 1] {
        let mut regs = Gprs {
            r10,
            r11: Function::TdTerminate as u64,
            ..Gprs::default()
        };
        serve(&tds, &td(&tds, 2), &mut regs);
        assert_eq!(regs.r10, Status::Unsupported as u64);
    }
    assert!(!tds.work());
    for id in [1, 2] {
        assert_eq!(tds.state(id), State::Runnable);
        tds.destroy(id, Way::Terminate).unwrap();
    }
    server.assert_spotless();
}

#[test]
fn without_control_no_other_td_can_be_named() {
    let server = Server::new("");
    let tds = server.tds(&two());
    for id in [1, 2] {
        tds.start(id).unwrap();
    }
    for function in [Function::TdTerminate, Function::ReclaimStatus] {
        for id in [2, 3, u64::from(u32::MAX)] {
            // The caller does not learn which of them exist.
            let regs = call(&tds, 1, function, id);
            assert_eq!(regs.r10, Status::NotPermitted as u64);
        }
        let regs = call(&tds, 2, function, 3);
        assert_eq!(regs.r10, Status::NoSuchTd as u64);
    }
    assert!(!tds.work());
    for id in [1, 2] {
        assert_eq!(tds.state(id), State::Runnable);
        tds.destroy(id, Way::Terminate).unwrap();
    }
    server.assert_spotless();
}

#[test]
fn a_td_ends_itself_and_its_vcpu_is_not_entered_again() {
    let server = Server::new("");
    let tds = server.tds(ONE);
    tds.start(1).unwrap();
    let one = td(&tds, 1);
    let held = one.hold(&server.rig, 0).unwrap();
    assert!(held.tdvpr().is_ok());
    let regs = call(&tds, 1, Function::TdTerminate, 0);
    assert_eq!(regs.r10, Status::NotEnded as u64, "it is not to see this");
    let refused = Refused::State(State::Terminating);
    assert_eq!(held.tdvpr().err(), Some(refused.clone()));
    assert_eq!(one.hold(&server.rig, 1).err(), Some(refused));
    // The CPU releases the vCPU, and has time.
    drop(held);
    assert!(tds.end_asked());
    assert_eq!(tds.state(1), State::Teardown);
    assert!(!tds.end_asked());
    drop(one);
    work(&tds);
    assert_eq!(tds.state(1), State::Reclaimed);
    server.assert_spotless();
}

#[test]
fn one_with_control_ends_another_that_runs_and_sees_how_far_it_is() {
    let server = Server::new("");
    let tds = Arc::new(server.tds(&two()));
    for id in [1, 2] {
        tds.start(id).unwrap();
    }
    let one = td(&tds, 1);
    let (rig, is_in) = (server.rig.clone(), Arc::new(AtomicBool::new(false)));
    let running = {
        let is_in = Arc::clone(&is_in);
        server.rig.start(1, move || {
            let held = one.hold(&rig, 1).unwrap();
            is_in.store(true, Ordering::SeqCst);
            // The vCPU checks before each entry, and each entry is interrupted.
            while held.tdvpr().is_ok() {
                rig.serve();
            }
        })
    };
    while !is_in.load(Ordering::SeqCst) {
        server.rig.serve();
    }
    let status = || call(&tds, 2, Function::ReclaimStatus, 1);
    assert_eq!(status().r11, TdState::Runnable as u64);
    let owned = status().r12;
    let regs = call(&tds, 2, Function::TdTerminate, 1);
    assert_eq!((regs.r10, regs.r11), (0, 0));
    assert_eq!(regs.r12, TdState::Terminating as u64);
    // A second request is harmless, and reported as such.
    let again = call(&tds, 2, Function::TdTerminate, 1);
    assert_eq!((again.r10, again.r11), (0, 1));
    assert!(tds.end_asked());
    running.wait(&server.rig);
    let begun = status();
    assert_eq!(begun.r11, TdState::Teardown as u64);
    assert_eq!((begun.r12, begun.r13), (owned, 0));
    while status().r13 < owned {
        assert!(tds.work());
    }
    work(&tds);
    assert_eq!(status().r11, TdState::Reclaimed as u64);
    let late = call(&tds, 2, Function::TdTerminate, 1);
    assert_eq!((late.r10, late.r11), (0, 1));
    assert_eq!(late.r12, TdState::Reclaimed as u64);
    tds.destroy(2, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn a_td_that_cannot_be_stopped_lives_and_may_request_it_again() {
    let server = Server::new("");
    let tds = server.tds(ONE);
    tds.start(1).unwrap();
    let one = td(&tds, 1);
    let stubborn = Arc::new(AtomicBool::new(true));
    let holding = {
        let (rig, one, stubborn) = (server.rig.clone(), Arc::clone(&one), Arc::clone(&stubborn));
        server.rig.start(1, move || {
            let _held = one.hold(&rig, 1).unwrap();
            while stubborn.load(Ordering::SeqCst) {
                rig.serve();
            }
        })
    };
    while one.vcpus().user(1) != Some(1) {
        server.rig.serve();
    }
    call(&tds, 1, Function::TdTerminate, 1);
    assert!(tds.end_asked());
    assert_eq!(one.state(), State::Runnable);
    stubborn.store(false, Ordering::SeqCst);
    holding.wait(&server.rig);
    let held = one.hold(&server.rig, 1).unwrap();
    call(&tds, 1, Function::TdTerminate, 1);
    drop(held);
    // An operator's request carries out the guest's.
    assert!(matches!(tds.destroy(1, Way::Terminate), Ok(Ended::Now(_))));
    assert!(tds.end_asked(), "somebody asked");
    assert_eq!(tds.state(1), State::Reclaimed);
    drop(one);
    server.assert_spotless();
}

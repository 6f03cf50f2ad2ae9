//! Tests of inspection: a debug TD can be inspected, and a production TD can't.

use host::platform::Platform;
use host::td::debug::{Uninspectable, memory, registers};
use host::td::end::Way;
use host::td::life::State;
use host::tdx::owner::check_readable;
use mm::private::Pool;
use seam::abi::{Leaf, PageSize, Status};
use seam::address::{Gpa, KeyIdPosition};

use super::kit::{ONE, Server, td};

/// Returns [`ONE`] as a debug TD.
fn debugged() -> String {
    format!("{ONE}debug = true\n")
}

#[test]
fn registers_of_a_vcpu_that_never_ran_are_those_of_a_reset() {
    let server = Server::new("");
    let tds = server.tds(&debugged());
    tds.create(1).unwrap();
    let one = td(&tds, 1);
    // vCPU 1 is associated with CPU 1. It is read there, and stays there.
    for index in [0, 1] {
        let found = registers(&server.rig, &one, index).unwrap();
        let get = |name| found.iter().find(|(known, _)| *known == name).unwrap().1;
        assert_eq!(get("RIP"), 0xFFFF_FFF0);
        assert_eq!(get("RSI"), u64::from(index), "the vCPU's number");
        assert_eq!(get("RBX"), 48, "the width of addresses");
        assert_eq!((get("RFLAGS"), get("CR3"), get("RSP")), (2, 0, 0));
        assert_eq!(get("R8"), 0x80_9000, "the hand-off block");
        assert_eq!(one.vcpus().association(index), Some(index.into()));
    }
    assert_eq!(
        registers(&server.rig, &one, 2),
        Err(Uninspectable::NoVcpu { count: 2 })
    );
    assert_eq!(server.rig.calls(Leaf::VpFlush), 0);
    drop(one);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn the_module_is_asked_whose_page_an_address_is_in() {
    let server = Server::new("");
    let tds = server.tds(&debugged());
    tds.create(1).unwrap();
    let one = td(&tds, 1);
    let keyid = KeyIdPosition::new(52, 6).unwrap();
    let check = |pa| check_readable(&server.rig, keyid, pa);
    let tdr = one.map().unwrap().keyed(|tdr| Ok(tdr.hpa())).unwrap();
    let refused = check(tdr.0 + 64).unwrap_err();
    assert!(refused.contains("is the root page of a TD,"), "{refused}");
    // The address of the same page with a KeyID.
    assert_eq!(check(keyid.keyed(tdr, 3)), Err(refused));
    // A page of the host, and an address in no TDMR.
    let own = server.rig.pool().take(PageSize::Size4K).unwrap();
    assert_eq!(check(own.hpa().0), Ok(()));
    assert_eq!(check(0xFEC0_0000), Ok(()));
    server.rig.pool().give(core::iter::once(own));
    drop(one);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn a_vcpu_that_is_in_use_is_left_alone() {
    let server = Server::new("");
    let tds = server.tds(&debugged());
    tds.start(1).unwrap();
    let one = td(&tds, 1);
    let held = one.hold(&server.rig, 0).unwrap();
    let refused = registers(&server.rig, &one, 0);
    assert_eq!(refused, Err(Uninspectable::Runs { cpu: Some(0) }));
    drop(held);
    assert!(registers(&server.rig, &one, 0).is_ok());
    // An inspected vCPU can run.
    drop(one.hold(&server.rig, 0).unwrap());
    server.rig.set_silent(1, true);
    assert_eq!(
        registers(&server.rig, &one, 1),
        Err(Uninspectable::NoAnswer(1))
    );
    server.rig.set_silent(1, false);
    drop(one);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn present_memory_is_shown_and_nothing_else_is_read() {
    let server = Server::new("");
    let tds = server.tds(&debugged());
    tds.create(1).unwrap();
    let one = td(&tds, 1);
    // The firmware, across a page boundary.
    let mut seen = [0; 64];
    memory(&server.rig, &one, 0xFFFF_EFE0, &mut seen).unwrap();
    let firmware: Vec<u8> = (0xFE0..0x1020_u32).map(|at| (at / 7) as u8).collect();
    assert_eq!(seen[..], firmware);
    for (gpa, refused) in [
        (0, Uninspectable::NoMemory(Gpa(0))),
        // The end of the hand-off block, and unmapped memory after it.
        (0x80_AFE0, Uninspectable::NoMemory(Gpa(0x80_B000))),
        (0xA0_0000, Uninspectable::Unaccepted(Gpa(0xA0_0000))),
        (0xFFFF_FFE0, Uninspectable::NoMemory(Gpa(0xFFFF_FFE0))),
        (4, Uninspectable::BadRange),
        (u64::MAX - 7, Uninspectable::BadRange),
        (1 << 47, Uninspectable::NoMemory(Gpa(1 << 47))),
    ] {
        assert_eq!(
            memory(&server.rig, &one, gpa, &mut seen),
            Err(refused),
            "{gpa:#x}"
        );
    }
    drop(one);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn a_production_td_shows_nothing_and_the_module_is_not_called() {
    let server = Server::new("");
    let tds = server.tds(ONE);
    tds.create(1).unwrap();
    let one = td(&tds, 1);
    let reads = server.rig.calls(Leaf::VpRd);
    let refused = registers(&server.rig, &one, 0).unwrap_err();
    assert_eq!(refused, Uninspectable::Production);
    assert!(refused.to_string().contains("debug = true"), "{refused}");
    let mut seen = [0; 8];
    let refused = memory(&server.rig, &one, 0xFFFF_E000, &mut seen);
    assert_eq!(refused, Err(Uninspectable::Production));
    assert_eq!(server.rig.calls(Leaf::MemRd), 0);
    assert_eq!(server.rig.calls(Leaf::VpRd), reads);
    drop(one);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn a_td_that_ends_shows_nothing_any_more() {
    let server = Server::new("");
    let tds = server.tds(&debugged());
    tds.create(1).unwrap();
    let one = td(&tds, 1);
    tds.terminate(1).unwrap();
    let state = one.state();
    assert!(matches!(state, State::Teardown | State::Reclaimed));
    assert_eq!(
        registers(&server.rig, &one, 0),
        Err(Uninspectable::State(state))
    );
    let mut seen = [0; 8];
    assert_eq!(
        memory(&server.rig, &one, 0xFFFF_E000, &mut seen),
        Err(Uninspectable::State(state))
    );
    drop(one);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn a_refusal_of_the_module_is_reported() {
    let server = Server::new("");
    let tds = server.tds(&debugged());
    tds.create(1).unwrap();
    let one = td(&tds, 1);
    server
        .rig
        .refuse(Leaf::MemRd, 2..=2, Status::EPT_ENTRY_STATE_INCORRECT);
    let mut seen = [0; 32];
    let refused = memory(&server.rig, &one, 0xFFFF_E000, &mut seen);
    assert!(
        matches!(refused, Err(Uninspectable::Seam(_))),
        "{refused:?}"
    );
    server.rig.refuse_no_more();
    memory(&server.rig, &one, 0xFFFF_E000, &mut seen).unwrap();
    drop(one);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_nothing_lost();
}

//! Tests of what a module that dies tells: the record that the host asks for at TDH.SYS.INIT, and what becomes of it.

mod rig;

use host::platform::Platform;
use host::platform::shutdown::SHUT_DOWN;
use host::tdx::bring_up::{MachineInfo, Ready, bring_up};
use host::tdx::report::{Report, TdxState};
use mm::private::Pool;
use rig::{FATAL_RECORD, FATAL_VECTOR, Rig, Setup};
use seam::abi::{FatalRecord, Leaf, Operand, PageSize, Status};
use seam::platform::KeyIds;
use stub_module::{Check, Release, SysState};

const MACHINE: MachineInfo<'_> = MachineInfo {
    key_ids: KeyIds {
        shared: 31,
        private: 32,
        max_pa: 52,
        bits: 6,
    },
    memory_nodes: &[],
};

fn server(release: Release, hooks: &str) -> Rig {
    Rig::new(&Setup {
        release,
        hooks: hooks.into(),
        ..Setup::default()
    })
}

fn up(rig: &Rig) -> (Report, Option<Ready>) {
    bring_up(rig, rig.pool().ledger(), &MACHINE)
}

/// Returns whether a release records its fatal errors.
fn records(release: Release) -> bool {
    release != Release::V1_5_01
}

#[test]
fn every_module_is_asked_for_a_record_and_an_older_one_is_initialised_without() {
    for release in Release::ALL {
        let rig = server(release, "");
        let (tdx, _) = up(&rig);
        assert_eq!((tdx.state, tdx.reasons), (TdxState::Ready, vec![]));
        let calls = if records(release) { 1 } else { 2 };
        assert_eq!(rig.calls(Leaf::SysInit), calls, "{release}");
        assert_eq!(tdx.steps[0].calls, calls, "{release}");
        assert_eq!(rig.illegal(), 0, "the refused version is a question");
        assert!(!rig.fatal_record().is_complete());
    }
}

#[test]
fn a_module_that_dies_tells_why_and_the_other_cpus_are_told() {
    for release in Release::ALL {
        let rig = server(release, "shutdown TDH.MNG.CREATE call 1");
        let ready = up(&rig).1.unwrap();
        assert!(rig.shutdown().reasons().is_empty());
        let root = rig.pool().take(PageSize::Size4K).unwrap();
        assert!(ready.coordinator.create(&rig, root).is_err());
        assert_eq!(rig.server().module().state(), SysState::Shutdown);

        let reasons = rig.shutdown().reasons();
        assert_eq!(reasons[0], SHUT_DOWN);
        let commands = rig.server().machine().take_icr(0);
        if records(release) {
            let error = format!("fatal error {:#x},", Check::Wanted as u64);
            assert!(reasons[1].contains(&error), "{release}: {reasons:?}");
            // Level asserted, to all but the sender.
            assert_eq!(commands, [0xC_4000 | u64::from(FATAL_VECTOR)]);
        } else {
            assert!(reasons[1].contains("no FATAL_DIAGNOSTICS"), "{reasons:?}");
            assert_eq!(commands, []);
        }
    }
}

#[test]
fn the_notification_alone_makes_the_shutdown_known() {
    let rig = server(Release::default(), "shutdown TDH.PHYMEM.PAGE.RDMD call 1");
    up(&rig).1.unwrap();
    // Another CPU's call, which this host does not see.
    let other = rig.server().processor(3).unwrap();
    let refused = other.leaf(Leaf::PhymemPageRdmd, [(Operand::RCX, rig::BASE)]);
    assert_eq!(refused.unwrap_err(), Status::SYS_SHUTDOWN);
    assert!(!rig.shutdown().is_down());
    assert!(rig.fatal_record().is_complete(), "what the interrupt tells");
    rig.shutdown().note(|| rig.fatal_record());
    assert!(rig.shutdown().reasons()[1].contains("fatal error"));
}

#[test]
fn a_module_that_dies_while_it_is_brought_up_tells_why() {
    for leaf in ["TDH.SYS.CONFIG", "TDH.SYS.KEY.CONFIG", "TDH.SYS.TDMR.INIT"] {
        let rig = server(Release::default(), &format!("shutdown {leaf} call 1"));
        let (tdx, ready) = up(&rig);
        assert!(ready.is_none());
        assert_eq!(tdx.state, TdxState::Failed);
        assert!(tdx.reasons[0].contains(leaf), "{:?}", tdx.reasons);
        assert!(tdx.reasons[0].contains("SYS_SHUTDOWN"), "{:?}", tdx.reasons);
        assert!(tdx.reasons[1].contains("fatal error"), "{:?}", tdx.reasons);
    }
}

#[test]
fn a_module_that_something_else_ended_recorded_nothing() {
    let rig = server(Release::default(), "");
    up(&rig).1.unwrap();
    let other = rig.server().processor(3).unwrap();
    let version = rig.server().module().release().handoff_version();
    let done = other.leaf(Leaf::SysShutdown, [(Operand::RCX, version)]);
    assert!(done.is_ok());
    assert!(
        rig.tdh()
            .phymem_page_rdmd(seam::address::Hpa(rig::BASE))
            .is_err()
    );
    let reasons = rig.shutdown().reasons();
    assert!(
        reasons[1].contains("recorded no fatal error"),
        "{reasons:?}"
    );
}

/// Bring-up fails if TDH.SYS.INIT is refused for the machine's sake. The report says what the module found.
#[test]
fn a_refusal_of_the_machine_is_told_by_name_whatever_the_version() {
    for release in Release::ALL {
        for (status, part) in [
            (Status::INCORRECT_MSR_VALUE.with_detail(0x10A), "0x10a"),
            (Status::SMRR_NOT_LOCKED, "SMRR_NOT_LOCKED"),
            (Status::CMR_LIST_INVALID, "CMR_LIST_INVALID"),
            (Status::SYS_INIT_NOT_PENDING, "SYS_INIT_NOT_PENDING"),
            (Status::OPERAND_INVALID.with(Operand::R8), "fatal errors"),
            (Status::OPERAND_INVALID.with(Operand::RCX), "attributes"),
        ] {
            let rig = server(release, "");
            rig.refuse(Leaf::SysInit, 1..=u64::MAX, status);
            let (tdx, ready) = up(&rig);
            assert!(ready.is_none() && tdx.state == TdxState::Failed);
            assert_eq!(rig.calls(Leaf::SysInit), 1, "{status:?} is final");
            assert_eq!(tdx.reasons.len(), 1, "{:?}", tdx.reasons);
            assert!(tdx.reasons[0].contains(part), "{:?}", tdx.reasons);
            assert_eq!(rig.out(), (0, 0));
        }
    }
}

#[test]
fn the_record_is_cleared_by_each_release_that_has_one() {
    for release in Release::ALL {
        let rig = server(release, "");
        let old = [0xFF; 64];
        rig.server().machine().memory().write(FATAL_RECORD.0, &old);
        up(&rig).1.unwrap();
        let is_cleared = rig.fatal_record() == FatalRecord::default();
        assert_eq!(is_cleared, records(release), "{release}");
    }
}

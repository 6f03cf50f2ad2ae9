//! TD teardown: first the HKID, then the pages.

mod kit;

use kit::{BASE, Builder, PAGE};
use seam::abi::{Leaf, Operand, PageType, Status};
use stub_module::hooks::Hooks;
use stub_module::host::Conditions;

fn interrupted() -> Conditions {
    Conditions {
        interrupt_at_check: Some(1),
        ..Conditions::default()
    }
}

#[test]
fn an_hkid_is_free_once_every_package_has_written_back() {
    let built = Builder::new(Hooks::default());
    let td = built.td(33);
    let cpu = built.cpu(0);
    let tdr = [(Operand::RCX, td.tdr)];
    assert_eq!(
        cpu.leaf(Leaf::PhymemCacheWb, []).err(),
        Some(Status::NO_HKID_READY_TO_WBCACHE)
    );
    cpu.leaf(Leaf::MngVpflushdone, tdr).unwrap();
    cpu.leaf(Leaf::PhymemCacheWb, []).unwrap();
    assert_eq!(
        cpu.leaf(Leaf::MngKeyFreeid, tdr).err(),
        Some(Status::WBCACHE_NOT_COMPLETE)
    );
    built.cpu(2).leaf(Leaf::PhymemCacheWb, []).unwrap();
    cpu.leaf(Leaf::MngKeyFreeid, tdr).unwrap();
    let create = [(Operand::RCX, BASE + (512 << 20)), (Operand::RDX, 33)];
    cpu.leaf(Leaf::MngCreate, create).unwrap();
}

#[test]
fn an_interrupted_write_back_goes_on_on_any_processor_of_the_package() {
    let built = Builder::new(Hooks::default());
    let td = built.td(33);
    let resume = [(Operand::RCX, 1)];
    built
        .cpu(0)
        .leaf(Leaf::MngVpflushdone, [(Operand::RCX, td.tdr)])
        .unwrap();
    assert_eq!(
        built.cpu(0).leaf(Leaf::PhymemCacheWb, resume).err(),
        Some(Status::WBCACHE_RESUME_ERROR)
    );
    built.server.machine().set_conditions(0, interrupted());
    assert_eq!(
        built.cpu(0).leaf(Leaf::PhymemCacheWb, []).err(),
        Some(Status::INTERRUPTED_RESUMABLE)
    );
    assert_eq!(
        built.cpu(2).leaf(Leaf::PhymemCacheWb, resume).err(),
        Some(Status::WBCACHE_RESUME_ERROR),
        "another package"
    );
    built.cpu(1).leaf(Leaf::PhymemCacheWb, resume).unwrap();
}

#[test]
fn an_hkid_that_is_flushed_during_a_round_needs_another() {
    let built = Builder::new(Hooks::default());
    let (first, second) = (built.td(33), built.td(34));
    let cpu = built.cpu(0);
    cpu.leaf(Leaf::MngVpflushdone, [(Operand::RCX, first.tdr)])
        .unwrap();
    built.server.machine().set_conditions(0, interrupted());
    cpu.leaf(Leaf::PhymemCacheWb, []).unwrap_err();
    built
        .server
        .machine()
        .set_conditions(0, Conditions::default());
    cpu.leaf(Leaf::MngVpflushdone, [(Operand::RCX, second.tdr)])
        .unwrap();
    cpu.leaf(Leaf::PhymemCacheWb, [(Operand::RCX, 1)]).unwrap();
    built.cpu(2).leaf(Leaf::PhymemCacheWb, []).unwrap();

    cpu.leaf(Leaf::MngKeyFreeid, [(Operand::RCX, first.tdr)])
        .unwrap();
    assert_eq!(
        cpu.leaf(Leaf::MngKeyFreeid, [(Operand::RCX, second.tdr)])
            .err(),
        Some(Status::WBCACHE_NOT_COMPLETE)
    );
}

#[test]
fn pages_are_reclaimed_in_teardown_in_any_order_and_the_tdr_last() {
    let built = Builder::new(Hooks::default());
    let td = built.td(33);
    let cpu = built.cpu(0);
    let reclaim = |pa| cpu.leaf(Leaf::PhymemPageReclaim, [(Operand::RCX, pa)]);
    assert_eq!(
        reclaim(td.tdcx[0]).err(),
        Some(Status::LIFECYCLE_STATE_INCORRECT)
    );
    built.tear_down(&td);
    assert_eq!(
        reclaim(td.tdr).err(),
        Some(Status::TD_ASSOCIATED_PAGES_EXIST)
    );
    for pa in td.tdcx.iter().rev() {
        let reclaimed = reclaim(*pa).unwrap();
        assert_eq!(
            (reclaimed.rcx, reclaimed.rdx),
            (PageType::Tdcx as u64, td.tdr)
        );
    }
    assert_eq!(reclaim(td.tdr).unwrap().rcx, PageType::Tdr as u64);
    assert_eq!(
        reclaim(td.tdr).err(),
        Some(Status::PAGE_METADATA_INCORRECT.with(Operand::RCX))
    );
}

#[test]
fn only_a_page_that_is_the_hosts_is_written_back_by_address() {
    let built = Builder::new(Hooks::default());
    let td = built.td(33);
    let cpu = built.cpu(0);
    let write_back = |pa| cpu.leaf(Leaf::PhymemPageWbinvd, [(Operand::RCX, pa)]).err();
    let with_keyid = 33 << 46;
    assert_eq!(
        write_back(td.tdcx[0] | with_keyid),
        Some(Status::PAGE_METADATA_INCORRECT.with(Operand::RCX))
    );
    assert_eq!(write_back((BASE + (900 << 20) + PAGE) | with_keyid), None);
}

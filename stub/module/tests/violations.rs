//! Each violation by the host leaves exactly one record.

mod kit;

use kit::{Builder, PAGE};
use seam::abi::{Leaf, Operand, Status};
use stub_module::hooks::{Hooks, Violation, ViolationKind};
use stub_module::host::Server;

/// A free page of the TDMR.
const FREE: u64 = kit::BASE + (64 << 20);

fn only_record(server: &Server) -> Violation {
    let records = server.module().violations().take();
    assert_eq!(records.len(), 1, "{records:?}");
    records[0]
}

fn patterned() -> Builder {
    Builder::new(Hooks {
        patterns: true,
        ..Hooks::default()
    })
}

#[test]
fn a_private_keyid_in_an_address_of_the_host() {
    let built = patterned();
    let cpu = built.cpu(1);
    let keyid_shift = 46;
    let alias = FREE | 40 << keyid_shift;
    assert_eq!(cpu.store(alias, 1), Err(ViolationKind::KeyIdAlias));
    let record = only_record(&built.server);
    assert_eq!(record.kind, ViolationKind::KeyIdAlias);
    assert_eq!((record.lp, record.pa, record.hkid), (1, alias, 40));
}

#[test]
fn reading_a_tds_page() {
    let built = patterned();
    let td = built.td(33);
    assert_eq!(
        built.cpu(0).load(td.tdcx[2] + 8),
        Err(ViolationKind::PrivateRead)
    );
    let record = only_record(&built.server);
    assert_eq!((record.kind, record.hkid), (ViolationKind::PrivateRead, 33));
}

#[test]
fn writing_to_the_pamt() {
    let built = patterned();
    let pamt = kit::BASE + kit::SIZE;
    assert_eq!(
        built.cpu(0).store(pamt, 1),
        Err(ViolationKind::PrivateWrite)
    );
    let record = only_record(&built.server);
    assert_eq!(
        (record.kind, record.hkid),
        (ViolationKind::PrivateWrite, kit::GLOBAL_HKID)
    );
}

#[test]
fn the_seam_range() {
    let built = patterned();
    let seam = built.server.machine().config().seamrr.0;
    assert_eq!(
        built.cpu(0).load(seam + PAGE),
        Err(ViolationKind::SeamrrAccess)
    );
    assert_eq!(only_record(&built.server).kind, ViolationKind::SeamrrAccess);
}

#[test]
fn a_page_given_away_again_without_clearing() {
    let built = patterned();
    let cpu = built.cpu(0);
    let td = built.td(33);
    built.tear_down(&td);
    let page = td.tdcx[0];
    cpu.leaf(Leaf::PhymemPageReclaim, [(Operand::RCX, page)])
        .unwrap();
    // The call is refused, so the page has not changed hands and there is no record yet.
    let refused = cpu.leaf(Leaf::MngCreate, [(Operand::RCX, page), (Operand::RDX, 1)]);
    assert_eq!(refused, Err(Status::OPERAND_INVALID.with(Operand::RDX)));
    cpu.leaf(Leaf::MngCreate, [(Operand::RCX, page), (Operand::RDX, 34)])
        .unwrap();
    let record = only_record(&built.server);
    assert_eq!(
        (record.kind, record.pa, record.hkid),
        (ViolationKind::ReuseWithoutClearing, page, 33)
    );
}

#[test]
fn a_page_handed_out_without_clearing() {
    let built = patterned();
    let cpu = built.cpu(0);
    let td = built.td(33);
    built.tear_down(&td);
    for page in &td.tdcx[..2] {
        cpu.leaf(Leaf::PhymemPageReclaim, [(Operand::RCX, *page)])
            .unwrap();
    }
    let Server { .. } = &built.server;
    let (module, machine) = (built.server.module(), built.server.machine());
    cpu.clear(td.tdcx[0]).unwrap();
    assert!(module.check_handed_out(machine, 0, td.tdcx[0]..td.tdcx[0] + PAGE));
    assert!(!module.check_handed_out(machine, 0, td.tdcx[1]..td.tdcx[1] + PAGE));
    assert_eq!(only_record(&built.server).pa, td.tdcx[1]);
}

#[test]
fn entering_a_vcpu_whose_td_has_given_its_key_back() {
    let built = patterned();
    let td = built.td(33);
    let tdvpr = FREE;
    let operands = [(Operand::RCX, tdvpr), (Operand::RDX, td.tdr)];
    built.initialize(&td);
    built.cpu(0).leaf(Leaf::VpCreate, operands).unwrap();
    built.tear_down(&td);
    let refused = built.cpu(2).leaf(Leaf::VpEnter, [(Operand::RCX, tdvpr)]);
    assert_eq!(refused, Err(Status::TD_KEYS_NOT_CONFIGURED));
    let record = only_record(&built.server);
    assert_eq!(
        (record.kind, record.lp, record.pa, record.hkid),
        (ViolationKind::StaleKey, 2, tdvpr, 33)
    );
}

#[test]
fn what_the_host_may_do_leaves_no_record() {
    let built = patterned();
    let cpu = built.cpu(0);
    let td = built.td(33);
    built.tear_down(&td);
    for page in td.tdcx.iter().chain([&td.tdr]) {
        cpu.leaf(Leaf::PhymemPageReclaim, [(Operand::RCX, *page)])
            .unwrap();
        cpu.clear(*page).unwrap();
    }
    let again = built.td(33);
    assert_eq!(again.tdr, td.tdr);
    cpu.store(FREE, 7).unwrap();
    assert_eq!(cpu.load(FREE), Ok(7));
    assert_eq!(built.server.module().violations().total(), 0);
}

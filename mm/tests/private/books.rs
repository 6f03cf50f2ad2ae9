//! Tests of a reclaim when the module's books differ from the host's: nothing is lost that the module has released, and
//! nothing is used that it has not.

use mm::private::{Clearing, Reclaim, Step};
use seam::abi::{Leaf, Operand, PAGE_2M, PAGE_4K, PageSize, PageType};
use seam::address::Gpa;

use crate::kit::{BASE, Host, Td};
use crate::reclaim::{Now, plan, reclaim, work_until};

/// Returns the address of a private page of this size, as the module has it.
fn private_page(host: &Host, size: PageSize) -> u64 {
    let frames = host.server.audit(BASE..BASE + host.size).unwrap();
    let is_it = |found: &stub_module::host::Frame| {
        found.page_type == PageType::Reg && found.size == size.bytes()
    };
    let mut found = frames.iter().filter(|(_, frame)| is_it(frame));
    *found.next().expect("a page of that size").0
}

/// Makes the module release the page, without the host's knowledge.
fn release_behind_the_host(host: &Host, page: u64) {
    let cpu = host.server.processor(3).unwrap();
    cpu.leaf(Leaf::PhymemPageReclaim, [(Operand::RCX, page)])
        .unwrap();
}

/// Checks that the module's books are consistent, and that the host did nothing that hardware would stop.
fn check_books(host: &Host) {
    host.server.audit(BASE..BASE + host.size).unwrap();
    let violations = host.server.module().violations();
    assert_eq!(violations.total(), 0, "{:?}", violations.take());
    assert_eq!(host.pool.refused(), 0);
    assert_eq!(seam::page::lost_pages(), 0);
}

#[test]
fn a_page_that_the_module_released_before_is_not_lost() {
    for clearing in [Clearing::Clear, Clearing::Leave] {
        let host = Host::new("patterns");
        let td = Td::runnable(&host, 33, 1);
        host.with(0, |cpu| {
            td.map.map(cpu, Gpa(0), PageSize::Size4K).unwrap();
            td.map.map(cpu, Gpa(PAGE_2M), PageSize::Size2M).unwrap();
        });
        td.release();
        release_behind_the_host(&host, private_page(&host, PageSize::Size4K));
        assert_eq!(reclaim(td, clearing).pages, [1, 1, 0]);
        check_books(&host);
        assert_eq!(host.out().1, 0);
    }
}

#[test]
fn a_page_that_the_module_has_in_smaller_pages_is_reclaimed_in_these() {
    let host = Host::new("patterns");
    let td = Td::new(&host, 33, 1);
    host.with(0, |cpu| {
        td.map.map(cpu, Gpa(0), PageSize::Size2M).unwrap();
        td.map.map(cpu, Gpa(PAGE_2M), PageSize::Size2M).unwrap();
    });
    let tdr = td.map.keyed(|tdr| Ok(tdr.hpa())).unwrap();
    let table = host.frame();
    let cpu = host.server.processor(3).unwrap();
    let demote = [
        (Operand::RCX, PageSize::Size2M as u64),
        (Operand::RDX, tdr.0),
        (Operand::R8, table.hpa().0),
    ];
    cpu.leaf(Leaf::MemPageDemote, demote).unwrap();
    td.map.finalize(&host.on(0)).unwrap();
    td.release();
    release_behind_the_host(&host, table.hpa().0);
    // One of the small pages is released as well.
    let small = private_page(&host, PageSize::Size4K) & !(PAGE_2M - 1);
    release_behind_the_host(&host, small + 7 * PAGE_4K);
    let counts = reclaim(td, Clearing::Clear);
    assert_eq!(counts.pages, [512, 1, 0]);
    cpu.clear(table.hpa().0).unwrap();
    host.give(table);
    check_books(&host);
    assert_eq!(host.out(), (0, 0));
}

#[test]
fn a_page_that_the_module_gave_to_another_td_is_left_alone() {
    let host = Host::new("patterns");
    let (td, other) = (Td::runnable(&host, 33, 1), Td::new(&host, 34, 2));
    host.with(0, |cpu| td.map.map(cpu, Gpa(0), PageSize::Size4K).unwrap());
    td.release();
    let page = private_page(&host, PageSize::Size4K);
    release_behind_the_host(&host, page);
    // It becomes the root page of a vCPU.
    let cpu = host.server.processor(3).unwrap();
    cpu.clear(page).unwrap();
    let owner = other.map.keyed(|tdr| Ok(tdr.hpa())).unwrap();
    let create = [(Operand::RCX, page), (Operand::RDX, owner.0)];
    cpu.leaf(Leaf::VpCreate, create).unwrap();
    let clock = Now::new();
    let (map, control) = td.into_parts();
    let all = Reclaim::new(map, control, plan(1, Clearing::Clear), &clock).unwrap();
    let step = host.with(0, |cpu| work_until(&all, cpu, &clock));
    assert_eq!(step, Step::Done);
    let refused = all.quarantined();
    assert_eq!(refused[0].hpa.0, page);
    // The TDR is put away, too, since a page of the TD was.
    assert_eq!(all.progress(&clock).quarantined, 2);
    check_books(&host);
    // The test made the other TD's vCPU without the host, which could not take it down.
    std::mem::forget(other);
}

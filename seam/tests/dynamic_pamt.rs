//! The operands that only a dynamic PAMT gives a meaning, on each release: the older ones have the old operands alone.

#![expect(
    clippy::disallowed_methods,
    reason = "the test plays the allocator and the pool"
)]

mod rig;

use rig::{GLOBAL_HKID, Rig, Td, persist, persist_in};
use seam::abi::{Features0, Operand, PAGE_2M, PageSize, PageType, Status};
use seam::address::{Gpa, Hpa, Level};
use seam::error::Error;
use seam::hkid::Hkid;
use seam::page::{Clean, Donated, Page};
use seam::tdh::{PamtPair, Tables};
use stub_module::Release;

const HKID: u16 = 33;

/// Returns a machine whose module has a dynamic PAMT.
fn dynamic() -> Rig {
    let rig = Rig::new("patterns");
    rig.bring_up_by(|tdh, list, hkid| tdh.sys_config_with_dynamic_pamt(list, 1, hkid));
    rig
}

fn pair(rig: &Rig) -> PamtPair<Clean> {
    [rig.frames.take_4k(), rig.frames.take_4k()]
}

fn range_of(page: Hpa) -> Hpa {
    Hpa(page.0 / PAGE_2M * PAGE_2M)
}

/// Gives the module a pair in the first range, from which all 4 KiB pages of a test come.
fn add_first(rig: &Rig) -> PamtPair<Donated> {
    const ENOUGH: usize = 256;
    let stock: Vec<_> = (0..ENOUGH).map(|_| rig.frames.take_4k()).collect();
    stock.into_iter().for_each(|page| rig.frames.give(page));
    let pages = pair(rig);
    let range = range_of(pages[0].hpa());
    persist(pages, |pages| rig.on(0).phymem_pamt_add(range, pages))
}

/// Takes the pair of the first range back.
fn remove_first(rig: &Rig, pages: PamtPair<Donated>) {
    let range = range_of(pages[0].hpa());
    let removed = persist(pages, |pages| {
        rig.on(0).phymem_pamt_remove(range, pages, GLOBAL_HKID)
    });
    removed.into_iter().for_each(|page| rig.put_away(page));
}

fn refused(error: &Error, code: Status, operand: Operand) {
    assert_eq!(error.status(), Some(code.with(operand)), "{error}");
}

#[test]
fn a_page_is_split_with_a_pair_and_joined_to_give_it_back() {
    let rig = dynamic();
    let first = add_first(&rig);
    let mut td = Td::build(&rig, Hkid::mint(HKID));
    let tdh = rig.on(0);
    let page = td.pages.pop().unwrap();
    let (hpa, gpa) = (page.hpa(), Gpa(PAGE_2M));
    let of = |size| persist_in(|| tdh.phymem_page_rdmd_of(hpa, size));
    let whole = of(PageSize::Size2M);
    assert_eq!((whole.page_type, whole.pair), (Some(PageType::Reg), None));
    assert_eq!(whole.size, Some(PageSize::Size2M));

    td.block_and_track(gpa.0, Level::Pd);
    let tables = Tables {
        sept: rig.frames.take_4k(),
        pamt: pair(&rig),
    };
    let addresses = tables.pamt.each_ref().map(Page::hpa);
    let split = persist((page, tables), |(page, tables)| {
        tdh.mem_page_demote_with_pamt(&td.tdr, gpa, page, tables)
    });
    let range = of(PageSize::Size2M);
    assert_eq!(range.page_type, Some(PageType::Pamt));
    assert_eq!(range.pair, Some(addresses));
    let small = of(PageSize::Size4K);
    assert_eq!((small.size, small.pair), (Some(PageSize::Size4K), None));
    // A page of a pair says so.
    let of_pair = persist_in(|| tdh.phymem_page_rdmd(addresses[0]));
    assert_eq!(of_pair.page_type, Some(PageType::Pamt));

    td.block_and_track(gpa.0, Level::Pd);
    let joined = persist(split, |split| {
        tdh.mem_page_promote_with_pamt(&td.tdr, gpa, split, GLOBAL_HKID)
    });
    assert_eq!(of(PageSize::Size2M).pair, None);
    rig.put_away(joined.tables.sept);
    let pamt = joined.tables.pamt.into_iter();
    pamt.for_each(|page| rig.put_away(page));
    td.pages.push(joined.page);
    td.terminate().surrender();
    remove_first(&rig, first);
    rig.assert_spotless();
}

#[test]
fn what_is_refused_gives_back_what_it_was_given() {
    let rig = dynamic();
    let first = add_first(&rig);
    let mut td = Td::build(&rig, Hkid::mint(HKID));
    let tdh = rig.on(0);
    let range = range_of(first[0].hpa());

    // The range has a pair, and pages in use.
    let rejected = tdh.phymem_pamt_add(range, pair(&rig)).unwrap_err();
    let (error, second) = rejected.into_parts();
    refused(&error, Status::HPA_RANGE_NOT_FREE, Operand::RCX);
    let rejected = tdh.phymem_pamt_remove(range, first, GLOBAL_HKID);
    let (error, first) = rejected.unwrap_err().into_parts();
    assert!(error.is(Status::PAMT_PAGE_NOT_EMPTY), "{error}");

    // A split without a pair, and one with a page of the TD as a part of it.
    td.block_and_track(PAGE_2M, Level::Pd);
    let page = td.pages.pop().unwrap();
    let sept = rig.frames.take_4k();
    let rejected = tdh.mem_page_demote(&td.tdr, Gpa(PAGE_2M), page, sept);
    let (error, (page, sept)) = rejected.unwrap_err().into_parts();
    assert!(error.status().is_some(), "{error}");
    let [one, other] = second;
    let used = Page::<Clean>::mint(td.pages[0].hpa(), PageSize::Size4K).unwrap();
    let tables = Tables {
        sept,
        pamt: [one, used],
    };
    let rejected = tdh.mem_page_demote_with_pamt(&td.tdr, Gpa(PAGE_2M), page, tables);
    let (error, (page, tables)) = rejected.unwrap_err().into_parts();
    refused(&error, Status::PAGE_NOT_FREE, Operand::R13);
    let [one, used] = tables.pamt;
    used.surrender();
    let unused = [tables.sept, one, other].into_iter();
    unused.for_each(|page| rig.frames.give(page));

    // A range without a pair has none to give.
    let pair = pair(&rig);
    let [a, b] = pair.each_ref().map(Page::hpa);
    let free = Hpa(range_of(page.hpa()).0 + PAGE_2M);
    let donated = persist(pair, |pair| tdh.phymem_pamt_add(free, pair));
    let elsewhere = Hpa(free.0 + PAGE_2M);
    let rejected = tdh.phymem_pamt_remove(elsewhere, donated, GLOBAL_HKID);
    let (error, donated) = rejected.unwrap_err().into_parts();
    refused(&error, Status::NO_PAMT_PAGE_PAIR, Operand::RCX);
    let told = persist_in(|| tdh.phymem_page_rdmd_of(free, PageSize::Size2M));
    assert_eq!(told.pair, Some([a, b]));
    let removed = persist(donated, |pair| {
        tdh.phymem_pamt_remove(free, pair, GLOBAL_HKID)
    });
    removed.into_iter().for_each(|page| rig.put_away(page));

    td.pages.push(page);
    td.terminate().surrender();
    remove_first(&rig, first);
    rig.frames.assert_all_back();
}

#[test]
fn without_a_dynamic_pamt_each_release_takes_the_old_operands_and_refuses_the_new() {
    for release in Release::ALL {
        let rig = Rig::with_release(release, "patterns");
        rig.bring_up();
        let mut td = Td::build(&rig, Hkid::mint(HKID));
        td.reshape();
        assert_eq!(rig.illegal(), 0, "{release}");
        let tdh = rig.on(0);
        let page = td.pages[0].hpa();
        let error = tdh.phymem_page_rdmd_of(page, PageSize::Size2M).unwrap_err();
        refused(&error, Status::OPERAND_INVALID, Operand::RCX);
        let plain = tdh.phymem_page_rdmd_of(page, PageSize::Size4K).unwrap();
        assert_eq!(Ok(plain), tdh.phymem_page_rdmd(page));
        assert_eq!(plain.pair, None);
        let rejected = tdh.phymem_pamt_add(range_of(page), pair(&rig)).unwrap_err();
        let (error, pages) = rejected.into_parts();
        refused(&error, Status::OPERAND_INVALID, Operand::RAX);
        pages.into_iter().for_each(|page| rig.frames.give(page));

        // The pair is ignored and stays the host's: a host that has no dynamic PAMT must not give one.
        let gpa = Gpa(3 * PAGE_2M);
        let large = td.aug(gpa.0, PageSize::Size2M);
        td.block_and_track(gpa.0, Level::Pd);
        let tables = Tables {
            sept: rig.frames.take_4k(),
            pamt: pair(&rig),
        };
        let [a, b] = tables.pamt.each_ref().map(Page::hpa);
        let split = persist((large, tables), |(page, tables)| {
            tdh.mem_page_demote_with_pamt(&td.tdr, gpa, page, tables)
        });
        for page in [a, b] {
            let told = persist_in(|| tdh.phymem_page_rdmd(page));
            assert_eq!(told.page_type, Some(PageType::Nda), "{release}");
        }
        td.pages.extend(split.pages);
        td.pages.push(split.tables.sept);
        for page in split.tables.pamt {
            rig.frames.give(ignored(page));
        }
        td.terminate().surrender();
        rig.frames.assert_all_back();
    }
}

/// Takes a page back that the module ignored.
fn ignored(page: Page<Donated>) -> Page<Clean> {
    let (hpa, size) = page.give_up();
    Page::mint(hpa, size).unwrap()
}

#[test]
fn the_flag_for_a_dynamic_pamt_means_something_where_the_feature_bit_is() {
    for release in Release::ALL {
        let rig = Rig::with_release(release, "");
        if release == Release::V1_5_01 {
            let list = rig.buffer(&[0; 8]);
            let global = Hkid::mint(GLOBAL_HKID);
            let tdh = rig.on(0);
            persist_in(|| tdh.sys_init());
            for lp in 0..4 {
                persist_in(|| rig.on(lp).sys_lp_init());
            }
            let error = tdh.sys_config_with_dynamic_pamt(list, 1, &global);
            refused(&error.unwrap_err(), Status::OPERAND_INVALID, Operand::R8);
            global.surrender();
            continue;
        }
        rig.bring_up_by(|tdh, list, hkid| tdh.sys_config_with_dynamic_pamt(list, 1, hkid));
        let page = rig.frames.take_4k();
        let tdh = rig.on(0);
        let range = tdh.phymem_page_rdmd_of(range_of(page.hpa()), PageSize::Size2M);
        assert_eq!(
            range.is_ok(),
            release.has(Features0::DYNAMIC_PAMT),
            "{release}"
        );
        rig.frames.give(page);
    }
}

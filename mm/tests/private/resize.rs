//! Tests of splitting and joining large pages.

use mm::private::{Error, NoneRuns};
use seam::abi::{Leaf, PAGE_1G, PAGE_2M, PAGE_4K, PageSize, Status};
use seam::address::Gpa;

use crate::build::end;
use crate::kit::{Host, Td};

#[test]
fn a_page_is_split_where_the_guest_accepts_4k_and_is_made_whole_once_all_is_accepted() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| {
        td.map.map(cpu, Gpa(0), PageSize::Size2M).unwrap();
        let before = host.ledger();
        assert_eq!(
            td.accept(0, PageSize::Size4K),
            None,
            "the host must split it"
        );
        td.map
            .demote(cpu, Gpa(0), PageSize::Size2M, &NoneRuns)
            .unwrap();
        for page in 0..512 {
            let whole = td.map.promote(cpu, Gpa(0), PageSize::Size2M, &NoneRuns);
            assert_eq!(whole, Err(Error::NotWhole), "{page}");
            let accepted = td.accept(page * PAGE_4K, PageSize::Size4K);
            assert_eq!(accepted, Some(Status::SUCCESS));
        }
        td.map
            .promote(cpu, Gpa(0), PageSize::Size2M, &NoneRuns)
            .unwrap();
        assert_eq!(td.map.holding().pages, [0, 1, 0]);
        assert_eq!(host.ledger(), before);
        let again = td.accept(0, PageSize::Size2M).unwrap();
        assert_eq!(again.code(), Status::PAGE_ALREADY_ACCEPTED);
    });
    end(td);
}

#[test]
fn pages_of_several_frames_are_never_made_one() {
    let host = Host::new("");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| {
        // In the reverse order of the frames.
        for page in (0..512).rev() {
            td.map
                .map(cpu, Gpa(page * PAGE_4K), PageSize::Size4K)
                .unwrap();
        }
        let calls = host.calls(Leaf::MemSeptRd);
        let whole = td.map.promote(cpu, Gpa(0), PageSize::Size2M, &NoneRuns);
        assert_eq!(whole, Err(Error::NotWhole));
        assert_eq!(host.calls(Leaf::MemSeptRd), calls, "nobody had to be asked");
        let missing = td
            .map
            .promote(cpu, Gpa(PAGE_2M), PageSize::Size2M, &NoneRuns);
        assert_eq!(missing, Err(Error::NotMapped));
    });
    end(td);
}

/// Maps the TD's first GiB as one page. The host has at least 2 GiB.
pub fn map_gib(td: &Td<'_>) {
    let host = td.host;
    host.with(0, |cpu| {
        // The control pages are in one GiB; the other one is whole.
        let mut ledger = host.pool.ledger().lock();
        let whole = ledger.alloc(18).unwrap();
        ledger.split(whole, 9).unwrap();
        let mut others = Vec::new();
        while let Ok(frame) = ledger.alloc(9) {
            others.push(frame);
        }
        for part in (0..512).rev() {
            let frame = mm::frames::Frame {
                pa: whole.pa + part * PAGE_2M,
                order: 9,
            };
            ledger.free(frame).unwrap();
        }
        // The parts coalesce, and are allocated again in order.
        drop(ledger);
        for part in 0..512 {
            td.map
                .map(cpu, Gpa(part * PAGE_2M), PageSize::Size2M)
                .unwrap();
            assert_eq!(
                td.accept(part * PAGE_2M, PageSize::Size2M),
                Some(Status::SUCCESS)
            );
        }
        let mut ledger = host.pool.ledger().lock();
        for frame in others {
            ledger.free(frame).unwrap();
        }
        drop(ledger);
        let joined = td.map.promote_all(cpu, 0..2 * PAGE_1G, &NoneRuns);
        assert_eq!(joined, Ok([0, 0, 1]));
    });
    assert_eq!(
        (td.map.holding().pages, td.map.holding().sept),
        ([0, 0, 1], 1)
    );
    host.audit();
}

#[test]
fn a_gib_is_made_whole_split_and_taken() {
    let host = Host::sized("patterns", 2 * PAGE_1G);
    let td = Td::runnable(&host, 33, 1);
    map_gib(&td);
    host.with(0, |cpu| {
        // The first 2 MiB and one more page.
        let taken = td.map.remove(cpu, 0..PAGE_2M + PAGE_4K, &NoneRuns);
        assert!(taken.is_ok());
        assert_eq!(td.map.holding().pages, [511, 510, 0]);
        host.audit();
    });
    end(td);
}

#[test]
fn only_what_is_whole_and_accepted_is_put_together() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| {
        td.map.populate(cpu, 0..4 * PAGE_2M).unwrap();
        for block in 0..3 {
            td.map
                .demote(cpu, Gpa(block * PAGE_2M), PageSize::Size2M, &NoneRuns)
                .unwrap();
        }
        // The first block is accepted, the second except for its last page, and the third lacks a page.
        for page in 0..2 * 512 - 1 {
            let accepted = td.accept(page * PAGE_4K, PageSize::Size4K);
            assert_eq!(accepted, Some(Status::SUCCESS));
        }
        let hole = 2 * PAGE_2M + 7 * PAGE_4K;
        td.map.remove(cpu, hole..hole + PAGE_4K, &NoneRuns).unwrap();
        let sept = td.map.holding().sept;
        assert_eq!(
            td.map.promote_all(cpu, 0..PAGE_1G, &NoneRuns),
            Ok([0, 1, 0])
        );
        assert_eq!(td.map.holding().pages, [512 + 511, 2, 0]);
        assert_eq!(td.map.holding().sept, sept - 1);
        let odd = td.map.promote_all(cpu, 1..PAGE_1G, &NoneRuns);
        assert_eq!(odd, Err(Error::BadRange));
        // Part of a block is not promoted.
        assert_eq!(
            td.map.promote_all(cpu, PAGE_4K..PAGE_2M, &NoneRuns),
            Ok([0; 3])
        );
    });
    host.audit();
    end(td);
}

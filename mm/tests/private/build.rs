//! Tests of adding memory to a TD.

use mm::private::{Error, Given, Holding, NoneRuns, Outcome};
use seam::abi::{Leaf, PAGE_1G, PAGE_2M, PAGE_4K, PageSize, SeptState, Status};
use seam::address::{Gpa, Level};

use crate::kit::{Host, SOURCE, Td};

#[test]
fn the_image_is_added_and_measured_page_by_page_and_the_rest_is_mapped_large() {
    let host = Host::new("patterns");
    let td = Td::new(&host, 33, 1);
    host.with(0, |cpu| {
        for page in 0..3 {
            td.map.add(cpu, Gpa(page * PAGE_4K), SOURCE, true).unwrap();
        }
        let given = td
            .map
            .populate(cpu, 3 * PAGE_4K..3 * PAGE_2M + PAGE_4K)
            .unwrap();
        assert_eq!(given.pages, [509 + 1, 2, 0]);
    });
    assert_eq!(host.calls(Leaf::MemPageAdd), 3);
    assert_eq!(host.calls(Leaf::MrExtend), 3 * 16);
    assert_eq!(
        td.map.holding(),
        Holding {
            pages: [513, 2, 0],
            // A PDPT, a directory, two page tables.
            sept: 4,
            stranded: 0,
        }
    );
    let entry = |gpa: u64, level| {
        let entry = td
            .map
            .keyed(|tdr| Ok(host.on(0).mem_sept_rd(tdr, Gpa(gpa), level)?));
        entry.unwrap().state
    };
    assert_eq!(entry(0, Level::Pt), SeptState::Mapped as u8);
    assert_eq!(entry(PAGE_2M, Level::Pd), SeptState::Pending as u8);
    assert_eq!(entry(3 * PAGE_2M, Level::Pt), SeptState::Pending as u8);
    host.audit();
    end(td);
}

/// Removes everything while the TD has its key, and terminates the TD.
pub fn end(td: Td<'_>) {
    let host = td.host;
    host.with(3, |cpu| {
        let taken = td.map.remove(cpu, 0..4 * PAGE_1G, &NoneRuns).unwrap();
        assert!(matches!(taken, Outcome::Removed(_)), "{taken:?}");
    });
    assert_eq!(td.map.holding(), Holding::default());
    host.audit();
    td.release();
    td.bury();
    host.assert_spotless();
}

#[test]
fn memory_is_mapped_small_where_no_large_frame_is_left() {
    let host = Host::new("patterns");
    let td = Td::new(&host, 33, 1);
    // Two large frames are freed except for their first pages.
    let mut frames = hoard(&host, 0);
    let small = |large: &mm::frames::Frame, page: u64| mm::frames::Frame {
        pa: large.pa + page * PAGE_4K,
        order: 0,
    };
    let mut ledger = host.pool.ledger().lock();
    for _ in 0..2 {
        let index = frames.iter().position(|frame| frame.order >= 9).unwrap();
        let large = frames.swap_remove(index);
        ledger.split(large, 0).unwrap();
        for page in 0..1 << large.order {
            match page {
                1..512 => ledger.free(small(&large, page)).unwrap(),
                _ => frames.push(small(&large, page)),
            }
        }
    }
    drop(ledger);
    let before = host.ledger();
    let given = host.with(0, |cpu| td.map.populate(cpu, 0..PAGE_2M));
    let pages = [512, 0, 0];
    assert_eq!(given, Ok(Given { pages }));
    let more = host.with(0, |cpu| td.map.populate(cpu, PAGE_2M..3 * PAGE_2M));
    assert_eq!(more, Err(Error::NoFrames(PageSize::Size4K)));
    assert_eq!(td.map.holding().pages, pages);
    host.with(0, |cpu| td.map.remove(cpu, 0..PAGE_2M, &NoneRuns).unwrap());
    assert_eq!(host.ledger(), before);
    unhoard(&host, frames);
    end(td);
}

fn unhoard(host: &Host, frames: Vec<mm::frames::Frame>) {
    let mut ledger = host.pool.ledger().lock();
    for frame in frames {
        ledger.free(frame).unwrap();
    }
}

#[test]
fn a_failed_map_undoes_only_the_new_pages() {
    let host = Host::new("patterns");
    let td = Td::new(&host, 33, 1);
    host.with(0, |cpu| {
        td.map
            .add(cpu, Gpa(PAGE_1G + 5 * PAGE_4K), SOURCE, true)
            .unwrap();
        let before = td.map.holding();
        let twice = td.map.add(cpu, Gpa(PAGE_1G + 5 * PAGE_4K), SOURCE, true);
        assert_eq!(twice, Err(Error::Occupied));
        let over = td.map.populate(cpu, 0..2 * PAGE_1G);
        assert_eq!(over, Err(Error::NoFrames(PageSize::Size4K)));
        let over = td.map.populate(cpu, PAGE_1G - PAGE_2M..PAGE_1G + PAGE_2M);
        assert_eq!(over, Err(Error::Occupied));
        assert_eq!(td.map.holding(), before);
        assert_eq!(
            td.map.map(cpu, Gpa(PAGE_4K), PageSize::Size2M),
            Err(Error::BadRange)
        );
        assert_eq!(
            td.map.map(cpu, Gpa(4 * PAGE_1G), PageSize::Size4K),
            Err(Error::BadRange)
        );
        assert_eq!(
            td.map.map(cpu, Gpa(0), PageSize::Size1G),
            Err(Error::BadRange)
        );
    });
    host.audit();
    end(td);
}

#[test]
fn every_step_of_a_build_may_fail_for_good_and_gives_back_what_it_took() {
    for (leaf, calls) in [
        (Leaf::MemSeptAdd, 4),
        (Leaf::MemPageAdd, 2),
        (Leaf::MrExtend, 32),
        (Leaf::MemPageAug, 4),
    ] {
        for call in [1, 2, calls / 2, calls] {
            // One call more than the retry policy allows would succeed.
            let hooks = format!("patterns\nbusy {} calls {call}-{}", leaf.name(), call + 127);
            let host = Host::new(&hooks);
            let td = Td::new(&host, 33, 1);
            let before = host.ledger();
            let built = host.with(0, |cpu| {
                let two = 2 * PAGE_4K;
                let build = |from: u64| {
                    td.map.add(cpu, Gpa(from), SOURCE, true)?;
                    td.map.add(cpu, Gpa(from + PAGE_4K), SOURCE, true)?;
                    td.map.populate(cpu, PAGE_2M..3 * PAGE_2M + two)
                };
                build(PAGE_2M - two)
            });
            let Err(Error::Seam(error)) = built else {
                panic!("{leaf:?} call {call}: {built:?}");
            };
            assert!(
                error.is(Status::OPERAND_BUSY) && error.leaf() == leaf,
                "{error}"
            );
            host.audit();
            // The pages added before the one that failed are still the TD's.
            host.with(0, |cpu| td.map.remove(cpu, 0..PAGE_1G, &NoneRuns).unwrap());
            assert_eq!(host.ledger(), before, "{leaf:?} call {call}");
            end(td);
        }
    }
}

#[test]
fn frames_may_run_out_at_any_step_and_nothing_is_lost() {
    for left in 0..8 {
        let host = Host::new("patterns");
        let td = Td::new(&host, 33, 1);
        let frames = hoard(&host, left);
        let before = host.ledger();
        let built = host.with(0, |cpu| {
            td.map.populate(cpu, PAGE_2M - 4 * PAGE_4K..PAGE_2M)
        });
        let needed = 4 + 3;
        match built {
            Ok(given) => assert_eq!((given.pages, left), ([4, 0, 0], needed)),
            Err(error) => {
                assert_eq!(error, Error::NoFrames(PageSize::Size4K));
                assert!(left < needed);
                assert_eq!(host.ledger(), before);
                assert_eq!(td.map.holding(), Holding::default());
            }
        }
        unhoard(&host, frames);
        end(td);
    }
}

/// Allocates all frames except `left` of 4 KiB.
fn hoard(host: &Host, left: usize) -> Vec<mm::frames::Frame> {
    let mut ledger = host.pool.ledger().lock();
    let mut frames = Vec::new();
    for order in (0..=18).rev() {
        while let Ok(frame) = ledger.alloc(order) {
            frames.push(frame);
        }
    }
    let mut back = 0;
    frames.retain(|frame| {
        let keep = frame.order > 0 || back == left;
        if !keep {
            ledger.free(*frame).unwrap();
            back += 1;
        }
        keep
    });
    while back < left {
        let index = frames.iter().position(|frame| frame.order > 0).unwrap();
        let large = frames.swap_remove(index);
        ledger.split(large, 0).unwrap();
        for page in 0..1u64 << large.order {
            let small = mm::frames::Frame {
                pa: large.pa + page * PAGE_4K,
                order: 0,
            };
            if back < left {
                ledger.free(small).unwrap();
                back += 1;
            } else {
                frames.push(small);
            }
        }
    }
    frames
}

//! Tests of dynamic removal.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use mm::private::{Clearing, Error, Holding, Kick, Mode, NoAnswer, NoneRuns, Outcome, Taken};
use seam::abi::{Leaf, PAGE_1G, PAGE_2M, PAGE_4K, PageSize, Status};
use seam::address::Gpa;
use stub_module::Point;

use crate::build::end;
use crate::kit::{Host, Td};
use crate::reclaim::reclaim;

/// A kick that counts its calls.
#[derive(Default)]
struct Counted(AtomicU64);

impl Kick for Counted {
    fn kick(&self) -> Result<(), NoAnswer> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn removed(outcome: Result<Outcome, Error>) -> Taken {
    match outcome {
        Ok(Outcome::Removed(taken)) => taken,
        other => panic!("{other:?}"),
    }
}

#[test]
fn many_small_pages_share_a_tracking_round_and_cost_three_calls_each() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    const PAGES: u64 = 2048;
    host.with(0, |cpu| {
        for page in 0..PAGES {
            td.map
                .map(cpu, Gpa(page * PAGE_4K), PageSize::Size4K)
                .unwrap();
        }
        let kicks = Counted::default();
        let before = calls(&host);
        let taken = removed(td.map.remove(cpu, 0..PAGES * PAGE_4K, &kicks));
        assert_eq!((taken.pages, taken.sept), ([PAGES, 0, 0], 4 + 2));
        let rounds = host.calls(Leaf::MemTrack);
        assert_eq!(rounds, kicks.0.load(Ordering::SeqCst));
        assert!(rounds <= 4 + 3, "{rounds}");
        let per_page = (calls(&host) - before) as f64 / PAGES as f64;
        assert!(per_page <= 3.05, "{per_page}");
    });
    assert_eq!(td.map.holding(), Holding::default());
    end(td);
}

fn calls(host: &Host) -> u64 {
    Leaf::ALL.iter().map(|leaf| host.calls(*leaf)).sum()
}

#[test]
fn large_pages_are_taken_whole_and_split_only_at_the_edges() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| {
        td.map.populate(cpu, 0..8 * PAGE_2M).unwrap();
        let range = PAGE_2M + 100 * PAGE_4K..6 * PAGE_2M + 3 * PAGE_4K;
        let taken = removed(td.map.remove(cpu, range, &NoneRuns));
        assert_eq!(taken.pages, [412 + 3, 4, 0]);
    });
    assert_eq!(host.calls(Leaf::MemPageDemote), 2);
    let holding = td.map.holding();
    assert_eq!(holding.pages, [100 + 509, 2, 0]);
    assert_eq!(holding.sept, 2 + 2);
    host.audit();
    end(td);
}

#[test]
fn taking_nothing_takes_nothing() {
    let host = Host::new("");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| {
        let taken = removed(td.map.remove(cpu, 0..4 * PAGE_1G, &NoneRuns));
        assert_eq!(taken, Taken::default());
        assert_eq!(
            td.map.remove(cpu, 1..PAGE_4K, &NoneRuns),
            Err(Error::BadRange)
        );
    });
    end(td);
}

/// Memory is taken while a vCPU is in the guest: nothing is removed before the vCPU has left.
#[test]
fn no_page_is_removed_while_a_cpu_may_use_it() {
    struct Out<F: Fn() + Sync>(F);
    impl<F: Fn() + Sync> Kick for Out<F> {
        fn kick(&self) -> Result<(), NoAnswer> {
            (self.0)();
            Ok(())
        }
    }
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| td.map.populate(cpu, 0..PAGE_2M).unwrap());
    let held = host.server.machine().hold_at(1, Point::Guest, 1).unwrap();
    thread::scope(|scope| {
        let vcpu = scope.spawn(|| td.enter());
        assert!(held.wait());
        let held = std::sync::Mutex::new(Some((held, vcpu)));
        let kick = Out(|| {
            if let Some((held, vcpu)) = held.lock().unwrap().take() {
                drop(held);
                vcpu.join().unwrap();
            }
        });
        let taken = host.with(0, |cpu| td.map.remove(cpu, 0..PAGE_2M, &kick));
        assert_eq!(removed(taken).pages, [0, 1, 0]);
    });
    host.audit();
    end(td);
}

#[test]
fn a_silent_cpu_leaves_pages_blocked_and_the_next_removal_continues() {
    struct Silent;
    impl Kick for Silent {
        fn kick(&self) -> Result<(), NoAnswer> {
            Err(NoAnswer { cpu: 7 })
        }
    }
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| {
        td.map.populate(cpu, 0..2 * PAGE_2M + 4 * PAGE_4K).unwrap();
        let before = td.map.holding();
        let result = td.map.remove(cpu, 0..PAGE_1G, &Silent);
        assert_eq!(result, Err(Error::NoAnswer(NoAnswer { cpu: 7 })));
        assert_eq!(td.map.holding(), before);
        assert_eq!(td.accept(0, PageSize::Size2M), None, "it is blocked");
        // One of them is unblocked, the others are removed.
        td.map.unblock(cpu, Gpa(0), &NoneRuns).unwrap();
        assert_eq!(td.accept(0, PageSize::Size2M), Some(Status::SUCCESS));
        let blocked = host.calls(Leaf::MemRangeBlock);
        let taken = removed(td.map.remove(cpu, PAGE_2M..PAGE_1G, &NoneRuns));
        assert_eq!(taken.pages, [4, 1, 0]);
        // Only the page table still had to be blocked.
        assert_eq!(host.calls(Leaf::MemRangeBlock) - blocked, 1);
    });
    host.audit();
    end(td);
}

#[test]
fn every_call_of_a_removal_may_be_busy_once_or_for_long_and_nothing_is_lost() {
    for leaf in [
        Leaf::MemRangeBlock,
        Leaf::MemTrack,
        Leaf::MemPageRemove,
        Leaf::MemSeptRemove,
        Leaf::PhymemPageWbinvd,
        Leaf::MemPageDemote,
        Leaf::MemRangeUnblock,
    ] {
        for call in [1, 2, 3, 5] {
            for busy in [1, 128, 200] {
                let last = call + busy - 1;
                let hooks = format!("patterns\nbusy {} calls {call}-{last}", leaf.name());
                let host = Host::new(&hooks);
                let td = Td::runnable(&host, 33, 1);
                host.with(0, |cpu| {
                    td.map.populate(cpu, 0..3 * PAGE_2M + 4 * PAGE_4K).unwrap();
                    let range = 0..2 * PAGE_2M + PAGE_4K;
                    let mut tries = 0;
                    while let Err(error) = td.map.remove(cpu, range.clone(), &NoneRuns) {
                        let Error::Seam(error) = error else {
                            panic!("{error:?}");
                        };
                        assert!(error.is(Status::OPERAND_BUSY), "{error}");
                        host.server
                            .audit(crate::kit::BASE..crate::kit::BASE + PAGE_1G)
                            .unwrap();
                        tries += 1;
                        assert!(tries < 8, "{leaf:?} {call} {busy}");
                    }
                    if busy == 1 {
                        assert_eq!(tries, 0);
                    }
                });
                assert_eq!(td.map.holding().pages, [511 + 4, 0, 0]);
                host.audit();
                assert_eq!(td.map.mode(), Mode::Keyed);
                // A leaf that is still busy fails once more here.
                host.with(0, |cpu| {
                    while td.map.remove(cpu, 0..PAGE_1G, &NoneRuns).is_err() {}
                });
                end(td);
            }
        }
    }
}

#[test]
fn removed_memory_is_cleared_left_or_kept_as_configured() {
    for clearing in [Clearing::Clear, Clearing::Leave, Clearing::Keep] {
        // No patterns: the module would report an uncleared frame given to a TD as a violation.
        let host = Host::new("");
        let td = Td::with_clearing(&host, 33, 1, clearing);
        td.map.finalize(&host.on(0)).unwrap();
        host.with(0, |cpu| {
            td.map
                .populate(cpu, PAGE_2M - 8 * PAGE_4K..2 * PAGE_2M)
                .unwrap();
            let free = host.out().0;
            let taken = removed(td.map.remove(cpu, 0..PAGE_1G, &NoneRuns));
            assert_eq!(taken.pages, [8, 1, 0]);
            // The tables were treated the same way.
            let kept = (8 + taken.sept) * PAGE_4K + PAGE_2M;
            let expected = if clearing == Clearing::Keep { kept } else { 0 };
            assert_eq!(host.pool.kept_bytes(), expected, "{clearing:?}");
            let gone = free - host.out().0;
            assert_eq!(gone, (kept - expected) / PAGE_4K, "{clearing:?}");
            // Another TD may get it uncleared.
            td.map.map(cpu, Gpa(0), PageSize::Size2M).unwrap();
            assert_eq!(td.map.holding().pages, [0, 1, 0]);
        });
        td.release();
        reclaim(td, Clearing::Clear);
        while host.pool.clear_kept() {}
        host.assert_spotless();
    }
}

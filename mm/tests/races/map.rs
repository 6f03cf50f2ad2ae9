//! The map's lock and modes against everything that maps, changes and removes.

use core::ops::ControlFlow;

use mm::private::{Error, Mode, NoneRuns, Outcome};
use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K, PageSize};
use seam::address::Gpa;
use shuttle::thread;

use crate::explore::{explore, on};
use crate::kit::{Host, SOURCE, Td};

fn patiently(_: u32) -> ControlFlow<()> {
    thread::yield_now();
    ControlFlow::Continue(())
}

/// Returns whether a race may cause this result of a mapping.
fn is_fair(result: &Result<(), Error>) -> bool {
    matches!(result, Ok(()) | Err(Error::Terminated | Error::Busy))
}

#[test]
fn closing_the_map_against_mapping_leaves_what_was_mapped_and_no_more() {
    explore(|| {
        let host = &Host::new("patterns");
        let td = &Td::runnable(host, 33, 1);
        let (mapped, at_the_end) = thread::scope(|scope| {
            let mapping = scope.spawn(|| {
                on(host, 0, |cpu| {
                    let mut mapped = [0; 3];
                    for (gpa, size) in [
                        (0, PageSize::Size4K),
                        (PAGE_2M, PageSize::Size2M),
                        (PAGE_1G, PageSize::Size4K),
                    ] {
                        let result = td.map.map(cpu, Gpa(gpa), size);
                        assert!(is_fair(&result), "{result:?}");
                        mapped[size as usize] += u64::from(result.is_ok());
                    }
                    mapped
                })
            });
            let closing = scope.spawn(|| {
                td.map.close(patiently).unwrap();
                on(host, 1, |cpu| {
                    let gpa = Gpa(2 * PAGE_1G);
                    let late = td.map.map(cpu, gpa, PageSize::Size4K);
                    assert_eq!(late, Err(Error::Terminated));
                    cpu.tdh.vp_flush(&td.tdvpr).unwrap();
                    td.map.flush_done(cpu.tdh).unwrap();
                });
                td.map.holding()
            });
            (mapping.join().unwrap(), closing.join().unwrap())
        });
        assert_eq!(at_the_end.pages, mapped);
        assert_eq!(td.map.holding(), at_the_end, "nothing came after that");
        assert_eq!(td.map.mode(), Mode::Releasing);
        host.audit();
    });
}

#[test]
fn closing_the_map_against_removal_loses_nothing() {
    explore(|| {
        let host = &Host::new("patterns");
        let td = &Td::runnable(host, 33, 1);
        on(host, 0, |cpu| td.map.populate(cpu, 0..3 * PAGE_2M).unwrap());
        let outcome = thread::scope(|scope| {
            let removing = scope.spawn(|| {
                on(host, 0, |cpu| {
                    // Busy while the other thread tries to close the map and has not done so yet.
                    loop {
                        let range = PAGE_2M..2 * PAGE_2M + PAGE_4K;
                        match td.map.remove(cpu, range, &NoneRuns) {
                            Ok(outcome) => break outcome,
                            Err(error) => assert_eq!(error, Error::Busy),
                        }
                        thread::yield_now();
                    }
                })
            });
            scope.spawn(|| {
                td.map.close(patiently).unwrap();
                thread::yield_now();
                // The TD survives after all.
                td.map.reopen().unwrap();
            });
            removing.join().unwrap()
        });
        on(host, 0, |cpu| {
            td.map.run_queued(cpu, &NoneRuns, &|| true).unwrap()
        });
        let is_done = matches!(outcome, Outcome::Removed(_) | Outcome::Queued);
        assert!(is_done, "{outcome:?}");
        assert_eq!(td.map.holding().pages, [511, 1, 0], "{outcome:?}");
        host.audit();
    });
}

#[test]
fn two_cpus_close_the_map_once_and_the_image_grows_only_before_it_is_finalised() {
    explore(|| {
        let host = &Host::new("patterns");
        let td = &Td::new(host, 33, 1);
        let added = thread::scope(|scope| {
            scope.spawn(|| {
                let finalized = on(host, 0, |cpu| td.map.finalize(cpu.tdh));
                assert!(is_fair(&finalized), "{finalized:?}");
            });
            for _ in 0..2 {
                scope.spawn(|| td.map.close(patiently).unwrap());
            }
            let building =
                scope.spawn(|| on(host, 1, |cpu| td.map.add(cpu, Gpa(0), SOURCE, false)));
            building.join().unwrap()
        });
        let is_fair = is_fair(&added) || added == Err(Error::Finalized);
        assert!(is_fair, "{added:?}");
        assert_eq!(td.map.holding().pages, [u64::from(added.is_ok()), 0, 0]);
        assert_eq!(td.map.mode(), Mode::Releasing);
        host.audit();
    });
}

#[test]
fn two_cpus_that_map_change_and_remove_the_same_memory_lose_no_page() {
    explore(|| {
        let host = &Host::new("patterns");
        let td = &Td::runnable(host, 33, 1);
        on(host, 0, |cpu| td.map.populate(cpu, 0..2 * PAGE_2M).unwrap());
        let fair = |result: Result<(), Error>| {
            let is_fair = matches!(
                result,
                Ok(()) | Err(Error::Busy | Error::Occupied | Error::NotMapped | Error::Blocked)
            );
            assert!(is_fair, "{result:?}");
        };
        let map = &td.map;
        thread::scope(|scope| {
            scope.spawn(|| {
                on(host, 0, |cpu| {
                    let range = PAGE_2M - PAGE_4K..2 * PAGE_2M;
                    fair(map.remove(cpu, range, &NoneRuns).map(drop));
                    fair(map.map(cpu, Gpa(PAGE_2M - PAGE_4K), PageSize::Size4K));
                    fair(map.map(cpu, Gpa(2 * PAGE_2M), PageSize::Size4K));
                });
            });
            scope.spawn(|| {
                on(host, 1, |cpu| {
                    fair(map.demote(cpu, Gpa(0), PageSize::Size2M, &NoneRuns));
                    fair(map.map(cpu, Gpa(PAGE_2M), PageSize::Size2M));
                    let range = PAGE_2M..4 * PAGE_2M;
                    fair(map.remove(cpu, range, &NoneRuns).map(drop));
                });
            });
        });
        host.audit();
        // Nothing is stuck: everything can be removed.
        let taken = on(host, 0, |cpu| map.remove(cpu, 0..PAGE_1G, &NoneRuns));
        assert!(matches!(taken, Ok(Outcome::Removed(_))), "{taken:?}");
        assert_eq!(map.holding().pages, [0; 3]);
        host.audit();
    });
}

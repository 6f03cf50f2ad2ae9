//! Bulk reclaim by CPUs that join and leave.

use mm::private::{Clearing, NoneRuns, Outcome, PrivateMap, Reclaim, ReclaimOptions, Step};
use seam::abi::{PAGE_2M, PAGE_4K};
use shuttle::thread;

use crate::explore::{NoTime, explore, on};
use crate::kit::{GLOBAL_HKID, Host, Td};

/// Begins the reclaim of a TD with a page table and three large pages: two units for each of them, and more for the
/// rest.
fn begin(host: &Host) -> Reclaim<PrivateMap> {
    let td = Td::runnable(host, 33, 1);
    host.with(0, |cpu| {
        let range = PAGE_2M - 12 * PAGE_4K..4 * PAGE_2M;
        td.map.populate(cpu, range).unwrap();
    });
    td.release();
    let (map, control) = td.into_parts();
    let plan = ReclaimOptions {
        cpus: 3,
        clearing: Clearing::Clear,
        global_hkid: GLOBAL_HKID,
    };
    let reclaim = Reclaim::new(map, control, plan, &NoTime).map_err(|(error, ..)| error);
    reclaim.unwrap()
}

/// Works until everything is done, or for `steps` steps.
fn work(host: &Host, reclaim: &Reclaim<PrivateMap>, lane: u32, mut steps: u32) {
    on(host, lane, |cpu| {
        while steps > 0 {
            match reclaim.work(cpu, lane, &NoTime) {
                Step::Done => break,
                Step::More => {}
                Step::Idle => thread::yield_now(),
                Step::Stuck => panic!("{:?}", reclaim.last_refusal()),
            }
            steps -= 1;
        }
    });
}

#[test]
fn every_page_comes_back_once_whoever_works_when() {
    explore(|| {
        let host = &Host::new("patterns");
        let reclaim = &begin(host);
        thread::scope(|scope| {
            // One of them leaves in the middle of its unit.
            for (lane, steps) in [(0, u32::MAX), (1, u32::MAX), (2, 2)] {
                scope.spawn(move || work(host, reclaim, lane, steps));
            }
        });
        let progress = reclaim.progress(&NoTime);
        assert!(progress.is_done);
        assert_eq!(progress.reclaimed.pages, [12, 3, 0]);
        assert_eq!(host.out(), (0, 0));
        host.audit();
    });
}

#[test]
fn a_map_or_a_retry_during_a_reclaim_changes_nothing() {
    explore(|| {
        let host = &Host::new("patterns");
        let reclaim = &begin(host);
        thread::scope(|scope| {
            scope.spawn(move || work(host, reclaim, 0, u32::MAX));
            scope.spawn(move || {
                on(host, 1, |cpu| {
                    for _ in 0..4 {
                        let left = reclaim.map().remove(cpu, 0..4 * PAGE_2M, &NoneRuns);
                        assert_eq!(left, Ok(Outcome::LeftToReclaim));
                        assert!(!reclaim.retry());
                        let progress = reclaim.progress(&NoTime);
                        assert!(progress.reclaimed.bytes() <= progress.total);
                        thread::yield_now();
                    }
                });
            });
        });
        assert!(reclaim.progress(&NoTime).is_done);
        assert_eq!(host.out(), (0, 0));
        host.audit();
    });
}

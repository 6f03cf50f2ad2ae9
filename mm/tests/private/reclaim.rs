//! Tests of bulk reclaim.

use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Instant;

use mm::private::{
    Clearing, Clock, Error, Holding, NoneRuns, PrivateMap, Reclaim, ReclaimOptions, Reclaimed, Step,
};
use seam::abi::{Leaf, PAGE_1G, PAGE_2M, PAGE_4K, PageSize, Status};
use seam::address::Gpa;

use crate::kit::{BASE, GLOBAL_HKID, Host, Td};
use crate::resize::map_gib;

/// The host's clock.
pub struct Now(Instant);

impl Now {
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for Now {
    fn ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

pub fn plan(cpus: u32, clearing: Clearing) -> ReclaimOptions {
    ReclaimOptions {
        cpus,
        clearing,
        global_hkid: GLOBAL_HKID,
    }
}

/// Reclaims all of a TD without a key, on one CPU.
pub fn reclaim(td: Td<'_>, clearing: Clearing) -> Reclaimed {
    let clock = Now::new();
    let host = td.host;
    let (map, control) = td.into_parts();
    let reclaim = Reclaim::new(map, control, plan(1, clearing), &clock).unwrap();
    let step = host.with(0, |cpu| work_until(&reclaim, cpu, &clock));
    assert_eq!(step, Step::Done);
    let progress = reclaim.progress(&clock);
    assert!(progress.is_done && progress.quarantined == 0);
    progress.reclaimed
}

/// Works until nothing is left to do.
pub fn work_until<M: std::borrow::Borrow<PrivateMap>>(
    reclaim: &Reclaim<M>,
    cpu: crate::kit::OnCpu<'_, '_>,
    clock: &Now,
) -> Step {
    loop {
        match reclaim.work(cpu, 0, clock) {
            Step::More => {}
            step => return step,
        }
    }
}

fn calls(host: &Host) -> u64 {
    Leaf::ALL.iter().map(|leaf| host.calls(*leaf)).sum()
}

#[test]
fn small_pages_cost_one_call_each_and_large_ones_one_for_512() {
    for (size, most) in [(PageSize::Size4K, 1.02), (PageSize::Size2M, 0.005)] {
        let host = Host::new("patterns");
        let td = Td::runnable(&host, 33, 1);
        // As many 4 KiB pages as a debug build maps quickly. The S-EPT and the control pages count in both cases.
        let bytes = match size {
            PageSize::Size4K => 32 * PAGE_2M,
            _ => 500 * PAGE_2M,
        };
        host.with(0, |cpu| {
            for at in (0..bytes).step_by(size.bytes() as usize) {
                td.map.map(cpu, Gpa(at), size).unwrap();
            }
        });
        td.release();
        let before = calls(&host);
        let reclaimed = reclaim(td, Clearing::Clear);
        let calls = calls(&host) - before;
        assert_eq!(reclaimed.pages[size as usize], bytes / size.bytes());
        assert_eq!(reclaimed.bytes(), bytes);
        assert_eq!(reclaimed.calls(), calls);
        assert!(reclaimed.cleared > bytes);
        let per_page = calls as f64 / (bytes / PAGE_4K) as f64;
        assert!(per_page <= most, "{size:?}: {per_page}");
        host.assert_spotless();
    }
}

/// Creates a TD without a key, with pages of both sizes in two GiBs and holes between them.
fn mixed(host: &Host) -> Td<'_> {
    let td = Td::runnable(host, 33, 1);
    host.with(0, |cpu| {
        td.map.populate(cpu, PAGE_4K..3 * PAGE_2M).unwrap();
        td.map
            .populate(cpu, PAGE_1G - PAGE_2M..PAGE_1G + 5 * PAGE_2M)
            .unwrap();
        td.map
            .map(cpu, Gpa(3 * PAGE_1G - PAGE_4K), PageSize::Size4K)
            .unwrap();
    });
    td.release();
    td
}

const MIXED: [u64; 3] = [511 + 1, 2 + 6, 0];

#[test]
fn between_two_yield_points_at_most_8_calls_are_made_and_2_mib_cleared() {
    for clearing in [Clearing::Clear, Clearing::Leave, Clearing::Keep] {
        let host = Host::sized("", 2 * PAGE_1G);
        let td = Td::runnable(&host, 33, 1);
        map_gib(&td);
        host.with(0, |cpu| {
            td.map
                .populate(cpu, 2 * PAGE_1G..2 * PAGE_1G + 20 * PAGE_2M + 20 * PAGE_4K)
                .unwrap();
        });
        td.release();
        let clock = Now::new();
        let (map, control) = td.into_parts();
        let reclaim = Reclaim::new(map, control, plan(2, clearing), &clock).unwrap();
        let mut before = Reclaimed::default();
        loop {
            let step = host.with(0, |cpu| reclaim.work(cpu, 0, &clock));
            let now = reclaim.progress(&clock).reclaimed;
            assert!(now.calls() - before.calls() <= 8);
            assert!(now.cleared - before.cleared <= PAGE_2M);
            before = now;
            if step == Step::Done {
                break;
            }
        }
        assert_eq!(before.pages, [20, 20, 1]);
        match clearing {
            Clearing::Clear => assert!(before.cleared > before.bytes()),
            // Only the TDR, which no TD gets.
            Clearing::Leave | Clearing::Keep => assert_eq!(before.cleared, PAGE_4K),
        }
        while host.pool.clear_kept() {}
        host.assert_spotless();
    }
}

#[test]
fn the_largest_pages_come_first_and_a_region_can_be_used_when_it_is_done() {
    let host = Host::sized("patterns", 2 * PAGE_1G);
    let td = Td::runnable(&host, 33, 1);
    map_gib(&td);
    host.with(0, |cpu| {
        td.map
            .populate(cpu, PAGE_1G..PAGE_1G + 3 * PAGE_2M + 7 * PAGE_4K)
            .unwrap();
    });
    td.release();
    let clock = Now::new();
    let (map, control) = td.into_parts();
    let reclaim = Reclaim::new(map, control, plan(1, Clearing::Clear), &clock).unwrap();
    let mut order = Vec::new();
    let mut first_free = None;
    loop {
        let step = host.with(0, |cpu| reclaim.work(cpu, 0, &clock));
        let [small, large, whole] = reclaim.progress(&clock).reclaimed.pages;
        for (size, count) in [(1, small), (2, large), (3, whole)] {
            if count > 0 && !order.contains(&size) {
                order.push(size);
            }
        }
        if host.ledger()[18].free > 0 && first_free.is_none() {
            first_free = Some((small, large));
        }
        if step == Step::Done {
            break;
        }
    }
    assert_eq!(order, [3, 2, 1]);
    let (small, _) = first_free.expect("the GiB is one free frame again");
    assert_eq!(small, 0, "while most of the TD is still there");
    host.assert_spotless();
}

#[test]
fn another_cpu_finishes_an_abandoned_job() {
    for steps in [1, 2, 5, 20] {
        let host = Host::sized("patterns", 2 * PAGE_1G);
        let (map, control) = mixed(&host).into_parts();
        let clock = Now::new();
        let reclaim = Reclaim::new(map, control, plan(3, Clearing::Clear), &clock).unwrap();
        for lane in [1, 2] {
            host.with(lane, |cpu| {
                for _ in 0..steps {
                    assert_eq!(reclaim.work(cpu, lane, &clock), Step::More);
                }
            });
        }
        let step = host.with(0, |cpu| work_until(&reclaim, cpu, &clock));
        assert_eq!(step, Step::Done);
        let progress = reclaim.progress(&clock);
        assert_eq!(progress.reclaimed.pages, MIXED);
        assert_eq!(progress.total, progress.reclaimed.bytes());
        assert_eq!(progress.left_ns(), Some(0));
        host.assert_spotless();
    }
}

#[test]
fn four_cpus_reclaim_every_page_once_while_another_td_is_built() {
    let host = Host::sized("patterns", 2 * PAGE_1G);
    let (map, control) = mixed(&host).into_parts();
    let clock = Now::new();
    let reclaim = Reclaim::new(map, control, plan(4, Clearing::Clear), &clock).unwrap();
    let next = Td::runnable(&host, 34, 1);
    thread::scope(|scope| {
        for lp in 0..4 {
            let (reclaim, host, clock) = (&reclaim, &host, &clock);
            scope.spawn(move || {
                loop {
                    match host.with(lp, |cpu| reclaim.work(cpu, lp, clock)) {
                        Step::Done => break,
                        Step::Idle => thread::yield_now(),
                        Step::More => {}
                        Step::Stuck => panic!("{:?}", reclaim.last_refusal()),
                    }
                }
            });
        }
        host.with(3, |cpu| next.map.populate(cpu, 0..40 * PAGE_2M).unwrap());
    });
    assert_eq!(reclaim.progress(&clock).reclaimed.pages, MIXED);
    drop(reclaim);
    host.audit();
    next.release();
    assert_eq!(super::reclaim::reclaim(next, Clearing::Clear).pages[1], 40);
    host.assert_spotless();
}

#[test]
fn a_busy_page_is_requested_again() {
    let leafs = [Leaf::PhymemPageReclaim, Leaf::PhymemPageWbinvd];
    for (leaf, busy) in leafs
        .into_iter()
        .flat_map(|leaf| [(leaf, 1), (leaf, 127), (leaf, 128), (leaf, 300)])
    {
        for call in [1, 3, 300, 529] {
            // Only one page is written back.
            if leaf == Leaf::PhymemPageWbinvd && call > 1 {
                continue;
            }
            let last = call + busy - 1;
            let host = Host::sized(
                &format!("patterns\nbusy {} calls {call}-{last}", leaf.name()),
                2 * PAGE_1G,
            );
            let reclaimed = reclaim(mixed(&host), Clearing::Clear);
            assert_eq!(reclaimed.pages, MIXED, "{leaf:?} {call} {busy}");
            assert_eq!(
                reclaimed.calls(),
                host.calls(Leaf::PhymemPageReclaim) + host.calls(Leaf::PhymemPageWbinvd)
            );
            host.assert_spotless();
        }
    }
}

#[test]
fn pages_that_stay_busy_remain_the_tds_until_a_retry() {
    for leaf in [Leaf::PhymemPageReclaim, Leaf::PhymemPageWbinvd] {
        let host = Host::sized("patterns", 2 * PAGE_1G);
        let (map, control) = mixed(&host).into_parts();
        let clock = Now::new();
        let reclaim = Reclaim::new(map, control, plan(1, Clearing::Clear), &clock).unwrap();
        let calls = AtomicU64::new(0);
        let busy = (leaf, Status::OPERAND_BUSY);
        let step = host.strangely(busy, 1..u64::MAX, &calls, |cpu| {
            loop {
                match reclaim.work(cpu, 0, &clock) {
                    Step::More => {}
                    step => break step,
                }
            }
        });
        assert_eq!(step, Step::Stuck);
        let progress = reclaim.progress(&clock);
        assert!(progress.is_stuck && !progress.is_done);
        assert_eq!(progress.quarantined, 0);
        let why = reclaim.last_refusal().unwrap();
        assert!(
            matches!(why.why, Error::Seam(error) if error.is(Status::OPERAND_BUSY)),
            "{why}"
        );
        if leaf == Leaf::PhymemPageReclaim {
            assert_eq!(reclaim.map().holding().pages, MIXED);
            host.audit();
        }
        // Every page was tried, and none endlessly.
        let asked = calls.load(std::sync::atomic::Ordering::SeqCst);
        assert!(asked < 3 * 600 + 3 * 20 * 128, "{asked}");
        assert!(reclaim.retry());
        let step = host.with(0, |cpu| work_until(&reclaim, cpu, &clock));
        assert_eq!(step, Step::Done);
        assert!(!reclaim.retry());
        host.assert_spotless();
    }
}

#[test]
fn a_call_that_is_interrupted_many_times_goes_on() {
    let host = Host::sized("patterns", 2 * PAGE_1G);
    let (map, control) = mixed(&host).into_parts();
    let clock = Now::new();
    let reclaim = Reclaim::new(map, control, plan(1, Clearing::Clear), &clock).unwrap();
    let calls = AtomicU64::new(0);
    let interrupted = (Leaf::PhymemPageReclaim, Status::INTERRUPTED_RESTARTABLE);
    host.strangely(interrupted, 2..5000, &calls, |cpu| {
        while reclaim.work(cpu, 0, &clock) != Step::Done {}
    });
    host.assert_spotless();
}

#[test]
fn a_page_that_the_module_keeps_is_quarantined_with_the_reason_and_so_is_the_tdr() {
    // A large page, a page table, a small page, a directory, a control page.
    for call in [1, 9, 10, 523, 530] {
        let host = Host::sized("patterns", 2 * PAGE_1G);
        let (map, control) = mixed(&host).into_parts();
        let total = 512 + 8 + map.holding().sept + control.len() as u64;
        let clock = Now::new();
        let reclaim = Reclaim::new(map, control, plan(1, Clearing::Clear), &clock).unwrap();
        let calls = AtomicU64::new(0);
        let strange = (Leaf::PhymemPageReclaim, Status::PAGE_METADATA_INCORRECT);
        host.strangely(strange, call..call + 1, &calls, |cpu| {
            while reclaim.work(cpu, 0, &clock) != Step::Done {}
        });
        let refused = reclaim.quarantined();
        assert_eq!(refused.len(), 2);
        assert!(
            matches!(refused[0].why, Error::Seam(error) if error.is(Status::PAGE_METADATA_INCORRECT))
        );
        assert_eq!(refused[1].why, Error::NotEmpty);
        let progress = reclaim.progress(&clock);
        assert_eq!(progress.quarantined, refused[0].size.pages() + 1);
        let counts = progress.reclaimed;
        let back = counts.pages.iter().sum::<u64>() + counts.sept + counts.control;
        assert_eq!(back, total - 1);
        assert_eq!(reclaim.map().holding(), Holding::default());
        drop(reclaim);
        // The module's pages are in quarantine, and nothing else is allocated.
        assert_eq!(host.out(), (0, progress.quarantined));
        let owned = host.server.audit(BASE..BASE + host.size).unwrap();
        assert!(owned.contains_key(&refused[0].hpa.0) && owned.contains_key(&refused[1].hpa.0));
        assert_eq!(owned.len(), 2);
    }
}

#[test]
fn stranded_pages_are_reclaimed_with_the_rest() {
    let host = Host::sized("patterns", 2 * PAGE_1G);
    let td = Td::runnable(&host, 33, 1);
    let calls = AtomicU64::new(0);
    host.with(0, |cpu| td.map.populate(cpu, 0..4 * PAGE_2M).unwrap());
    let busy = (Leaf::PhymemPageWbinvd, Status::OPERAND_BUSY);
    let removed = host.strangely(busy, 1..u64::MAX, &calls, |cpu| {
        td.map.remove(cpu, PAGE_2M..2 * PAGE_2M, &NoneRuns)
    });
    assert!(removed.is_err());
    assert_eq!(td.map.holding().stranded, 1);
    td.release();
    assert_eq!(reclaim(td, Clearing::Clear).pages, [0, 3, 0]);
    host.assert_spotless();
}

#[test]
fn nothing_is_reclaimed_from_a_td_that_has_its_key() {
    let host = Host::new("");
    let td = Td::runnable(&host, 33, 1);
    let clock = Now::new();
    let refused = Reclaim::new(&td.map, Vec::new(), plan(1, Clearing::Clear), &clock);
    let Err((error, _, _)) = refused else {
        panic!("it has its key");
    };
    assert_eq!(error, Error::NotKeyless);
    crate::build::end(td);
}

#[test]
fn kept_frames_go_only_to_tds() {
    // No patterns: the module would report an uncleared frame of another TD as a violation.
    let host = Host::new("");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| {
        for page in 0..2048 {
            td.map
                .map(cpu, Gpa(page * PAGE_4K), PageSize::Size4K)
                .unwrap();
        }
        td.map.populate(cpu, PAGE_2M * 4..PAGE_2M * 32).unwrap();
    });
    td.release();
    let reclaimed = reclaim(td, Clearing::Keep);
    assert_eq!(reclaimed.cleared, PAGE_4K, "the TDR");
    let kept = host.pool.kept_bytes();
    assert!(kept >= 32 * PAGE_2M, "{kept}");
    host.audit();
    let next = Td::runnable(&host, 34, 1);
    host.with(0, |cpu| {
        // The small pages were adjacent, and are large frames now, except at the edges.
        let given = next.map.populate(cpu, 0..31 * PAGE_2M).unwrap();
        assert_eq!(given.pages, [0, 31, 0]);
    });
    assert!(kept - host.pool.kept_bytes() >= 31 * PAGE_2M);
    next.release();
    assert_eq!(
        super::reclaim::reclaim(next, Clearing::Clear).pages,
        [0, 31, 0]
    );
    while host.pool.clear_kept() {}
    host.assert_spotless();
}

//! CPUs that work on one TD at the same time: the module's locks really collide, and the retry policy resolves that.

#![expect(
    clippy::disallowed_methods,
    reason = "the test plays the allocator and the pool"
)]

mod rig;

use core::ops::ControlFlow;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use rig::{Cpu, Dead, GLOBAL_HKID, LEADERS, Rig, Td, persist, persist_in};
use seam::abi::{Leaf, PAGE_2M, PAGE_4K, PageSize, PageType};
use seam::address::{Gpa, Level};
use seam::counters::{Counters, LeafCounts};
use seam::hkid::Hkid;
use seam::page::{Donated, Page};
use seam::retry::{Pause, Reason, Wait};
use seam::tdh::resume::{CacheWbRound, Step};
use seam::tdh::{KeyConfig, Keyed, Keyless, Tdh, Tdr};
use stub_module::Point;
use stub_module::host::Held;

const CPUS: u64 = 4;
/// The capacity of one page table; each CPU has its own.
const PAGES_PER_CPU: u64 = 512;

/// Sleeps through the pauses, because time passes in these tests.
struct Asleep;

impl Wait for Asleep {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        thread::sleep(Duration::from_micros(pause.us.into()));
        ControlFlow::Continue(())
    }
}

/// Runs `work` on every CPU at once, each with its own counters. Returns the results and the counters.
fn on_all<T: Send>(
    rig: &Rig,
    work: impl Fn(u64, Tdh<'_, Cpu<'_>, Asleep>) -> T + Sync,
) -> (Vec<T>, [Counters; CPUS as usize]) {
    let counters: [Counters; CPUS as usize] = Default::default();
    let start = Barrier::new(CPUS as usize);
    let done = thread::scope(|scope| {
        let (work, start) = (&work, &start);
        let threads: Vec<_> = (0..CPUS)
            .zip(&counters)
            .map(|(cpu, counters)| {
                scope.spawn(move || {
                    start.wait();
                    work(cpu, Tdh::new(rig.cpu(cpu as u32), Asleep, counters))
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    (done, counters)
}

/// Frees the TD's HKID: VPFLUSHDONE to KEY.FREEID.
fn give_key_back(rig: &Rig, tdr: Tdr<Keyed>) -> Tdr<Keyless> {
    let tdr = rig.on(0).mng_vpflushdone(tdr).unwrap();
    for lp in LEADERS {
        let mut round = CacheWbRound::new();
        while round.step(&rig.on(lp)) == Ok(Step::More) {}
    }
    let (tdr, hkid) = rig.on(0).mng_key_freeid(tdr).unwrap();
    hkid.surrender();
    tdr
}

fn sum(counters: &[Counters], leaf: Leaf) -> LeafCounts {
    counters.iter().map(|counters| counters.leaf(leaf)).sum()
}

fn illegal(counters: &[Counters]) -> u64 {
    counters
        .iter()
        .map(|counters| counters.total().illegal)
        .sum()
}

/// Returns the start of a CPU's share of the TD's memory.
fn first_gpa(cpu: u64) -> u64 {
    (2 + cpu) * PAGE_2M
}

/// Maps a CPU's share of 4 KiB pages, removes every other one, and returns the rest.
fn come_and_go(
    rig: &Rig,
    tdh: &Tdh<'_, Cpu<'_>, Asleep>,
    tdr: &Tdr<Keyed>,
    cpu: u64,
) -> Vec<Page<Donated>> {
    let mut kept = Vec::new();
    for index in 0..PAGES_PER_CPU {
        let gpa = Gpa(first_gpa(cpu) + index * PAGE_4K);
        let page = rig.frames.take(PageSize::Size4K);
        let page = persist(page, |page| tdh.mem_page_aug(tdr, gpa, page));
        if index % 2 == 0 {
            kept.push(page);
            continue;
        }
        persist_in(|| tdh.mem_range_block(tdr, gpa, Level::Pt));
        persist_in(|| tdh.mem_track(tdr));
        let page = persist(page, |page| tdh.mem_page_remove(tdr, gpa, page));
        let page = persist(page, |page| tdh.phymem_page_wbinvd(page, rig.position));
        rig.frames.give(page.clear(rig));
    }
    kept
}

#[test]
fn pages_come_and_go_on_all_cpus_at_once_and_none_is_refused_or_lost() {
    let rig = Rig::ready("patterns");
    let mut td = Td::build(&rig, Hkid::mint(33));
    for cpu in 0..CPUS {
        td.add_sept(first_gpa(cpu), Level::Pd);
    }
    let tdr = &td.tdr;
    let (kept, counters) = on_all(&rig, |cpu, tdh| come_and_go(&rig, &tdh, tdr, cpu));
    assert_eq!(illegal(&counters), 0);
    let removed = sum(&counters, Leaf::MemPageRemove);
    let pages = CPUS * PAGES_PER_CPU;
    assert_eq!(removed.calls - removed.busy, pages / 2);
    td.pages.extend(kept.into_iter().flatten());
    let shown = td.pages.iter().filter(|page| {
        let metadata = rig.on(0).phymem_page_rdmd(page.hpa()).unwrap();
        metadata.page_type == Some(PageType::Reg)
    });
    // Plus the two pages that the TD was built with.
    assert_eq!(shown.count() as u64, pages / 2 + 2);
    td.terminate().surrender();
    rig.assert_spotless();
}

#[test]
fn a_dead_tds_pages_are_reclaimed_by_all_cpus_at_once() {
    let rig = Rig::ready("patterns");
    let mut td = Td::build(&rig, Hkid::mint(33));
    td.add_sept(first_gpa(0), Level::Pd);
    for index in 0..PAGES_PER_CPU {
        let page = td.aug(first_gpa(0) + index * PAGE_4K, PageSize::Size4K);
        td.pages.push(page);
    }
    let (dead, hkid) = td.release();
    hkid.surrender();
    let Dead { tdr, pages, .. } = dead;

    let total = pages.len() as u64;
    let left = Mutex::new(pages);
    let next = || left.lock().unwrap().pop();
    let (_, counters) = on_all(&rig, |_, tdh| {
        while let Some(page) = next() {
            let page = persist(page, |page| tdh.phymem_page_reclaim(&tdr, page));
            rig.frames.give(page.clear(&rig));
        }
    });
    let reclaimed = sum(&counters, Leaf::PhymemPageReclaim);
    assert_eq!(reclaimed.calls - reclaimed.busy, total);
    assert_eq!(illegal(&counters), 0);
    rig.put_away(rig.on(0).phymem_page_reclaim_tdr(tdr, GLOBAL_HKID).unwrap());
    rig.assert_spotless();
}

/// Releases the other CPU at the third pause, and sleeps.
struct Release(Mutex<Option<Held>>);

impl Wait for Release {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        if pause.tries == 3 {
            self.0.lock().unwrap().take();
        }
        Asleep.wait(pause)
    }
}

#[test]
fn a_call_that_meets_another_cpus_waits_for_its_end() {
    let rig = Rig::ready("");
    let page = rig.frames.take_4k();
    let tdr = rig.on(0).mng_create(page, Hkid::mint(33)).unwrap();
    // CPU 2 configures the TD's key on its package and holds the TD meanwhile.
    let held = rig.machine.hold_at(2, Point::Pconfig, 1).unwrap();
    let counters: [Counters; 2] = Default::default();
    thread::scope(|scope| {
        let other = scope.spawn(|| Tdh::new(rig.cpu(2), Asleep, &counters[0]).mng_key_config(&tdr));
        assert!(held.wait());
        let release = Release(Mutex::new(Some(held)));
        let tdh = Tdh::new(rig.cpu(0), release, &counters[1]);
        assert_eq!(tdh.mng_key_config(&tdr), Ok(KeyConfig::Configured));
        assert_eq!(other.join().unwrap(), Ok(KeyConfig::Configured));
    });
    assert!(counters[1].retry(Reason::Busy).retries >= 3);
    assert_eq!(illegal(&counters), 0);
    let tdr = give_key_back(&rig, tdr);
    let root = rig.on(0).phymem_page_reclaim_tdr(tdr, GLOBAL_HKID);
    rig.put_away(root.unwrap());
    rig.assert_spotless();
}

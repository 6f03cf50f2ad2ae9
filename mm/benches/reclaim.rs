//! Speed of reclaiming a dead TD's 4 KiB pages, on one core and on two.
//!
//! `cargo bench -p mm` prints the figures, and fails if two cores are not 1.6 times as fast as one. On a busy machine
//! the threads wait for a processor, so the compared rates are per second of processor time: each thread's own rate,
//! summed, for as long as there is work for all.

#[path = "../tests/private/kit.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod kit;

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use kit::{GLOBAL_HKID, Host, Td};
use mm::private::{Clearing, Clock, Reclaim, ReclaimOptions, Step};
use seam::abi::{Leaf, PAGE_1G, PAGE_4K, PageSize};
use seam::address::Gpa;

const BYTES: u64 = PAGE_1G + PAGE_1G / 2;
const LEAST: f64 = 1.6;

struct Now(Instant);

impl Clock for Now {
    fn ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

fn main() -> ExitCode {
    let one = run(1);
    let two = run(2);
    let ratio = two / one;
    println!("two cores do {ratio:.2} times what one does");
    if ratio < LEAST {
        println!("that is less than {LEAST}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Reclaims a TD with `cpus` CPUs. Returns the calls per second.
fn run(cpus: u32) -> f64 {
    let host = Host::sized("", 2 * PAGE_1G);
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| {
        for gpa in (0..BYTES).step_by(PAGE_4K as usize) {
            let mapped = td.map.map(cpu, Gpa(gpa), PageSize::Size4K);
            assert!(mapped.is_ok(), "{mapped:?}");
        }
    });
    td.release();
    let (map, control) = td.into_parts();
    let plan = ReclaimOptions {
        cpus,
        clearing: Clearing::Clear,
        global_hkid: GLOBAL_HKID,
    };
    let clock = Now(Instant::now());
    let Ok(reclaim) = Reclaim::new(map, control, plan, &clock) else {
        panic!("the TD has no key");
    };
    let rate: f64 = thread::scope(|scope| {
        let workers: Vec<_> = (0..cpus)
            .map(|seat| {
                let (reclaim, host, clock) = (&reclaim, &host, &clock);
                scope.spawn(move || {
                    host.with(seat, |cpu| {
                        let calls = || cpu.tdh.counters().leaf(Leaf::PhymemPageReclaim).calls;
                        let (before, started) = (calls(), processor_time());
                        while reclaim.work(cpu, seat, clock) == Step::More {}
                        let rate =
                            (calls() - before) as f64 / (processor_time() - started).as_secs_f64();
                        while reclaim.work(cpu, seat, clock) != Step::Done {
                            thread::yield_now();
                        }
                        rate
                    })
                })
            })
            .collect();
        let rates = workers.into_iter().map(|worker| worker.join());
        rates.map(Result::unwrap_or_default).sum()
    });
    let progress = reclaim.progress(&clock);
    let pages = (BYTES / PAGE_4K) as f64;
    println!(
        "{cpus} core(s): {:.2} million pages a second of processor time, {:.2} by the clock; {:.3} SEAMCALLs a page",
        rate / 1e6,
        pages / progress.elapsed_ns as f64 * 1e3,
        progress.reclaimed.calls() as f64 / pages,
    );
    drop(reclaim);
    host.assert_spotless();
    rate
}

/// Returns the time that this thread has spent running, excluding waits for a processor.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().map(str::parse);
    Duration::from_nanos(nanoseconds.and_then(Result::ok).unwrap_or(0))
}

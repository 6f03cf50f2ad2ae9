//! Reclaim rate of a torn-down TD's 4 KiB pages, on one core and on two, and the memory cost of a tracked page.
//!
//! `cargo bench -p stub-module` prints the figures. They are not compared with a limit. On a busy computer the threads
//! wait, so the compared rates are per second of processor time.

#[path = "../tests/kit/mod.rs"]
mod kit;

use std::thread;
use std::time::{Duration, Instant};

use kit::{BASE, Builder, PAGE};
use seam::abi::{Leaf, Operand};
use stub_module::hooks::Hooks;
use stub_module::host::{Config, Processor};

const GIB: u64 = 1 << 30;
/// The TD's pages lie in two regions of 1 GiB; its control structures and its S-EPT in the first GiB of the TDMR.
const REGIONS: [u64; 2] = [BASE + GIB, BASE + 2 * GIB];
const TABLES: u64 = BASE + (64 << 20);
const PAGES_PER_REGION: u64 = GIB / PAGE;

fn main() {
    for patterns in [false, true] {
        let hooks = || Hooks {
            patterns,
            ..Hooks::default()
        };
        println!("patterns {}:", if patterns { "on" } else { "off" });
        let one = run(hooks(), false);
        let two = run(hooks(), true);
        println!("  two cores do {:.2} times what one does", two / one);
    }
}

/// Builds a TD of 2 GiB, tears it down and reclaims it. Returns the rate in pages per second.
fn run(hooks: Hooks, parallel: bool) -> f64 {
    let config = Config {
        cmrs: [(BASE, 4 * GIB)].into(),
        ..Config::default()
    };
    let built = Builder::sized(config, 3 * GIB, hooks);
    let cpus: Vec<_> = built.server.processors().collect();
    let td = built.td(33);
    built.initialize(&td);
    let tdr = td.tdr;
    add_s_ept(cpus[0], tdr, 3, TABLES);

    let memory = built.server.machine().memory();
    let before = memory.footprint();
    let started = Instant::now();
    for (number, region) in (0..).zip(REGIONS) {
        map(cpus[0], tdr, number, region);
    }
    let pages = PAGES_PER_REGION * REGIONS.len() as u64;
    let adding = rate(pages, started.elapsed());

    built.tear_down(&td);
    let started = Instant::now();
    let busy = if parallel {
        thread::scope(|scope| {
            let workers: Vec<_> = cpus
                .iter()
                .zip(REGIONS)
                .map(|(cpu, region)| scope.spawn(move || reclaim(*cpu, region)))
                .collect();
            workers
                .into_iter()
                .filter_map(|worker| worker.join().ok())
                .max()
                .unwrap_or_default()
        })
    } else {
        REGIONS.iter().map(|region| reclaim(cpus[0], *region)).sum()
    };
    let by_the_clock = rate(pages, started.elapsed());
    let reclaiming = rate(pages, busy);
    let per_page = (memory.footprint() - before) as f64 / pages as f64 - 16.0;
    println!(
        "  {} core(s): {adding:.2} million PAGE.AUG a second; {reclaiming:.2} million PAGE.RECLAIM a second, \
         {by_the_clock:.2} by the clock; {per_page:.1} bytes a page beyond its PAMT entry, S-EPT included",
        if parallel { 2 } else { 1 }
    );
    reclaiming
}

fn add_s_ept(cpu: Processor<'_>, tdr: u64, gpa_and_level: u64, page: u64) {
    let operands = [
        (Operand::RCX, gpa_and_level),
        (Operand::RDX, tdr),
        (Operand::R8, page),
    ];
    cpu.leaf(Leaf::MemSeptAdd, operands).unwrap();
}

/// Maps a region at the GiB of that number.
fn map(cpu: Processor<'_>, tdr: u64, number: u64, region: u64) {
    let tables = TABLES + 0x100_0000 * (number + 1);
    let gpa = number * GIB;
    // The entry of a GiB is at level 2, those of its 2 MiB pages at level 1.
    add_s_ept(cpu, tdr, gpa | 2, tables);
    for block in 0..512 {
        let gpa = gpa + block * 512 * PAGE;
        add_s_ept(cpu, tdr, gpa | 1, tables + (block + 1) * PAGE);
    }
    for page in 0..PAGES_PER_REGION {
        let operands = [
            (Operand::RCX, gpa + page * PAGE),
            (Operand::RDX, tdr),
            (Operand::R8, region + page * PAGE),
        ];
        cpu.leaf(Leaf::MemPageAug, operands).unwrap();
    }
}

/// Reclaims a region. Returns the processor time used.
fn reclaim(cpu: Processor<'_>, region: u64) -> Duration {
    let started = processor_time();
    for page in 0..PAGES_PER_REGION {
        let pa = region + page * PAGE;
        cpu.leaf(Leaf::PhymemPageReclaim, [(Operand::RCX, pa)])
            .unwrap();
    }
    processor_time() - started
}

/// Returns the time for which this thread has been running, excluding waits for a processor.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().map(str::parse);
    Duration::from_nanos(nanoseconds.and_then(Result::ok).unwrap_or(0))
}

/// Returns a rate in millions per second.
fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64() / 1e6
}

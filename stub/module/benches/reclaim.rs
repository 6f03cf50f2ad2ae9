//! How fast a dead TD's 4 KiB pages come back, on one core and on two, and what a tracked page costs in memory.
//!
//! `cargo bench -p stub-module` prints the figures; nothing is a test of time. A computer that has other things to do lets
//! the threads wait, so the rates that are compared are those per second of the processors' time.

use std::thread;
use std::time::{Duration, Instant};

use seam::abi::{Leaf, Operand, Status};
use stub_module::hooks::Hooks;
use stub_module::host::{Config, Processor, Server, TdmrPlan};

const GIB: u64 = 1 << 30;
const PAGE: u64 = 4096;
const BASE: u64 = 4 * GIB;
/// The TD's pages lie in two regions of 1 GiB; its control structures and its S-EPT in a third.
const REGIONS: [u64; 2] = [BASE, BASE + GIB];
const CONTROL: u64 = BASE + 2 * GIB;
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

/// Builds a TD of 2 GiB, tears it down, reclaims it, and tells how many pages a second that were.
fn run(hooks: Hooks, parallel: bool) -> f64 {
    let config = Config {
        cmrs: [(BASE, 4 * GIB)].into(),
        ..Config::default()
    };
    let server = Server::with_hooks(config, hooks);
    let tdmr = TdmrPlan {
        base: BASE,
        size: 3 * GIB,
    };
    must(server.bring_up(tdmr, 32));
    let cpus: Vec<_> = server.processors().collect();
    let tdr = build(&server, cpus[0]);

    let memory = server.machine().memory();
    let before = memory.footprint();
    let started = Instant::now();
    for (number, region) in (0..).zip(REGIONS) {
        map(cpus[0], tdr, number, region);
    }
    let pages = PAGES_PER_REGION * REGIONS.len() as u64;
    let adding = rate(pages, started.elapsed());

    must(cpus[0].leaf(Leaf::MngVpflushdone, [(Operand::RCX, tdr)]));
    for cpu in [cpus[0], cpus[2]] {
        must(cpu.leaf(Leaf::PhymemCacheWb, []));
    }
    must(cpus[0].leaf(Leaf::MngKeyFreeid, [(Operand::RCX, tdr)]));

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

/// Makes a TD that can be given pages; its TDR's address.
fn build(server: &Server, cpu: Processor<'_>) -> u64 {
    let tdr = CONTROL;
    must(cpu.leaf(Leaf::MngCreate, [(Operand::RCX, tdr), (Operand::RDX, 33)]));
    for processor in server.processors() {
        match processor.leaf(Leaf::MngKeyConfig, [(Operand::RCX, tdr)]) {
            Ok(_) | Err(Status::KEY_CONFIGURED | Status::LIFECYCLE_STATE_INCORRECT) => {}
            Err(status) => panic!("TDH.MNG.KEY.CONFIG: {status:?}"),
        }
    }
    for page in 1..=6 {
        let page = tdr + page * PAGE;
        must(cpu.leaf(Leaf::MngAddcx, [(Operand::RCX, page), (Operand::RDX, tdr)]));
    }
    let params = BASE + 4 * GIB - (1 << 20);
    let memory = server.machine().memory();
    memory.write(params + 8, &0xe7u64.to_le_bytes());
    memory.write(params + 16, &4u16.to_le_bytes());
    memory.write(params + 24, &0x1eu64.to_le_bytes());
    memory.write(params + 40, &100u16.to_le_bytes());
    must(cpu.leaf(Leaf::MngInit, [(Operand::RCX, tdr), (Operand::RDX, params)]));
    let s_ept = [(0, 3, 0x10_0000)];
    for (gpa, level, offset) in s_ept {
        add_s_ept(cpu, tdr, gpa, level, CONTROL + offset);
    }
    tdr
}

fn add_s_ept(cpu: Processor<'_>, tdr: u64, gpa: u64, level: u64, page: u64) {
    must(cpu.leaf(
        Leaf::MemSeptAdd,
        [
            (Operand::RCX, gpa | level),
            (Operand::RDX, tdr),
            (Operand::R8, page),
        ],
    ));
}

/// Maps a region at the GiB of that number.
fn map(cpu: Processor<'_>, tdr: u64, number: u64, region: u64) {
    let tables = CONTROL + 0x100_0000 * (number + 1);
    let gpa = number * GIB;
    // The parent of a GiB's 2 MiB entries is at level 2, that of the 4 KiB entries at level 1.
    add_s_ept(cpu, tdr, gpa, 2, tables);
    for block in 0..512 {
        let gpa = gpa + block * (512 * PAGE);
        add_s_ept(cpu, tdr, gpa, 1, tables + (block + 1) * PAGE);
    }
    for page in 0..PAGES_PER_REGION {
        must(cpu.leaf(
            Leaf::MemPageAug,
            [
                (Operand::RCX, gpa + page * PAGE),
                (Operand::RDX, tdr),
                (Operand::R8, region + page * PAGE),
            ],
        ));
    }
}

/// Reclaims a region; the processor's time that it took.
fn reclaim(cpu: Processor<'_>, region: u64) -> Duration {
    let started = processor_time();
    for page in 0..PAGES_PER_REGION {
        let pa = region + page * PAGE;
        must(cpu.leaf(Leaf::PhymemPageReclaim, [(Operand::RCX, pa)]));
    }
    processor_time() - started
}

/// The time for which this thread has been running, and not waiting for a processor.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().map(str::parse);
    Duration::from_nanos(nanoseconds.and_then(Result::ok).unwrap_or(0))
}

/// Millions a second.
fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64() / 1e6
}

fn must<T>(result: Result<T, Status>) -> T {
    match result {
        Ok(value) => value,
        Err(status) => panic!("{status:?}"),
    }
}

//! The cost of the emulated SEAM: CPU time of QEMU, and the instructions that the machine executes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Bench, Scenario};
use crate::media::Media;
use crate::programs::Programs;
use crate::qemu::{Guest, Machine};

pub const ALL: &[Scenario] = &[Scenario::new("rom-cost", cost)];

/// Maximum numbers of instructions: an exit that does next to nothing, a SEAMCALL that does nothing, an entry into a TD
/// with its exit by TDVMCALL. They include those of the software above the monitor.
const LIMITS: [(&str, u64); 3] = [("cpuid", 202), ("empty-seamcall", 565), ("vp-enter", 2_786)];
/// The releases of the module whose cost is limited: the oldest, and the usual one.
const RELEASES: [&str; 2] = ["1.5.01", "1.5.25"];

/// The measurements of one operation, in nanoseconds.
pub struct Figures {
    pub name: String,
    pub each: Vec<u128>,
}

impl Figures {
    /// Returns the median.
    #[must_use]
    pub fn median(&self) -> u128 {
        let mut sorted = self.each.clone();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    }
}

/// The instructions of one operation.
pub struct Count {
    pub name: String,
    pub instructions: u64,
}

impl Count {
    /// Returns the maximum, if the operation has one.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        let limit = LIMITS.iter().find(|(name, _)| *name == self.name);
        limit.map(|&(_, limit)| limit)
    }

    /// Returns whether there are no more than the maximum.
    #[must_use]
    pub fn is_within(&self) -> bool {
        self.limit().is_none_or(|limit| self.instructions <= limit)
    }
}

/// Counts the instructions on each release of the module.
fn cost(bench: &mut Bench) -> Result<()> {
    for release in RELEASES {
        bench.choose_module(release);
        let counts = counts(bench)?;
        for (name, limit) in LIMITS {
            let count = counts.iter().find(|count| count.name == name);
            let count = count.with_context(|| format!("{name} was not counted"))?;
            let instructions = count.instructions;
            bench.note(format!("{release}: {name}: {instructions} instructions"));
            ensure!(
                count.is_within(),
                "{name} takes {instructions} instructions on {release}: at most {limit}"
            );
        }
    }
    Ok(())
}

/// Counts the instructions of each operation. The logs go to a directory in `home`.
///
/// # Errors
/// The probe can't be run, or its output is malformed.
pub fn count(programs: &Programs, home: &Path) -> Result<Vec<Count>> {
    counts(&mut Bench::new("bench-count", programs, home))
}

fn counts(bench: &mut Bench) -> Result<Vec<Count>> {
    let mut guest = start(bench, b"count", true)?;
    let said = guest.expect("probe: end\n", Duration::from_secs(300))?;
    ensure!(!said.contains("FAIL "), "{said}");
    said.lines()
        .filter_map(|line| line.strip_prefix("bench: count "))
        .map(|line| {
            let (name, ticks) = line.split_once(' ').context("a name and a number")?;
            Ok(Count {
                name: name.to_owned(),
                instructions: ticks.trim().parse::<u64>()? / Machine::TICKS_PER_INSTRUCTION,
            })
        })
        .collect()
}

/// Measures each operation at least once in CPU time of QEMU, so that a busy computer has little effect. The logs go to
/// a directory in `home`.
///
/// # Errors
/// The probe can't be run, or its output is malformed.
pub fn measure(programs: &Programs, home: &Path) -> Result<Vec<Figures>> {
    let limit = Duration::from_secs(300);
    let mut bench = Bench::new("bench-stub", programs, home);
    let mut guest = start(&mut bench, b"bench", false)?;
    let mut figures: Vec<Figures> = Vec::new();
    loop {
        let (end, said) = guest.expect_any(&["bench: begin ", "probe: end\n"], limit)?;
        ensure!(!said.contains("FAIL "), "{said}");
        if end == 1 {
            return Ok(figures);
        }
        let what = guest.expect("\n", limit)?;
        let before = guest.cpu_time()?;
        guest.expect("bench: done ", limit)?;
        let took = guest.cpu_time()? - before;
        let (name, times) = what.trim().split_once(' ').context("a name and a number")?;
        let figure = took.as_nanos() / times.parse::<u128>()?;
        match figures.iter_mut().find(|known| known.name == name) {
            Some(known) => known.each.push(figure),
            None => figures.push(Figures {
                name: name.to_owned(),
                each: vec![figure],
            }),
        }
    }
}

/// Starts the probe with an order.
fn start(bench: &mut Bench, order: &[u8], counts_instructions: bool) -> Result<Guest> {
    let media = Media::of_program(&bench.programs().probe())?.with_bytes("probe.txt", order);
    let mut machine = Machine::new(bench.disk(&media)?, Some(bench.stub())).with_cpus(1, 1);
    machine.counts_instructions = counts_instructions;
    let mut guest = bench.start(&machine)?;
    guest.expect("\nprobe: start\n", Duration::from_secs(120))?;
    Ok(guest)
}

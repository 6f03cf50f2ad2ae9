//! The simulated machine: a clock for each CPU, cache lines that move between CPUs, memory with limited bandwidth.
//!
//! The costs of the code under simulation are first noted as [`Charge`]s, in the order in which one CPU incurs them.
//! They then take place in time, interleaved with those of the other CPUs. CPUs that contend for a line get it one
//! after the other, to the nanosecond, although the code runs a whole step at a time.

use std::collections::BTreeMap;

use super::cost::{CPUS_PER_PACKAGE, Cost, Number};

/// Returns the number of packages of a machine with `cpus` CPUs.
pub const fn packages_of(cpus: u32) -> u32 {
    cpus.div_ceil(CPUS_PER_PACKAGE)
}

/// Returns the package of a CPU. All packages have the same number of CPUs.
pub fn package_of(cpu: u32, cpus: u32) -> u32 {
    cpu / cpus.div_ceil(packages_of(cpus))
}

/// A cache line that CPUs contend for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The TDR's own PAMT entry, which a reclaim locks and unlocks.
    TdrLock,
    /// The TDR's CHLDCNT.
    TdrCount,
    /// The lock around the private map's root.
    Root,
    /// The lock around a TD's entry in the host's list of TDs.
    Entry,
    /// The count of users of the TD.
    Holders,
    /// The PAMT entries of four neighbouring GiB, which every walk to a page below locks and unlocks.
    Pamt1g(u32),
    /// The frame allocator's lock.
    Ledger,
}

impl Line {
    /// Returns the line's index.
    const fn index(self) -> usize {
        match self {
            Self::TdrLock => 0,
            Self::TdrCount => 1,
            Self::Root => 2,
            Self::Ledger => 3,
            Self::Entry => 4,
            Self::Holders => 5,
            Self::Pamt1g(number) => 6 + number as usize,
        }
    }
}

/// A cost in time.
#[derive(Clone, Copy, Debug)]
pub enum Charge {
    /// Picoseconds of operations that were counted before.
    Pass(u64),
    /// A number of operations of this kind.
    Spend(Number, f32),
    /// A locked operation on a line.
    Touch(Line),
    /// Clearing of `units` times 4 KiB at address `at`.
    Clear { units: u32, at: u64 },
}

/// The sums of a run: the number of operations, and busy times.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    pub counts: BTreeMap<Number, f64>,
    /// Picoseconds for which the busiest line was in transfer.
    pub busiest_line: u64,
    /// Picoseconds for which the busiest package's memory was written.
    pub busiest_memory: u64,
    /// Picoseconds that CPUs worked, summed over CPUs, without waiting.
    pub work: u64,
}

#[derive(Clone, Copy, Default)]
struct LineState {
    owner: Option<u32>,
    free_at: u64,
    busy: u64,
}

#[derive(Clone, Copy, Default)]
struct Memory {
    free_at: u64,
    busy: u64,
}

/// The simulated machine.
pub struct Machine {
    cost: Cost,
    /// The package of each CPU.
    packages: Vec<u32>,
    /// States of the lines, by [`Line::index`].
    lines: Vec<LineState>,
    memory: Vec<Memory>,
    /// Bytes of physical memory in each package, from the first address on.
    base: u64,
    bytes_per_package: u64,
    counts: [f64; Number::CacheWriteBack as usize + 1],
    work: u64,
}

impl Machine {
    /// Creates a machine with `cpus` CPUs and `bytes` of memory from `base` on.
    pub fn new(cost: Cost, cpus: u32, base: u64, bytes: u64) -> Self {
        let packages = packages_of(cpus);
        Self {
            cost,
            packages: (0..cpus).map(|cpu| package_of(cpu, cpus)).collect(),
            lines: Vec::new(),
            memory: vec![Memory::default(); packages as usize],
            base,
            bytes_per_package: bytes.div_ceil(packages.into()),
            counts: [0.0; Number::CacheWriteBack as usize + 1],
            work: 0,
        }
    }

    /// Returns the end, in picoseconds, of a charge that a CPU incurs at `now`.
    pub fn pass(&mut self, cpu: u32, now: u64, charge: Charge) -> u64 {
        match charge {
            Charge::Pass(ps) => now + ps,
            Charge::Spend(number, count) => now + self.count(number, count.into()),
            Charge::Touch(line) => self.touch(cpu, now, line),
            Charge::Clear { units, at } => self.clear(now, units, at),
        }
    }

    /// Counts operations and returns their time in picoseconds.
    pub fn count(&mut self, number: Number, count: f64) -> u64 {
        self.counts[number as usize] += count;
        let ps = self.cost.ps(number, count);
        self.work += ps;
        ps
    }

    fn touch(&mut self, cpu: u32, now: u64, line: Line) -> u64 {
        let index = line.index();
        if index >= self.lines.len() {
            self.lines.resize(index + 1, LineState::default());
        }
        let state = &mut self.lines[index];
        let package = |cpu| self.packages[cpu as usize];
        let far = |other| package(other) != package(cpu);
        let from = match state.owner {
            Some(owner) if owner == cpu => None,
            Some(owner) if far(owner) => Some(Number::LineFar),
            _ => Some(Number::LineNear),
        };
        let mut ps = self.cost.ps(Number::Atomic, 1.0);
        self.counts[Number::Atomic as usize] += 1.0;
        if let Some(from) = from {
            ps += self.cost.ps(from, 1.0);
            self.counts[from as usize] += 1.0;
        }
        let end = now.max(state.free_at) + ps;
        *state = LineState {
            owner: Some(cpu),
            free_at: end,
            busy: state.busy + ps,
        };
        self.work += ps;
        end
    }

    fn clear(&mut self, now: u64, units: u32, at: u64) -> u64 {
        let units = f64::from(units);
        let package = (at - self.base) / self.bytes_per_package;
        let memory = &mut self.memory[package as usize];
        self.counts[Number::ClearCpu as usize] += units;
        self.counts[Number::ClearPackage as usize] += units;
        let alone = self.cost.ps(Number::ClearCpu, units);
        let shared = self.cost.ps(Number::ClearPackage, units);
        // The package's memory serves CPUs in turn; one CPU can't use all of its bandwidth.
        memory.free_at = memory.free_at.max(now) + shared;
        memory.busy += shared;
        self.work += alone;
        (now + alone).max(memory.free_at)
    }

    /// Returns the sums so far.
    pub fn sums(&self) -> Sums {
        let counts = Number::all().zip(self.counts);
        Sums {
            counts: counts.filter(|(_, count)| *count > 0.0).collect(),
            busiest_line: self.lines.iter().map(|line| line.busy).max().unwrap_or(0),
            busiest_memory: self.memory.iter().map(|m| m.busy).max().unwrap_or(0),
            work: self.work,
        }
    }

    /// Returns the cost model.
    pub fn cost(&self) -> &Cost {
        &self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cpus: u32) -> Machine {
        let fitted = [
            (Number::Seamcall, 1000.0),
            (Number::LinuxPage, 0.0),
            (Number::KickNear, 0.0),
            (Number::KickFar, 0.0),
        ];
        Machine::new(Cost::with_fitted(fitted), cpus, 0, 1 << 40)
    }

    #[test]
    fn packages_have_the_same_number_of_cpus() {
        assert_eq!([4, 56, 64, 112, 224].map(packages_of), [1, 1, 2, 2, 4]);
        assert_eq!([0, 31, 32, 63].map(|cpu| package_of(cpu, 64)), [0, 0, 1, 1]);
    }

    #[test]
    fn a_line_goes_from_cpu_to_cpu_one_at_a_time() {
        let mut machine = machine(64);
        let touch = Charge::Touch(Line::TdrLock);
        assert_eq!(machine.pass(0, 0, touch), 110_000);
        // A neighbour that wants the line at the same time waits.
        assert_eq!(machine.pass(1, 0, touch), 220_000);
        // The neighbour has the line now.
        assert_eq!(machine.pass(1, 300_000, touch), 310_000);
        assert_eq!(machine.pass(40, 400_000, touch), 610_000);
    }

    #[test]
    fn memory_is_written_no_faster_than_the_package_can() {
        let mut machine = machine(56);
        let charge = Charge::Clear { units: 512, at: 0 };
        let alone = machine.pass(0, 0, charge);
        assert_eq!(alone, 512 * 410_000);
        let mut last = 0;
        for cpu in 1..56 {
            last = machine.pass(cpu, 0, charge);
        }
        assert_eq!(last, 56 * 512 * 27_000);
    }
}

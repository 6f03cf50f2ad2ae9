//! `cargo xtask sim reclaim`: the benefit of terminate on machines that are not at hand.
//!
//! The hypervisor's own code takes a TD down on the emulated module; time is simulated. [`cost`] has every number,
//! [`machine`] the clocks and contended resources, [`world`] the environment of the code, [`ways`] the runs, and
//! [`schedule`] their order.

mod cost;
mod fit;
mod linux;
mod machine;
mod report;
mod schedule;
mod td;
mod turns;
mod ways;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use seam::abi::PageSize;

use cost::{Cost, Number};
use ways::{Factor, Run, Task, Way};

/// The simulations.
#[derive(Subcommand)]
pub enum Sim {
    /// Take TDs of 18 GiB to 2 TiB down in simulated time, in every way.
    Reclaim(Options),
}

/// The options of the simulation.
#[derive(Args)]
pub struct Options {
    /// Run every way at 107 and 400 GiB and 2 TiB, too (up to 20 minutes and 8 GiB)
    #[arg(long)]
    full: bool,
    /// The seed of everything random: when each idle CPU first looks for work
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write the runs to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the charts to this folder as SVG
    #[arg(long, value_name = "FOLDER")]
    charts: Option<PathBuf>,
}

/// Sizes in GiB, with the CPUs of each measurement.
const SIZES: [(u64, u32); 3] = [(18, 4), (107, 32), (400, 64)];
/// A size without a measurement.
const LARGEST: (u64, u32) = (2048, 224);
/// Numbers of CPUs for which the time is reported.
const CPUS: [u32; 10] = [1, 2, 4, 8, 16, 32, 56, 64, 112, 224];
/// Size in GiB of the TD with 4 KiB pages for which every number is halved and doubled. It is small because such pages
/// take long to simulate.
const SENSITIVITY_4K_GIB: u64 = 1;
/// Size in GiB of the TD for which the time of 4 KiB pages on other numbers of CPUs is reported.
const CPUS_4K_GIB: u64 = 6;
/// The hypervisor's ways that more CPUs make faster.
const BULK: [Way; 3] = [Way::Terminate4k, Way::Terminate2m, Way::Terminate1g];

/// The results of all runs.
pub struct Results {
    pub cost: Cost,
    /// Each way at each size with its CPUs.
    pub sizes: Vec<Run>,
    /// The hypervisor's ways with 1 to 224 CPUs.
    pub cpus: Vec<Run>,
    /// Runs with a number halved or doubled.
    pub sensitivity: Vec<Sensitivity>,
}

/// The effect of a number on a way.
pub struct Sensitivity {
    pub way: Way,
    pub gib: u64,
    pub cpus: u32,
    pub number: Number,
    /// The time with half and with twice the value, relative to the time with the value itself.
    pub ratios: [f64; 2],
}

impl Sim {
    /// Runs the simulation. Fails if it misses a target.
    pub fn run(&self) -> Result<ExitCode> {
        let Self::Reclaim(options) = self;
        let results = options.simulate()?;
        let holds = report::print(&results);
        if let Some(file) = &options.json {
            std::fs::write(file, report::json(&results))
                .with_context(|| format!("can't write {}", file.display()))?;
        }
        if let Some(folder) = &options.charts {
            report::draw(&results, folder)?;
        }
        Ok(if holds {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

impl Options {
    fn simulate(&self) -> Result<Results> {
        let cost = fit::cost();
        let [sizes, cpus, bases] = [self.sizes(), self.cpus(), self.bases()];
        let wanted = [&sizes, &cpus, &bases].into_iter().flatten().copied();
        let runs = schedule::run(wanted, |task, run| {
            if bases.contains(task) {
                variations(task, run)
            } else {
                Vec::new()
            }
        })?;
        let of = |tasks: &[Task]| -> Vec<Run> {
            let runs = tasks.iter().filter_map(|task| runs.get(task));
            runs.cloned().collect()
        };
        let (mut sizes, mut cpus) = (of(&sizes), of(&cpus));
        let mut sensitivity: Vec<_> = bases.iter().flat_map(|base| vary(base, &runs)).collect();
        // The time of a way on one CPU is a sum, so it can be scaled to other sizes and CPUs.
        let serial = |way| sizes.iter().find(|run| run.way == way).cloned();
        let serial = [Way::LinuxBefore, Way::LinuxAfter, Way::Dynamic].map(serial);
        for run in serial.into_iter().flatten() {
            if run.way == Way::Dynamic {
                cpus.extend(CPUS.map(|cpus| fit::scaled(&run, run.gib, cpus, &cost)));
            } else {
                let larger = SIZES[1..].iter();
                sizes.extend(larger.map(|(gib, cpus)| fit::scaled(&run, *gib, *cpus, &cost)));
            }
        }
        for run in sizes.iter().filter(|run| !BULK.contains(&run.way)) {
            sensitivity.extend(Number::all().map(|number| serial_sensitivity(run, number, &cost)));
        }
        Ok(Results {
            cost,
            sizes,
            cpus,
            sensitivity,
        })
    }

    fn task(&self, (way, (gib, cpus)): (Way, (u64, u32))) -> Task {
        Task {
            way,
            gib,
            cpus,
            seed: self.seed,
            varied: None,
        }
    }

    /// Returns every way at the smallest size, and the other sizes if they are quick or `full` was given.
    fn sizes(&self) -> Vec<Task> {
        let smallest = Way::ALL.map(|way| (way, SIZES[0]));
        let larger = SIZES[1..].iter().copied().chain([LARGEST]);
        let larger = larger.flat_map(|size| {
            let ours = [
                Way::Dynamic,
                Way::Terminate4k,
                Way::Terminate2m,
                Way::Terminate1g,
            ];
            ours.map(|way| (way, size))
        });
        let is_wanted = |way: Way, size| match way.page() {
            PageSize::Size4K => self.full && size != LARGEST,
            PageSize::Size2M => self.full || size != LARGEST,
            PageSize::Size1G => self.full,
        };
        let larger = larger.filter(|(way, size)| is_wanted(*way, *size));
        let all = smallest.into_iter().chain(larger);
        all.map(|one| self.task(one)).collect()
    }

    /// Returns the bulk ways with other numbers of CPUs, each at one size.
    fn cpus(&self) -> Vec<Task> {
        let all = BULK.into_iter().flat_map(|way| {
            // Small pages take long to simulate, so a smaller TD and fewer numbers of CPUs are used.
            let is_quick = self.full || way != Way::Terminate4k;
            let gib = match way {
                Way::Terminate4k => CPUS_4K_GIB,
                _ if self.full => SIZES[2].0,
                _ => SIZES[0].0,
            };
            let wanted = CPUS.into_iter();
            let wanted = wanted.filter(move |cpus| is_quick || [1, 8, 32, 64, 224].contains(cpus));
            wanted.map(move |cpus| (way, (gib, cpus)))
        });
        all.map(|one| self.task(one)).collect()
    }

    /// Returns the bulk ways on the machines for which every number is halved and doubled.
    fn bases(&self) -> Vec<Task> {
        let machines: Vec<_> = if self.full {
            SIZES.into_iter().chain([LARGEST]).collect()
        } else {
            vec![SIZES[0], (SIZES[0].0, SIZES[2].1)]
        };
        let all = machines.into_iter().flat_map(|(gib, cpus)| {
            BULK.into_iter().filter_map(move |way| match way {
                Way::Terminate4k if cpus == LARGEST.1 => None,
                Way::Terminate4k => Some((way, (SENSITIVITY_4K_GIB, cpus))),
                _ => Some((way, (gib, cpus))),
            })
        });
        all.map(|one| self.task(one)).collect()
    }
}

/// Returns a task's variations: every number that it uses, halved and doubled.
fn variations(base: &Task, run: &Run) -> Vec<Task> {
    let used = run.sums.counts.keys();
    let varied = used.flat_map(|number| Factor::ALL.map(|factor| (*number, factor)));
    let varied = varied.map(|varied| Task {
        varied: Some(varied),
        ..*base
    });
    varied.collect()
}

/// Returns the effect of each number on a task: 1 if the task does not use it.
fn vary(base: &Task, runs: &BTreeMap<Task, Run>) -> Vec<Sensitivity> {
    let seconds = |varied| {
        let run = runs.get(&Task { varied, ..*base });
        run.map(|run| run.seconds)
    };
    let Some(normal) = seconds(None) else {
        return Vec::new();
    };
    let all = Number::all().map(|number| Sensitivity {
        way: base.way,
        gib: base.gib,
        cpus: base.cpus,
        number,
        ratios: Factor::ALL.map(|factor| {
            let varied = seconds(Some((number, factor)));
            varied.map_or(1.0, |seconds| seconds / normal)
        }),
    });
    all.collect()
}

/// Returns the effect of a number on a way on one CPU, whose time is a sum.
fn serial_sensitivity(run: &Run, number: Number, cost: &Cost) -> Sensitivity {
    let base = fit::serial_seconds(&run.sums, cost);
    let ratios = Factor::ALL
        .map(|factor| fit::serial_seconds(&run.sums, &cost.scaled(number, factor.value())) / base);
    Sensitivity {
        way: run.way,
        gib: run.gib,
        cpus: run.cpus,
        number,
        ratios,
    }
}

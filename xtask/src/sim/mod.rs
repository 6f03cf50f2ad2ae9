//! `cargo xtask sim reclaim`: what terminate is worth on machines that nobody has at hand.
//!
//! The hypervisor's own code takes a TD down on the emulated module; time is simulated. [`cost`] has every number,
//! [`machine`] the clocks and what CPUs contend for, [`world`] is what the code finds, [`ways`] runs it.

mod cost;
mod fit;
mod linux;
mod machine;
mod report;
mod td;
mod ways;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use cost::{Cost, Number};
use ways::{Run, Task, Way};

/// What can be simulated.
#[derive(Subcommand)]
pub enum Sim {
    /// Take TDs of 18 GiB to 2 TiB down in simulated time, in every way.
    Reclaim(Options),
}

/// How it is simulated, and where the results go.
#[derive(Args)]
pub struct Options {
    /// Run every way at 107 and 400 GiB and 2 TiB, too (up to 20 minutes and 8 GiB)
    #[arg(long)]
    full: bool,
    /// Write the runs to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the charts to this folder as SVG and PNG
    #[arg(long, value_name = "FOLDER")]
    charts: Option<PathBuf>,
}

/// Sizes in GiB, with the CPUs that each was measured with.
const SIZES: [(u64, u32); 3] = [(18, 4), (107, 32), (400, 64)];
/// The size that nobody has measured.
const LARGEST: (u64, u32) = (2048, 224);
/// CPUs for which the time is told.
const CPUS: [u32; 9] = [1, 2, 4, 8, 16, 32, 64, 112, 224];
/// The machine on which every number is halved and doubled.
const SENSITIVITY: (u64, u32) = (18, 64);
/// The size at which that is done for pages of 4 KiB.
const SENSITIVITY_4K_GIB: u64 = 2;

/// Everything that was run.
pub struct Results {
    pub cost: Cost,
    /// Each way at each size with its CPUs.
    pub sizes: Vec<Run>,
    /// Our ways with 1 to 224 CPUs.
    pub cpus: Vec<Run>,
    /// With a number that was halved or doubled, and how long it takes then for once before.
    pub sensitivity: Vec<Sensitivity>,
}

/// What a number does to a way.
pub struct Sensitivity {
    pub way: Way,
    pub number: Number,
    /// Time with half and with twice the value, for the time with the value itself.
    pub ratios: [f64; 2],
}

impl Sim {
    /// Runs the simulation. Fails if it misses what it must show.
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
        let task = |way, gib, cpus| Task {
            way,
            gib,
            cpus,
            cost: cost.clone(),
        };
        // Every way at the smallest size; the others where that is quick, or all was asked for.
        let mut tasks: Vec<_> = Way::ALL.map(|way| task(way, SIZES[0].0, SIZES[0].1)).into();
        for (gib, cpus) in SIZES[1..].iter().copied().chain([LARGEST]) {
            let is_largest = (gib, cpus) == LARGEST;
            for way in [Way::Terminate2m, Way::Terminate1g] {
                if self.full || (!is_largest && way == Way::Terminate2m) {
                    tasks.push(task(way, gib, cpus));
                }
            }
            for way in [Way::Dynamic, Way::Terminate4k] {
                if self.full && !is_largest {
                    tasks.push(task(way, gib, cpus));
                }
            }
        }
        let at_sizes = tasks.len();
        for way in [Way::Terminate4k, Way::Terminate2m, Way::Terminate1g] {
            let (gib, _) = if self.full && way != Way::Terminate4k {
                SIZES[2]
            } else {
                SIZES[0]
            };
            // Small pages take long to simulate: every other number of CPUs will do.
            let step = if self.full || way != Way::Terminate4k {
                1
            } else {
                2
            };
            tasks.extend(
                CPUS.into_iter()
                    .step_by(step)
                    .map(|cpus| task(way, gib, cpus)),
            );
        }
        let at_cpus = tasks.len();
        let ways = [Way::Terminate4k, Way::Terminate2m, Way::Terminate1g];
        for way in ways {
            let (gib, cpus) = SENSITIVITY;
            let gib = if way == Way::Terminate4k {
                SENSITIVITY_4K_GIB
            } else {
                gib
            };
            tasks.push(task(way, gib, cpus));
            for number in Number::all() {
                for factor in [0.5, 2.0] {
                    let cost = cost.scaled(number, factor);
                    tasks.push(Task {
                        way,
                        gib,
                        cpus,
                        cost,
                    });
                }
            }
        }
        let mut runs = run_all(&tasks)?;
        let varied = runs.split_off(at_cpus);
        let cpus = runs.split_off(at_sizes);
        let mut sizes = runs;
        let mut sensitivity = Vec::new();
        for way in [Way::LinuxBefore, Way::LinuxAfter] {
            if let Some(run) = sizes.iter().find(|run| run.way == way).cloned() {
                for (gib, cpus) in &SIZES[1..] {
                    sizes.push(fit::scaled(&run, *gib, *cpus, &cost));
                }
            }
        }
        for run in sizes.iter().filter(|run| run.gib == SIZES[0].0) {
            if matches!(run.way, Way::LinuxBefore | Way::LinuxAfter | Way::Dynamic) {
                sensitivity.extend(Number::all().map(|number| serial(run, number, &cost)));
            }
        }
        for runs in varied.chunks(1 + 2 * Number::all().count()) {
            let (base, changed) = (&runs[0], &runs[1..]);
            sensitivity.extend(Number::all().zip(changed.chunks(2)).map(|(number, pair)| {
                let ratios = [&pair[0], &pair[1]].map(|run| run.seconds / base.seconds);
                let way = base.way;
                Sensitivity {
                    way,
                    number,
                    ratios,
                }
            }));
        }
        Ok(Results {
            cost,
            sizes,
            cpus,
            sensitivity,
        })
    }
}

/// What a number does to a way on one CPU: its time is a sum.
fn serial(run: &Run, number: Number, cost: &Cost) -> Sensitivity {
    let base = fit::serial_seconds(&run.sums, cost);
    let ratios = [0.5, 2.0]
        .map(|factor| fit::serial_seconds(&run.sums, &cost.scaled(number, factor)) / base);
    Sensitivity {
        way: run.way,
        number,
        ratios,
    }
}

/// Runs everything, on two threads: large TDs are never run together. Results are in the tasks' order.
fn run_all(tasks: &[Task]) -> Result<Vec<Run>> {
    let next = AtomicUsize::new(0);
    let large = Mutex::new(());
    let results: Vec<_> = tasks.iter().map(|_| Mutex::new(None)).collect();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, SeqCst);
                    let Some(task) = tasks.get(index) else { break };
                    let _alone = (task.gib > SIZES[0].0).then(|| large.lock());
                    let result = task.run().with_context(|| {
                        format!(
                            "{} of {} GiB on {} CPUs",
                            task.way.name(),
                            task.gib,
                            task.cpus
                        )
                    });
                    if let Ok(mut place) = results[index].lock() {
                        *place = Some(result);
                    }
                }
            });
        }
    });
    let results = results.into_iter().map(|place| place.into_inner());
    results
        .map(|place| place.ok().flatten().context("it was not run")?)
        .collect()
}

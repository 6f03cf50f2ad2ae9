//! The ways to take a TD down. Each is run once, with its operations and its time.

use anyhow::{Context, Result, anyhow, bail, ensure};
use host::platform::Platform;
use mm::private::{Clearing, Cpu, Kick, Outcome, PrivateMap, Reclaim, ReclaimOptions, Step};
use seam::abi::{PAGE_1G, PAGE_4K, PageSize};

use super::cost::{AFTER_STEP, BEFORE_STEP, Cost, Number};
use super::fit;
use super::linux::Linux;
use super::machine::{Charge, Sums};
use super::schedule::Job;
use super::td::Td;
use super::turns::{self, Turn};
use super::world::{GLOBAL_HKID, KickAll, Taking, Unmeasured, World};

/// A way to take a TD down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Linux: page by page with the key, then the key.
    LinuxBefore,
    /// Linux: first the key, then page by page.
    LinuxAfter,
    /// The hypervisor: dynamic removal of 4 KiB pages, then the key.
    Dynamic,
    /// The hypervisor: first the key, then 4 KiB pages in bulk.
    Terminate4k,
    /// The same with 2 MiB pages.
    Terminate2m,
    /// The same with 1 GiB pages.
    Terminate1g,
}

impl Way {
    pub const ALL: [Self; 6] = [
        Self::LinuxBefore,
        Self::LinuxAfter,
        Self::Dynamic,
        Self::Terminate4k,
        Self::Terminate2m,
        Self::Terminate1g,
    ];

    /// Returns the way's name in tables and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LinuxBefore => "linux-before",
            Self::LinuxAfter => "linux-after",
            Self::Dynamic => "dynamic",
            Self::Terminate4k => "terminate-4k",
            Self::Terminate2m => "terminate-2m",
            Self::Terminate1g => "terminate-1g",
        }
    }

    /// Returns the size of the TD's pages.
    pub const fn page(self) -> PageSize {
        match self {
            Self::Terminate2m => PageSize::Size2M,
            Self::Terminate1g => PageSize::Size1G,
            _ => PageSize::Size4K,
        }
    }
}

/// A run to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    pub way: Way,
    pub gib: u64,
    pub cpus: u32,
    /// The seed of everything random.
    pub seed: u64,
    /// The number that is varied, if any.
    pub varied: Option<(Number, Factor)>,
}

/// The variation of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Factor {
    Half,
    Twice,
}

impl Factor {
    pub const ALL: [Self; 2] = [Self::Half, Self::Twice];

    pub const fn value(self) -> f64 {
        match self {
            Self::Half => 0.5,
            Self::Twice => 2.0,
        }
    }
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Run {
    pub way: Way,
    pub gib: u64,
    pub cpus: u32,
    /// Seconds until all memory is the host's again and cleared.
    pub seconds: f64,
    /// Seconds until the HKID is free.
    pub hkid_free_seconds: f64,
    /// SEAMCALLs per 4 KiB.
    pub calls_per_4k: f64,
    pub limit: Limit,
    pub sums: Sums,
}

/// The resource that limits a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The CPUs; more of them would be faster.
    Cpus,
    /// A cache line that all CPUs change.
    Line,
    /// The memory's bandwidth.
    Memory,
    /// The units of work: too few, or the last ones.
    Units,
}

impl Limit {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpus => "CPUs",
            Self::Line => "cache line",
            Self::Memory => "memory",
            Self::Units => "units",
        }
    }

    /// Determines the resource that was busy for most of the time.
    fn of(sums: &Sums, cpus: u32, ps: u64) -> Self {
        let share = |busy: u64| busy as f64 / ps.max(1) as f64;
        let all = [
            (share(sums.work) / f64::from(cpus), Self::Cpus),
            (share(sums.busiest_line), Self::Line),
            (share(sums.busiest_memory), Self::Memory),
        ];
        let most = all.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        match most {
            Some((share, limit)) if share > 0.6 => limit,
            _ => Self::Units,
        }
    }
}

/// Size in GiB of small pages from which on a TD takes gigabytes of this computer's memory, about 12 MiB for each GiB.
const LARGE_GIB: u64 = 200;

impl Job for Task {
    type Output = Run;

    fn run(&self) -> Result<Run> {
        let (way, gib, cpus) = (self.way.name(), self.gib, self.cpus);
        let run = self.take_down();
        let run = run.with_context(|| format!("{way} of {gib} GiB on {cpus} CPUs"))?;
        if self.effort() > 20_000 {
            // The next one may take minutes.
            eprintln!("{way} of {gib} GiB on {cpus} CPUs: {:.3} s", run.seconds);
        }
        Ok(run)
    }

    /// The effort, in milliseconds approximately.
    fn effort(&self) -> u64 {
        let for_a_gib = match self.way {
            Way::LinuxBefore | Way::LinuxAfter | Way::Dynamic => 400,
            Way::Terminate4k => 300,
            Way::Terminate2m => 1,
            // Each 2 MiB is accepted before they become one page.
            Way::Terminate1g => 4,
        };
        self.gib * for_a_gib
    }

    fn is_large(&self) -> bool {
        self.way.page() == PageSize::Size4K && self.gib >= LARGE_GIB
    }
}

impl Task {
    fn cost(&self) -> Cost {
        let cost = fit::cost();
        match self.varied {
            Some((number, factor)) => cost.scaled(number, factor.value()),
            None => cost,
        }
    }

    /// Builds the TD and takes it down.
    fn take_down(&self) -> Result<Run> {
        let bytes = self.gib * PAGE_1G;
        // Adds memory for the S-EPT and the control pages.
        let memory = bytes + (bytes / 256).next_multiple_of(PAGE_1G) + 2 * PAGE_1G;
        let world = World::new(self.cost(), self.cpus, memory)?;
        let td = Td::build(&world, bytes, self.way.page())?;
        let linux = match self.way {
            Way::LinuxBefore | Way::LinuxAfter => Some(Linux::new(&world, &td, bytes)?),
            _ => None,
        };
        let built = world.calls();
        let (out, aside) = (world.frames_out() - td.aside, td.aside);
        world.take(Taking::Now);
        if let (Way::LinuxBefore, Some(linux)) = (self.way, &linux) {
            linux.remove()?;
        }
        if self.way == Way::Dynamic {
            self.remove(&world, &td, bytes)?;
        }
        if linux.is_none() {
            // The vCPUs leave the guest for good.
            KickAll(&world).kick().map_err(|error| anyhow!("{error}"))?;
        }
        td.release(&world)?;
        let hkid_free = world.clock(0);
        let end = match &linux {
            Some(linux) => {
                if self.way == Way::LinuxAfter {
                    linux.reclaim()?;
                }
                linux.reclaim_tables();
                world.clock(0)
            }
            None => self.reclaim(&world, td)?,
        };
        ensure!(
            world.refused() == 0,
            "{} calls were refused",
            world.refused()
        );
        let sums = world.sums();
        let cleared = sums.counts.get(&Number::ClearCpu).copied().unwrap_or(0.0);
        if linux.is_none() {
            let left = world.frames_out() - aside;
            ensure!(left == 0, "{left} frames of 4 KiB were not freed");
            ensure!(cleared == out as f64, "{cleared} of {out} were cleared");
        }
        Ok(Run {
            way: self.way,
            gib: self.gib,
            cpus: self.cpus,
            seconds: end as f64 / 1e12,
            hkid_free_seconds: hkid_free as f64 / 1e12,
            calls_per_4k: (world.calls() - built) as f64 / (bytes / PAGE_4K) as f64,
            limit: match self.way {
                Way::LinuxBefore | Way::LinuxAfter | Way::Dynamic => Limit::Cpus,
                _ => Limit::of(&sums, self.cpus, end),
            },
            sums,
        })
    }

    /// Removes everything dynamically, on one CPU.
    fn remove(&self, world: &World, td: &Td, bytes: u64) -> Result<()> {
        let tdh = world.on(0);
        let cpu = Cpu {
            tdh: &tdh,
            pool: world.pool(),
        };
        let removed = td.map.remove(cpu, 0..bytes, &KickAll(world));
        match removed.map_err(|error| anyhow!("{error}"))? {
            Outcome::Removed(_) => Ok(()),
            other => bail!("{other:?}"),
        }
    }

    /// Returns when each CPU first looks for work: the one that freed the HKID at once, the others at their next
    /// random poll.
    fn starts(&self, world: &World) -> Vec<u64> {
        let start = world.clock(0);
        let poll = self.cost().ps(Number::Poll, 1.0);
        let mut chance = fastrand::Rng::with_seed(self.seed);
        let others = (1..self.cpus).map(|_| start + chance.u64(0..=poll));
        std::iter::once(start).chain(others).collect()
    }

    /// Reclaims in bulk on all CPUs. Returns the time at which the last of them was done.
    fn reclaim(&self, world: &World, td: Td) -> Result<u64> {
        let (map, control) = td.into_parts();
        let plan = ReclaimOptions {
            cpus: self.cpus,
            clearing: Clearing::Clear,
            global_hkid: GLOBAL_HKID,
        };
        let begun = Reclaim::new(map, control, plan, &Unmeasured);
        let reclaim = begun.map_err(|(error, ..)| anyhow!("{error}"))?;
        let end = work(world, &reclaim, &self.starts(world))?;
        let progress = reclaim.progress(&Unmeasured);
        ensure!(progress.is_done && progress.quarantined == 0);
        Ok(end)
    }
}

/// Lets every CPU work on the reclaim. Returns the time at which the last of them had worked.
fn work(world: &World, reclaim: &Reclaim<PrivateMap>, starts: &[u64]) -> Result<u64> {
    let step = |cpu| {
        world.turn(cpu);
        world.charge(&BEFORE_STEP);
        let tdh = world.on(cpu);
        let on = Cpu {
            tdh: &tdh,
            pool: world.pool(),
        };
        let step = reclaim.work(on, cpu, &Unmeasured);
        world.charge(&AFTER_STEP);
        Ok(match step {
            Step::More => Turn::Work(world.noted()),
            Step::Idle => {
                world.charge(&[Charge::Spend(Number::Poll, 1.0)]);
                Turn::Idle(world.noted())
            }
            Step::Done => Turn::Done,
            Step::Stuck => bail!("{:?}", reclaim.last_refusal()),
        })
    };
    let pass = |cpu, now, charge| world.core.time().machine.pass(cpu, now, charge);
    turns::take(starts, step, pass)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(way: Way, gib: u64, cpus: u32) -> Task {
        Task {
            way,
            gib,
            cpus,
            seed: 1,
            varied: None,
        }
    }

    fn count(run: &Run, number: Number) -> f64 {
        run.sums.counts.get(&number).copied().unwrap_or(0.0)
    }

    /// [`Task::run`] checks that everything is reclaimed and cleared once. This test checks that the charges match the
    /// work.
    #[test]
    fn each_page_is_paid_for_once() {
        for (way, pages) in [
            (Way::Terminate4k, 1 << 18),
            (Way::Terminate2m, 512),
            (Way::Terminate1g, 1),
        ] {
            let run = task(way, 1, 64).run().unwrap();
            // S-EPT: 512 tables below one directory, if pages are small; there are 2 tables above, and some control
            // pages.
            let tables = if way == Way::Terminate4k { 512 } else { 0 };
            let reclaimed = count(&run, Number::HostPage);
            let control = reclaimed - f64::from(pages + tables);
            assert!(
                (64.0 * 6.0..64.0 * 9.0).contains(&control),
                "{way:?}: {control}"
            );
            // Five locked operations for each of them, and a few for each step.
            assert!(count(&run, Number::Atomic) >= 5.0 * reclaimed);
            assert!(
                count(&run, Number::Atomic) <= 6.2 * reclaimed + 50_000.0,
                "{run:?}"
            );
            assert_eq!(count(&run, Number::CacheWriteBack), 2.0);
            assert_eq!(count(&run, Number::VpFlush), 64.0);
        }
    }

    #[test]
    fn a_seed_gives_the_same_times_and_another_one_nearly_the_same() {
        let run = |seed| {
            let task = Task {
                seed,
                ..task(Way::Terminate2m, 4, 64)
            };
            task.run().unwrap()
        };
        let [one, same, other] = [1, 1, 2].map(run);
        assert_eq!(one.seconds, same.seconds);
        assert_eq!(one.sums.counts, same.sums.counts);
        assert_ne!(one.seconds, other.seconds);
        assert!((one.seconds / other.seconds - 1.0).abs() < 0.05);
    }

    #[test]
    fn one_cpu_takes_as_long_as_all_its_work() {
        let run = task(Way::Terminate2m, 2, 1).run().unwrap();
        assert_eq!(run.limit, Limit::Cpus);
        let sum = fit::serial_seconds(&run.sums, &fit::cost());
        assert!(
            (run.seconds / sum - 1.0).abs() < 1e-3,
            "{} {sum}",
            run.seconds
        );
    }

    #[test]
    fn the_hkid_is_free_when_the_slowest_package_has_written_back_and_not_later_for_more_of_them() {
        let write_back = fit::cost()[Number::CacheWriteBack] / 1e9;
        for cpus in [1, 56, 64, 224] {
            let run = task(Way::Terminate1g, 1, cpus).run().unwrap();
            let more = run.hkid_free_seconds - write_back;
            assert!((0.0..0.001).contains(&more), "{cpus} CPUs: {more}");
            assert!(run.seconds > run.hkid_free_seconds);
        }
    }

    #[test]
    fn a_td_of_many_gib_is_in_pages_of_1_gib_if_that_is_the_way() {
        let run = task(Way::Terminate1g, 600, 8).run().unwrap();
        // One call for each GiB, one for each table above, some for the control pages.
        let reclaimed = count(&run, Number::HostPage);
        assert!((600.0..600.0 + 128.0).contains(&reclaimed), "{reclaimed}");
    }

    #[test]
    fn the_memory_of_a_package_is_the_limit_of_large_pages() {
        // 64 CPUs in two packages, one of which has all of the TD's memory.
        let run = task(Way::Terminate2m, 4, 64).run().unwrap();
        let reclaim = run.seconds - run.hkid_free_seconds;
        let bandwidth =
            (4.0 * PAGE_1G as f64 / PAGE_4K as f64) * fit::cost()[Number::ClearPackage] / 1e9;
        assert!(
            reclaim <= bandwidth * 1.1 && reclaim >= bandwidth / 2.0,
            "{reclaim} {bandwidth}"
        );
    }

    /// Checks that [`fit::scaled`] and the simulation agree for a way on one CPU.
    #[test]
    fn ways_of_one_cpu_are_as_long_as_they_are_large() {
        for way in [Way::LinuxBefore, Way::LinuxAfter, Way::Dynamic] {
            let scaled = fit::scaled(&task(way, 1, 4).run().unwrap(), 2, 64, &fit::cost());
            let run = task(way, 2, 64).run().unwrap();
            let off = scaled.seconds / run.seconds - 1.0;
            assert!(off.abs() < 0.02, "{way:?}: {off}");
        }
    }
}

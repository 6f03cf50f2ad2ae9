//! The ways to take a TD down, each run once: what it did, and how long that took.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::vec;

use anyhow::{Result, anyhow, bail, ensure};
use hypervisor::platform::Platform;
use mm::private::{Clearing, Cpu, Outcome, Plan, PrivateMap, Reclaim, Step};
use seam::abi::{PAGE_1G, PAGE_4K, PageSize};

use super::cost::{Cost, Number};
use super::linux::Linux;
use super::machine::{Charge, Line, Sums};
use super::td::Td;
use super::world::{GLOBAL_HKID, KickAll, Taking, Unmeasured, World};

/// A way to take a TD down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Linux, page by page with the key; then the key.
    LinuxBefore,
    /// Linux, first the key, then page by page.
    LinuxAfter,
    /// Ours, dynamic removal of 4 KiB pages; then the key.
    Dynamic,
    /// Ours, first the key, then 4 KiB pages in bulk.
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

    /// As tables and files have it.
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

    /// The size of the TD's pages.
    pub const fn page(self) -> PageSize {
        match self {
            Self::Terminate2m => PageSize::Size2M,
            Self::Terminate1g => PageSize::Size1G,
            _ => PageSize::Size4K,
        }
    }
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Task {
    pub way: Way,
    pub gib: u64,
    pub cpus: u32,
    pub cost: Cost,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Run {
    pub way: Way,
    pub gib: u64,
    pub cpus: u32,
    /// Until everything is the host's again and cleared.
    pub seconds: f64,
    /// Until the HKID was.
    pub hkid_free_seconds: f64,
    /// SEAMCALLs for each 4 KiB.
    pub calls_per_4k: f64,
    pub limit: Limit,
    pub sums: Sums,
}

/// What more CPUs would not make faster, or would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The CPUs.
    Cpus,
    /// A cache line that all of them change.
    Line,
    /// The memory's bandwidth.
    Memory,
    /// Units of work: too few, or the last ones.
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

    /// Whatever was busy for most of the time.
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

impl Task {
    /// Builds the TD and takes it down.
    pub fn run(&self) -> Result<Run> {
        let bytes = self.gib * PAGE_1G;
        // The S-EPT and the control pages beside it.
        let memory = bytes + (bytes / 256).next_multiple_of(PAGE_1G) + 2 * PAGE_1G;
        let world = World::new(self.cost.clone(), self.cpus, memory)?;
        let td = Td::build(&world, bytes, self.way.page())?;
        let linux = match self.way {
            Way::LinuxBefore | Way::LinuxAfter => Some(Linux::new(&world, &td, bytes)?),
            _ => None,
        };
        let built = world.calls();
        world.take(Taking::Now);
        if let (Way::LinuxBefore, Some(linux)) = (self.way, &linux) {
            linux.remove()?;
        }
        if self.way == Way::Dynamic {
            self.remove(&world, &td, bytes)?;
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

    /// Dynamic removal of everything, on one CPU.
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

    /// Bulk reclaim on all CPUs; when the last of them was done.
    fn reclaim(&self, world: &World, td: Td) -> Result<u64> {
        let (map, control) = td.into_parts();
        let plan = Plan {
            cpus: self.cpus,
            clearing: Clearing::Clear,
            global_hkid: GLOBAL_HKID,
        };
        let begun = Reclaim::new(map, control, plan, &Unmeasured);
        let reclaim = begun.map_err(|(error, ..)| anyhow!("{error}"))?;
        let end = take_turns(world, &reclaim, self.cpus)?;
        let progress = reclaim.progress(&Unmeasured);
        ensure!(progress.is_done && progress.quarantined == 0);
        Ok(end)
    }
}

/// A CPU, what it has noted, and when it comes to that.
struct Worker {
    noted: vec::IntoIter<Charge>,
    /// Whether it has done something since it was looked at last.
    has_worked: bool,
}

/// Lets every CPU work, in the order of their clocks: whoever is first incurs its next charge. When the last of them had
/// done something.
fn take_turns(world: &World, reclaim: &Reclaim<PrivateMap>, cpus: u32) -> Result<u64> {
    let start = world.clock(0);
    let mut workers: Vec<_> = (0..cpus)
        .map(|_| Worker {
            noted: Vec::new().into_iter(),
            has_worked: false,
        })
        .collect();
    let mut turns: BinaryHeap<_> = (0..cpus).map(|cpu| Reverse((start, cpu))).collect();
    let mut end = start;
    'turns: while let Some(Reverse((mut now, cpu))) = turns.pop() {
        let worker = &mut workers[cpu as usize];
        // Its turn lasts for as long as no other CPU is before it.
        while turns.peek().is_none_or(|Reverse(next)| (now, cpu) <= *next) {
            if let Some(charge) = worker.noted.next() {
                now = world.core.time().machine.pass(cpu, now, charge);
                continue;
            }
            if std::mem::take(&mut worker.has_worked) {
                end = end.max(now);
            }
            world.turn(cpu);
            // Looking at the map's root takes its lock and lets it go.
            let root = Charge::Touch(Line::Root);
            world.charge(&[Charge::Spend(Number::HostStep, 1.0), root, root]);
            let tdh = world.on(cpu);
            let on = Cpu {
                tdh: &tdh,
                pool: world.pool(),
            };
            let step = reclaim.work(on, cpu, &Unmeasured);
            let noted = world.noted();
            match step {
                Step::More => {
                    worker.noted = noted.into_iter();
                    worker.has_worked = true;
                }
                Step::Idle => {
                    let poll = Charge::Spend(Number::Poll, 1.0);
                    now = world.core.time().machine.pass(cpu, now, poll);
                }
                Step::Done => continue 'turns,
                Step::Stuck => bail!("{:?}", reclaim.last_refusal()),
            }
        }
        turns.push(Reverse((now, cpu)));
    }
    Ok(end)
}

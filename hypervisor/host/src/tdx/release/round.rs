//! TDH.PHYMEM.CACHE.WB on one CPU of each package that needs it, in parallel. All CPUs return after each step to serve
//! their interrupts, and then continue.

use alloc::{collections::BTreeMap, vec::Vec};

use seam::{
    error::{Error, Recovery},
    tdh::resume::{CacheWbRound, Step},
};
use sync::Mutex;
use sync::call::NoAnswer;

use super::{Turn, Why, WriteBack};
use crate::platform::Platform;

/// Maximum number of CPUs to try per package if they do not answer.
const MAX_TRIED: usize = 4;

/// State of the caches of a package.
#[derive(Debug, Default)]
pub struct Package {
    written: u64,
    under_way: Option<Pass>,
}

impl Package {
    /// Returns the start time of the last completed pass; 0 for none.
    pub const fn written(&self) -> u64 {
        self.written
    }
}

/// A pass over the caches of one package.
#[derive(Debug)]
struct Pass {
    round: CacheWbRound,
    begun: u64,
}

/// A round of write-backs on several packages.
pub struct Round {
    at_work: Vec<Leader>,
    done: Vec<(WriteBack, u64)>,
    failed: Vec<(u32, Why, Option<Pass>)>,
}

/// A package, and the CPU that does its work: the first of `cpus`.
struct Leader {
    package: u32,
    cpus: Vec<u32>,
    silent: Vec<u32>,
    pass: Mutex<Pass>,
    outcome: Mutex<Option<Result<Step, Error>>>,
    start_us: u64,
}

impl Round {
    /// Begins a round for all TDs that were flushed at `last` or before. An interrupted pass that began later is
    /// resumed.
    pub fn begin<P: Platform>(platform: &P, turn: &mut Turn, last: u64) -> Self {
        let mut packages: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for place in platform.cpus() {
            packages.entry(place.package).or_default().push(place.cpu);
        }
        let me = platform.this_cpu();
        let mut at_work = Vec::new();
        for (package, mut cpus) in packages {
            let now = turn.tick();
            let known = turn.packages.entry(package).or_default();
            if known.written > last {
                continue;
            }
            let resumed = known.under_way.take().filter(|pass| pass.begun > last);
            // The calling CPU need not be called, and serves its interrupts by itself.
            cpus.sort_by_key(|cpu| *cpu != me);
            cpus.truncate(MAX_TRIED);
            at_work.push(Leader {
                package,
                cpus,
                silent: Vec::new(),
                pass: Mutex::new(resumed.unwrap_or(Pass {
                    round: CacheWbRound::new(),
                    begun: now,
                })),
                outcome: Mutex::new(None),
                start_us: platform.now_us(),
            });
        }
        Self {
            at_work,
            done: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Makes one call on each package that is not done.
    pub fn step<P: Platform>(&mut self, platform: &P) -> Step {
        if self.at_work.is_empty() {
            return Step::Done;
        }
        let at_work = &self.at_work;
        let leaders: Vec<u32> = at_work.iter().filter_map(Leader::cpu).collect();
        let answer = platform.on_each(&leaders, &|cpu| {
            if let Some(leader) = at_work.iter().find(|l| l.cpu() == Some(cpu)) {
                let outcome = leader.pass.lock().round.step(&platform.tdh());
                *leader.outcome.lock() = Some(outcome);
            }
        });
        let silent = answer.err().unwrap_or(NoAnswer::of(&[]));
        for leader in core::mem::take(&mut self.at_work) {
            self.judge(leader, &silent, platform.now_us());
        }
        Step::More
    }

    fn judge(&mut self, mut leader: Leader, silent: &[u32], now_us: u64) {
        let package = leader.package;
        let outcome = leader.outcome.get_mut().take();
        match outcome {
            Some(Ok(Step::More)) => self.at_work.push(leader),
            Some(Ok(Step::Done)) => {
                let pass = leader.pass.into_inner();
                let written = WriteBack {
                    package,
                    us: now_us - leader.start_us,
                    interruptions: pass.round.interruptions(),
                };
                self.done.push((written, pass.begun));
            }
            Some(Err(error)) => {
                // A pass that can't succeed from its current position starts over in the next attempt.
                let pass = Some(leader.pass.into_inner());
                let pass = pass.filter(|_| error.recovery() == Recovery::Retry);
                self.failed
                    .push((package, Why::WriteBack { package, error }, pass));
            }
            None => {
                let (gone, left) = leader.cpus.drain(..).partition(|cpu| silent.contains(cpu));
                leader.silent.extend::<Vec<u32>>(gone);
                leader.cpus = left;
                if leader.cpus.is_empty() {
                    let cpus = NoAnswer::of(&leader.silent);
                    let pass = Some(leader.pass.into_inner());
                    self.failed
                        .push((package, Why::Silent { package, cpus }, pass));
                } else {
                    self.at_work.push(leader);
                }
            }
        }
    }

    /// Records the state of each package. Returns those written back, and those that failed with the reason.
    pub fn end(self, turn: &mut Turn) -> (Vec<WriteBack>, Vec<(u32, Why)>) {
        let mut done = Vec::new();
        for (written, begun) in self.done {
            turn.packages.entry(written.package).or_default().written = begun;
            done.push(written);
        }
        let mut failed = Vec::new();
        for (package, why, pass) in self.failed {
            turn.packages.entry(package).or_default().under_way = pass;
            failed.push((package, why));
        }
        (done, failed)
    }
}

impl Leader {
    fn cpu(&self) -> Option<u32> {
        self.cpus.first().copied()
    }
}

//! What was done with a TD, in phases: how long each took, and which SEAMCALLs were made in it.

use alloc::{string::String, vec::Vec};

use seam::abi::Leaf;

use crate::platform::Platform;

/// What was done, in phases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The phases, in their order.
    pub phases: Vec<Phase>,
    /// Elapsed microseconds. Phases may overlap, so that this is not their sum.
    pub us: u64,
}

/// One phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What was done.
    pub name: String,
    /// Elapsed microseconds; `None` of a phase that runs within the one before it.
    pub us: Option<u64>,
    /// Microseconds that CPUs were busy with it, added up. Where CPUs only answer the one that leads, its time alone.
    pub cpu_us: u64,
    /// SEAMCALLs by leaf, every try counted, those of zero left out. Calls of other TDs that were made at the same time
    /// are among them, but none of TDH.VP.ENTER.
    pub calls: Vec<(Leaf, u64)>,
}

impl Summary {
    /// Microseconds that CPUs were busy with all phases, added up.
    #[must_use]
    pub fn cpu_us(&self) -> u64 {
        self.phases.iter().map(|phase| phase.cpu_us).sum()
    }

    /// SEAMCALLs by leaf of all phases.
    #[must_use]
    pub fn calls(&self) -> Vec<(Leaf, u64)> {
        let mut all: Vec<(Leaf, u64)> = Vec::new();
        for (leaf, count) in self.phases.iter().flat_map(|phase| &phase.calls) {
            match all.iter_mut().find(|(known, _)| known == leaf) {
                Some((_, sum)) => *sum += count,
                None => all.push((*leaf, *count)),
            }
        }
        all.sort_unstable_by_key(|(leaf, _)| *leaf as u16);
        all
    }

    /// Puts the phases of `other` behind.
    pub fn append(&mut self, mut other: Self) {
        self.phases.append(&mut other.phases);
        self.us += other.us;
    }
}

/// Measures phases.
#[derive(Debug)]
pub struct Meter<'p, P> {
    platform: &'p P,
    summary: Summary,
}

impl<'p, P: Platform> Meter<'p, P> {
    /// Of work on this machine.
    pub const fn new(platform: &'p P) -> Self {
        Self {
            platform,
            summary: Summary {
                phases: Vec::new(),
                us: 0,
            },
        }
    }

    /// Does `work` as a phase. One that fails is one, too.
    pub fn phase<R>(&mut self, name: &str, work: impl FnOnce() -> R) -> R {
        let (calls, us) = (self.calls(), self.platform.now_us());
        let result = work();
        let us = self.platform.now_us() - us;
        let calls = calls
            .into_iter()
            .zip(self.calls())
            .map(|((leaf, before), (_, after))| (leaf, after - before))
            .filter(|(_, count)| *count > 0)
            .collect();
        self.summary.us += us;
        self.summary.phases.push(Phase {
            name: name.into(),
            us: Some(us),
            cpu_us: us,
            calls,
        });
        result
    }

    /// Puts `parts` in the place of the last phase: their names, their times, and which of its calls were made in them.
    pub fn divide(&mut self, parts: impl IntoIterator<Item = (String, u64, &'static [Leaf])>) {
        let Some(whole) = self.summary.phases.pop() else {
            return;
        };
        let mut calls = whole.calls;
        for (name, us, leafs) in parts {
            let (own, rest) = calls
                .into_iter()
                .partition(|(leaf, _)| leafs.contains(leaf));
            calls = rest;
            self.summary.phases.push(Phase {
                name,
                us: Some(us),
                cpu_us: us,
                calls: own,
            });
        }
    }

    /// What was measured since this was asked last.
    pub fn take(&mut self) -> Summary {
        core::mem::take(&mut self.summary)
    }

    /// What was measured.
    #[must_use]
    pub fn finish(self) -> Summary {
        self.summary
    }

    fn calls(&self) -> Vec<(Leaf, u64)> {
        let cpus = self.platform.cpus();
        let leafs = Leaf::ALL.iter().filter(|leaf| **leaf != Leaf::VpEnter);
        leafs
            .map(|leaf| {
                let counts = cpus.iter().map(|place| {
                    let counters = self.platform.counters(place.cpu);
                    counters.map_or(0, |counters| counters.leaf(*leaf).calls)
                });
                (*leaf, counts.sum())
            })
            .collect()
    }
}

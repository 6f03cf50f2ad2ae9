//! Measures operations on a TD by phase: their duration, and their SEAMCALLs.

use alloc::{string::String, vec::Vec};

use seam::abi::Leaf;

use crate::platform::Platform;

/// The phases of an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The phases in order.
    pub phases: Vec<Phase>,
    /// Elapsed microseconds. Phases may overlap, so this is not their sum.
    pub us: u64,
}

/// A phase of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Name of the phase.
    pub name: String,
    /// Elapsed microseconds; `None` for a phase that runs within the previous one.
    pub us: Option<u64>,
    /// CPU time in microseconds, summed over CPUs. If other CPUs only answer the leading CPU, its time alone.
    pub cpu_us: u64,
    /// SEAMCALLs by leaf, counting every try, without leaves of zero calls. Concurrent calls for other TDs are
    /// included, except TDH.VP.ENTER.
    pub calls: Vec<(Leaf, u64)>,
}

/// A part of a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the phase that the part becomes.
    pub name: String,
    /// Elapsed microseconds.
    pub us: u64,
    /// The leaves whose calls belong to the part.
    pub leafs: &'static [Leaf],
}

impl Summary {
    /// Returns the CPU time of all phases in microseconds.
    #[must_use]
    pub fn cpu_us(&self) -> u64 {
        self.phases.iter().map(|phase| phase.cpu_us).sum()
    }

    /// Returns the SEAMCALLs of all phases by leaf.
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

    /// Appends the phases of `other`.
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
    /// Creates a meter for work on this machine.
    pub const fn new(platform: &'p P) -> Self {
        Self {
            platform,
            summary: Summary {
                phases: Vec::new(),
                us: 0,
            },
        }
    }

    /// Runs `work` as a phase, which counts even if it fails.
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

    /// Replaces the last phase by its parts.
    pub fn divide(&mut self, parts: impl IntoIterator<Item = Part>) {
        let Some(whole) = self.summary.phases.pop() else {
            return;
        };
        let mut calls = whole.calls;
        for Part { name, us, leafs } in parts {
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

    /// Returns the measurements since the last call.
    pub fn take(&mut self) -> Summary {
        core::mem::take(&mut self.summary)
    }

    /// Returns the measurements.
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

//! Rates: the difference between two samples of the host's counts.
//!
//! The console samples the host every [`PERIOD_US`] and keeps two samples, so that each command has rates of the last
//! few seconds at hand, and needs not wait.

use alloc::vec::Vec;

use serde::Serialize;

use super::host::{
    Management,
    load::{PackageSample, Sample, Spent, TdSample},
};

/// Microseconds between two samples.
pub const PERIOD_US: u64 = 2_000_000;

/// The last samples.
#[derive(Debug, Default)]
pub struct Load {
    older: Option<Sample>,
    newer: Option<Sample>,
}

impl Load {
    /// Returns true if it is time for a sample.
    pub fn is_due(&self, now_us: u64) -> bool {
        let last = self.newer.as_ref();
        last.is_none_or(|sample| now_us.saturating_sub(sample.us) >= PERIOD_US)
    }

    /// Takes a sample if it is time.
    pub fn sample(&mut self, host: &dyn Management) {
        if self.is_due(host.now_us()) {
            let mut sample = host.sample();
            sample.packages.shrink_to_fit();
            sample.tds.shrink_to_fit();
            // From the first sample on there are two, so that the console's part of the heap does not grow later.
            let before = self.newer.take().unwrap_or_else(|| sample.clone());
            (self.older, self.newer) = (Some(before), Some(sample));
        }
    }

    /// Returns the rates between the older sample and `now`.
    pub fn until(&self, now: &Sample) -> Option<Rates> {
        let before = self.older.as_ref().or(self.newer.as_ref())?;
        let us = now.us.checked_sub(before.us).filter(|us| *us > 0)?;
        Some(Rates {
            us,
            packages: packages(before, now, us),
            calls_per_second: per_second(now.calls.saturating_sub(before.calls), us),
            tds: now
                .tds
                .iter()
                .filter_map(|td| {
                    let before = before.tds.iter().find(|before| before.id == td.id)?;
                    TdRates::between(before, td, us)
                })
                .collect(),
        })
    }
}

/// Rates of the host.
#[derive(Clone, Debug)]
pub struct Rates {
    /// The microseconds over which they were measured.
    pub us: u64,
    /// The CPUs by package.
    pub packages: Vec<PackageRates>,
    /// SEAMCALLs in a second.
    pub calls_per_second: u64,
    /// The TDs, without those that are new.
    pub tds: Vec<TdRates>,
}

impl Rates {
    /// Returns the rates of a TD.
    pub fn td(&self, id: u32) -> Option<TdRates> {
        self.tds.iter().find(|td| td.id == id).copied()
    }

    /// Returns exits in a second, over all TDs.
    pub fn exits_per_second(&self) -> u64 {
        self.tds.iter().map(|td| td.exits_per_second).sum()
    }

    /// Returns the vCPUs that ran or wanted to run, on average, in thousandths.
    pub fn load_permille(&self) -> u64 {
        let all = self.tds.iter();
        all.map(|td| td.run_permille + td.steal_permille).sum()
    }
}

/// The CPUs of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PackageRates {
    /// The package.
    pub package: u32,
    /// Number of CPUs that run the hypervisor.
    pub cpus: u32,
    /// The part of the time in which they were not halted, in thousandths of all of them.
    pub busy_permille: u64,
}

/// Rates of a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdRates {
    #[serde(skip)]
    id: u32,
    /// Time that its vCPUs ran, in thousandths of one CPU. This holds for the next two, too.
    pub run_permille: u64,
    /// Time that its vCPUs waited for an event.
    pub wait_permille: u64,
    /// Time that its vCPUs could have run but had no CPU.
    pub steal_permille: u64,
    /// Exits to the host in a second.
    pub exits_per_second: u64,
}

impl TdRates {
    /// Returns `None` if the TD was built again in between: its counts began anew.
    fn between(before: &TdSample, now: &TdSample, us: u64) -> Option<Self> {
        let since = |of: fn(&Spent) -> u64| of(&now.spent).checked_sub(of(&before.spent));
        Some(Self {
            id: now.id,
            run_permille: permille(since(|spent| spent.run_us)?, us),
            wait_permille: permille(since(|spent| spent.wait_us)?, us),
            steal_permille: permille(since(|spent| spent.steal_us)?, us),
            exits_per_second: per_second(since(|spent| spent.exits)?, us),
        })
    }
}

fn packages(before: &Sample, now: &Sample, us: u64) -> Vec<PackageRates> {
    let rate = |package: &PackageSample| {
        let mut all = before.packages.iter();
        let before = all.find(|before| before.package == package.package)?;
        let idle = package.idle_us.saturating_sub(before.idle_us);
        let all_us = us * u64::from(package.cpus.max(1));
        Some(PackageRates {
            package: package.package,
            cpus: package.cpus,
            busy_permille: permille(all_us.saturating_sub(idle), all_us),
        })
    };
    now.packages.iter().filter_map(rate).collect()
}

fn permille(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 1000 / u128::from(whole.max(1))) as u64
}

fn per_second(count: u64, us: u64) -> u64 {
    (u128::from(count) * 1_000_000 / u128::from(us.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use super::Load;
    use crate::host::{
        Heap, Ledger,
        load::{PackageSample, Sample, Spent, TdSample},
        td::TdState,
    };

    fn sample(us: u64, idle_us: u64, tds: &[(u32, u64)]) -> Sample {
        let td = |(id, run_us): &(u32, u64)| TdSample {
            id: *id,
            name: "td".into(),
            state: TdState::Runnable,
            vcpus: 2,
            spent: Spent {
                run_us: *run_us,
                wait_us: us,
                steal_us: us / 4,
                exits: *run_us / 10,
            },
            private_bytes: 0,
            memory_bytes: 0,
        };
        Sample {
            us,
            packages: vec![PackageSample {
                package: 1,
                cpus: 2,
                idle_us,
            }],
            calls: us / 2,
            memory: Ledger::new(0, 0, 0, 0),
            heap: Heap {
                total_bytes: 0,
                used_bytes: 0,
            },
            tds: tds.iter().map(td).collect(),
        }
    }

    #[test]
    fn rates_are_differences_over_time() {
        let load = Load {
            older: Some(sample(1_000_000, 500, &[(1, 0), (2, 7_000_000)])),
            newer: None,
        };
        let now = sample(3_000_000, 3_000_500, &[(1, 3_000_000), (2, 10), (3, 5)]);
        let rates = load.until(&now).expect("rates");
        assert_eq!((rates.us, rates.calls_per_second), (2_000_000, 500_000));
        assert_eq!(rates.packages[0].busy_permille, 250);
        let td = rates.td(1).expect("it was there before");
        assert_eq!((td.run_permille, td.wait_permille), (1500, 1000));
        assert_eq!((td.steal_permille, td.exits_per_second), (250, 150_000));
        assert_eq!(rates.load_permille(), 1750);
        let ids: Vec<u32> = rates.tds.iter().map(|td| td.id).collect();
        assert_eq!(ids, [1], "one was built again, one is new");
    }

    #[test]
    fn without_time_in_between_there_are_no_rates() {
        let now = sample(5, 0, &[]);
        assert!(Load::default().until(&now).is_none());
        let load = Load {
            older: Some(sample(5, 0, &[])),
            newer: None,
        };
        assert!(load.until(&now).is_none());
    }
}

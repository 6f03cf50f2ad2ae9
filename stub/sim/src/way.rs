//! The ways to end a TD, and one simulation of one of them.

use std::fmt;

use crate::cost::Costs;
use crate::error::Error;
use crate::linux::{self, Order};
use crate::machine::Topology;
use crate::ours::{self, Ended};
use crate::site::{Leaves, Site};

/// A way to end a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// Linux, page by page, with the TD's key.
    LinuxBefore,
    /// Linux, page by page, after giving the HKID back.
    LinuxAfter,
    /// Our dynamic removal, with the TD's key.
    Dynamic,
    /// Our terminate of a TD that is mapped in 4 KiB pages.
    Terminate4k,
    /// In 2 MiB pages.
    Terminate2m,
    /// In 1 GiB pages.
    Terminate1g,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::LinuxBefore,
        Self::LinuxAfter,
        Self::Dynamic,
        Self::Terminate4k,
        Self::Terminate2m,
        Self::Terminate1g,
    ];

    /// Its name in reports.
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

    /// Whether only one CPU takes the memory back. Then each page takes as long as any other.
    pub const fn is_serial(self) -> bool {
        matches!(self, Self::LinuxBefore | Self::LinuxAfter | Self::Dynamic)
    }

    /// Whether it works on 4 KiB pages, each of which has to be simulated.
    pub const fn is_small(self) -> bool {
        !matches!(self, Self::Terminate2m | Self::Terminate1g)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setup {
    /// How the TD ends.
    pub way: Way,
    /// Its size, in GiB.
    pub gib: u64,
    /// CPUs, each with a vCPU.
    pub cpus: u32,
    /// The cost model.
    pub costs: Costs,
    /// MiB that are simulated; where that is less than all, times are those of the slice, scaled.
    pub slice_mib: u64,
}

impl Setup {
    /// Of all of a TD, with the default costs.
    #[must_use]
    pub fn new(way: Way, gib: u64, cpus: u32) -> Self {
        Self {
            way,
            gib,
            cpus,
            costs: Costs::default(),
            slice_mib: gib << 10,
        }
    }

    /// With other costs.
    #[must_use]
    pub const fn with(mut self, costs: Costs) -> Self {
        self.costs = costs;
        self
    }

    /// With a slice of at most so many MiB.
    #[must_use]
    pub fn at_most(mut self, mib: u64) -> Self {
        self.slice_mib = mib.min(self.gib << 10);
        self
    }

    /// Whether less than all is simulated.
    pub const fn is_slice(&self) -> bool {
        self.slice_mib < self.gib << 10
    }

    /// Packages that the CPUs are in.
    pub const fn packages(&self) -> u32 {
        Topology::packages_of(self.cpus)
    }

    /// GiB of memory that its server needs.
    pub const fn room_gib(&self) -> u64 {
        self.slice_mib.div_ceil(1 << 10)
    }
}

/// A simulation's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// What was simulated.
    pub setup: Setup,
    /// How it went; for a slice, as it would go for the whole.
    pub ended: Ended,
}

impl Run {
    /// What most of its CPUs' time goes into.
    pub fn limit(&self) -> &'static str {
        let usage = &self.ended.usage;
        let [calls, clearing, books, interrupts] = usage.spent;
        let [lines, memory] = usage.waited;
        let cpus = if self.setup.way.is_serial() {
            1
        } else {
            self.setup.cpus
        };
        let busy: f64 = usage.spent.iter().chain(&usage.waited).sum();
        let idle = self.ended.seconds * f64::from(cpus) - busy;
        let shares = [
            ("SEAMCALLs", calls),
            ("clearing", clearing),
            ("the host's books", books),
            ("kicks", interrupts),
            (usage.line, lines),
            ("memory bandwidth", memory),
            ("too few regions", idle),
        ];
        let largest = shares.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        largest.map_or("", |(name, _)| name)
    }
}

/// Simulates the end of a TD on a server that has room for it and as many packages.
///
/// # Errors
/// What went wrong.
pub fn simulate(site: &Site, setup: Setup) -> Result<Run, Error> {
    let bytes = setup.slice_mib << 20;
    let Setup { cpus, costs, .. } = setup;
    if bytes == 0 || bytes > site.room() {
        return Err(Error::new("the TD", "it does not fit the server"));
    }
    let mut ended = match setup.way {
        Way::LinuxBefore => linux::end(site, Order::Before, bytes, cpus, costs),
        Way::LinuxAfter => linux::end(site, Order::After, bytes, cpus, costs),
        Way::Dynamic => ours::dynamic(site, bytes, cpus, costs),
        Way::Terminate4k => ours::terminate(site, bytes, Leaves::Small, cpus, costs),
        Way::Terminate2m => ours::terminate(site, bytes, Leaves::Large, cpus, costs),
        Way::Terminate1g => ours::terminate(site, bytes, Leaves::Huge, cpus, costs),
    }?;
    if setup.is_slice() {
        ended = scaled(ended, setup);
    }
    Ok(Run { setup, ended })
}

/// What a slice took, as the whole would.
fn scaled(slice: Ended, setup: Setup) -> Ended {
    let factor = (setup.gib << 10) as f64 / setup.slice_mib as f64;
    let more = slice.memory_seconds * (factor - 1.0);
    let is_removed_first = matches!(setup.way, Way::LinuxBefore | Way::Dynamic);
    let mut usage = slice.usage;
    usage.spent = usage.spent.map(|seconds| seconds * factor);
    usage.waited = usage.waited.map(|seconds| seconds * factor);
    Ended {
        seconds: slice.seconds + more,
        hkid_free_seconds: slice.hkid_free_seconds + if is_removed_first { more } else { 0.0 },
        memory_seconds: slice.memory_seconds + more,
        write_back_seconds: slice.write_back_seconds,
        calls: (slice.calls as f64 * factor) as u64,
        usage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(setup: Setup) -> Run {
        let site = Site::new(setup.packages(), setup.room_gib()).unwrap();
        simulate(&site, setup).unwrap()
    }

    #[test]
    fn every_way_takes_everything_back_and_ours_are_faster() {
        let site = Site::new(1, 1).unwrap();
        let seconds = |way| {
            let run = simulate(&site, Setup::new(way, 1, 4)).unwrap();
            run.ended.seconds
        };
        assert!(1.3 * seconds(Way::Dynamic) < seconds(Way::LinuxBefore));
        let [small, large, huge] =
            [Way::Terminate4k, Way::Terminate2m, Way::Terminate1g].map(seconds);
        assert!(4.0 * small < seconds(Way::LinuxAfter));
        assert!(6.0 * large < small && huge < large);
    }

    #[test]
    fn the_same_twice_is_the_same() {
        for way in Way::ALL {
            let setup =
                Setup::new(way, 1, 64).at_most(if way == Way::Terminate1g { 1024 } else { 16 });
            assert_eq!(run(setup), run(setup), "{way}");
        }
    }

    #[test]
    fn a_second_run_on_the_same_server_is_as_the_first() {
        let site = Site::new(1, 1).unwrap();
        let setup = Setup::new(Way::Terminate4k, 1, 8).at_most(128);
        let first = simulate(&site, setup).unwrap();
        let second = simulate(&site, setup).unwrap();
        assert_eq!(first.ended.seconds, second.ended.seconds);
    }

    #[test]
    fn serial_ways_scale_with_the_size() {
        let site = Site::new(1, 1).unwrap();
        for way in [Way::LinuxBefore, Way::LinuxAfter, Way::Dynamic] {
            let whole = simulate(&site, Setup::new(way, 1, 4)).unwrap();
            let slice = simulate(&site, Setup::new(way, 1, 4).at_most(32)).unwrap();
            let error = slice.ended.seconds / whole.ended.seconds - 1.0;
            assert!(error.abs() < 0.01, "{way}: {error}");
        }
    }

    #[test]
    fn the_hkid_is_free_before_any_memory_is_back_and_says_what_it_waited_for() {
        let run = run(Setup::new(Way::Terminate2m, 2, 64));
        let ended = &run.ended;
        assert!(ended.hkid_free_seconds - ended.write_back_seconds < 0.1);
        assert!(ended.hkid_free_seconds < ended.seconds);
        let both = ended.hkid_free_seconds + ended.memory_seconds;
        assert!((both - ended.seconds).abs() < 1e-9);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let site = Site::new(1, 1).unwrap();
        assert!(simulate(&site, Setup::new(Way::Terminate2m, 2, 4)).is_err());
        assert!(simulate(&site, Setup::new(Way::Terminate2m, 1, 64)).is_err());
    }
}

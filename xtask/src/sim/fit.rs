//! The fitted numbers, with which Linux's way takes the measured time.
//!
//! Linux's way is serial and the same for each page, so its time is a sum: the SEAMCALLs, clears and kicks for a page,
//! times the number of pages. Four numbers follow from six measurements.

use super::cost::{Cost, Number};
use super::machine::{Sums, package_of};
use super::ways::{Run, Way};

/// A measurement of Linux's whole shutdown of a TD.
///
/// Source: the cover letter of the Linux change that introduced KVM_TDX_TERMINATE_VM.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub way: Way,
    pub cpus: u32,
    pub gib: u64,
    pub seconds: f64,
}

pub const MEASURED: [Measured; 6] = [
    measured(Way::LinuxBefore, 4, 18, 72.0),
    measured(Way::LinuxBefore, 32, 107, 517.0),
    measured(Way::LinuxBefore, 64, 400, 5539.0),
    measured(Way::LinuxAfter, 4, 18, 24.0),
    measured(Way::LinuxAfter, 32, 107, 134.0),
    measured(Way::LinuxAfter, 64, 400, 467.0),
];

const fn measured(way: Way, cpus: u32, gib: u64, seconds: f64) -> Measured {
    Measured {
        way,
        cpus,
        gib,
        seconds,
    }
}

/// Maximum relative deviation of the model from a measurement.
pub const TOLERANCE: f64 = 0.2;

/// Returns the measurement of this case, if there is one.
pub fn measurement(way: Way, gib: u64, cpus: u32) -> Option<f64> {
    let found = MEASURED
        .iter()
        .find(|m| m.way == way && m.gib == gib && m.cpus == cpus);
    found.map(|measured| measured.seconds)
}

/// Returns the cost model with the fitted numbers.
pub fn cost() -> Cost {
    // Nanoseconds for a page of 4 KiB. The S-EPT's share is ignored: it is a 512th.
    let per_page = |index: usize| {
        let measured: Measured = MEASURED[index];
        let pages = measured.gib as f64 * (1u64 << 18) as f64;
        measured.seconds * 1e9 / pages
    };
    let unfitted = Cost::with_fitted([
        (Number::Seamcall, 0.0),
        (Number::LinuxPage, 0.0),
        (Number::KickNear, 0.0),
        (Number::KickFar, 0.0),
    ]);
    let clear = unfitted[Number::ClearCpu];
    // After the change, a page takes one call, clearing, and Linux's own work, whatever the size. The geometric mean
    // of the three measurements has the least relative error.
    let after = (per_page(3) * per_page(4) * per_page(5)).cbrt();
    // Before the change, a page takes four calls and a kick of all vCPUs. With 4 and 32 vCPUs all are in one package;
    // the difference is 28 near kicks.
    let near = (per_page(1) - per_page(0)) / 28.0;
    let before = per_page(0) - 4.0 * near;
    // With 64 vCPUs there are two packages.
    let far = (per_page(2) - before - 32.0 * near) / 32.0;
    let call = (before - after) / 3.0;
    Cost::with_fitted([
        (Number::Seamcall, call),
        (Number::LinuxPage, after - call - clear),
        (Number::KickNear, near),
        (Number::KickFar, far),
    ])
}

/// Scales a run on one CPU to another TD. The work for a page is the same, except for the number of vCPUs that must
/// leave the guest.
pub fn scaled(run: &Run, gib: u64, cpus: u32, cost: &Cost) -> Run {
    let factor = gib as f64 / run.gib as f64;
    let mut sums = Sums::default();
    for (number, count) in &run.sums.counts {
        sums.counts.insert(*number, count * factor);
    }
    // A round of kicks has one kick for each vCPU.
    let near = |cpus| (0..cpus).filter(|cpu| package_of(*cpu, cpus) == 0).count() as f64;
    let kicked = run.sums.counts.get(&Number::KickNear);
    let rounds = kicked.map_or(0.0, |kicked| kicked / near(run.cpus)) * factor;
    let near = near(cpus);
    sums.counts.insert(Number::KickNear, rounds * near);
    sums.counts
        .insert(Number::KickFar, rounds * (f64::from(cpus) - near));
    // The time that is not spent page by page.
    let rest = run.seconds - serial_seconds(&run.sums, cost);
    let seconds = serial_seconds(&sums, cost) + rest;
    let hkid_free_seconds = match run.way {
        Way::LinuxAfter => run.hkid_free_seconds,
        _ => run.hkid_free_seconds + seconds - run.seconds,
    };
    Run {
        gib,
        cpus,
        seconds,
        hkid_free_seconds,
        sums,
        ..run.clone()
    }
}

/// Returns the time that one CPU takes for everything in `sums`.
pub fn serial_seconds(sums: &Sums, cost: &Cost) -> f64 {
    // A page that is cleared is counted twice, and one CPU never waits for the package's memory.
    let all = sums
        .counts
        .iter()
        .filter(|(number, _)| **number != Number::ClearPackage);
    all.map(|(number, count)| cost[*number] * count)
        .sum::<f64>()
        / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fitted_numbers_are_positive_and_a_far_kick_costs_more_than_a_near_one() {
        let cost = cost();
        for number in [
            Number::Seamcall,
            Number::LinuxPage,
            Number::KickNear,
            Number::KickFar,
        ] {
            assert!(cost[number] > 0.0, "{number:?}");
        }
        assert!(cost[Number::KickFar] > cost[Number::KickNear]);
    }
}

//! Fairness of the scheduler between TDs of different shares.
//!
//! All figures are the scheduler's own: the part of a vCPU's time in which it had a CPU. A busy computer can stop a
//! CPU of the machine in the middle of a turn. The scheduler counts that time as the vCPU's and gives the others as
//! much later, so that one long turn shifts the figures once, by a constant number of seconds. Unfairness grows with
//! time. The measurement therefore goes on until the deviation is small in relation to the whole, and fails if it
//! never becomes small.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Bench;
use super::stage::{CHECKS, LIFE, Named, Words, machine, nothing_is_left, show, used};
use crate::console::Console;

/// The TDs and their shares.
const TDS: [(&str, u64); 3] = [("one", 100), ("two", 100), ("three", 200)];
/// Number of vCPUs of each TD.
const VCPUS: u32 = 4;
/// Maximum relative deviation of a share.
const TOLERANCE: f64 = 0.1;
/// Time between two looks at the TDs.
const LOOK: Duration = Duration::from_secs(20);
/// Number of looks within which the deviation must become small. After the last one, a single turn shifts the figures
/// by [`TOLERANCE`] only if it took 7 s instead of a few milliseconds.
const LOOKS: u32 = 15;

/// Runs twelve vCPUs of three TDs on four CPUs: each TD must get the time that its shares give it, and its vCPUs equal
/// parts.
pub(super) fn shares(bench: &mut Bench) -> Result<()> {
    let tds = TDS.map(|(name, shares)| {
        Named::new("smp", "64M", VCPUS)
            .called(name)
            .with(format!("shares = {shares}"))
    });
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    for (name, _) in TDS {
        console.succeed(&format!("td start {name}"), LIFE)?;
    }
    for (name, _) in TDS {
        // All of its other checks are done, and from now on no vCPU halts.
        Words::of(name).wait(&mut console, "\r\nsmp: ", CHECKS)?;
    }
    let start = measure(&mut console)?;
    let mut looks = 0;
    let found = loop {
        looks += 1;
        console.guest().pause(LOOK)?;
        let now = measure(&mut console)?;
        let parts: Vec<Vec<f64>> = start.iter().zip(&now).map(parts_between).collect();
        let found = compare(&TDS.map(|(_, shares)| shares), &parts);
        if found.iter().all(Deviation::is_small) || looks == LOOKS {
            break found;
        }
    };
    bench.note(format!("{} s", looks * LOOK.as_secs() as u32));
    for ((name, shares), found) in TDS.iter().zip(&found) {
        let figures = format!(
            "{name}: {shares} shares, {:+.1} % off them, vCPUs {:+.1} % off at most",
            found.td * 100.0,
            found.vcpu * 100.0
        );
        ensure!(found.is_small(), "{figures} after {looks} looks: {found:?}");
        bench.note(figures);
    }
    nothing_is_left(&mut console, &TDS.map(|(name, _)| name), before)
}

/// The time of a vCPU in microseconds, as the scheduler counts it.
#[derive(Clone, Copy, Debug)]
struct Time {
    /// Time with a CPU.
    run: u64,
    /// All of the vCPU's time.
    all: u64,
}

fn measure(console: &mut Console) -> Result<Vec<Vec<Time>>> {
    let times = |(name, _)| times(&show(console, name)?);
    TDS.into_iter().map(times).collect()
}

fn times(report: &Value) -> Result<Vec<Time>> {
    let vcpus = report["cpus"].as_array().context("no vCPUs")?;
    let time = |vcpu: &Value| {
        let run = vcpu["run_us"].as_u64()?;
        let all = run + vcpu["wait_us"].as_u64()? + vcpu["steal_us"].as_u64()?;
        Some(Time { run, all })
    };
    let times = vcpus.iter().map(time).collect::<Option<_>>();
    times.with_context(|| format!("not every vCPU has a time: {report}"))
}

/// Returns the part of its time that each vCPU of a TD had a CPU between two looks. TDs are not looked at in the same
/// moment, so parts can be compared, and times can't.
fn parts_between((start, now): (&Vec<Time>, &Vec<Time>)) -> Vec<f64> {
    let part = |(start, now): (&Time, &Time)| {
        (now.run - start.run) as f64 / (now.all - start.all).max(1) as f64
    };
    start.iter().zip(now).map(part).collect()
}

/// The deviation of a TD, and of that vCPU of it that is farthest off, from the fair part; 0.1 is 10 % too much.
#[derive(Clone, Copy, Debug)]
struct Deviation {
    td: f64,
    vcpu: f64,
}

impl Deviation {
    fn is_small(&self) -> bool {
        self.td.abs() <= TOLERANCE && self.vcpu.abs() <= TOLERANCE
    }
}

/// Compares the parts that the vCPUs of each TD had with those that the shares give them.
fn compare(shares: &[u64], parts: &[Vec<f64>]) -> Vec<Deviation> {
    let all: f64 = parts.iter().flatten().sum();
    let sum_of_shares: u64 = shares.iter().sum();
    let of_td = |(shares, vcpus): (&u64, &Vec<f64>)| {
        let fair = all * *shares as f64 / sum_of_shares as f64;
        let off = |found: f64, fair: f64| (found - fair) / fair;
        let each = vcpus
            .iter()
            .map(|vcpu| off(*vcpu, fair / vcpus.len() as f64));
        Deviation {
            td: off(vcpus.iter().sum(), fair),
            vcpu: each
                .max_by(|a, b| a.abs().total_cmp(&b.abs()))
                .unwrap_or(0.0),
        }
    };
    shares.iter().zip(parts).map(of_td).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of two TDs with 100 and 200 shares, two vCPUs each, after so many seconds with two CPUs. The first
    /// vCPU has lost `lost` seconds to the second one of its TD, once.
    fn parts(seconds: f64, lost: f64) -> Vec<Vec<f64>> {
        let (third, off) = (1.0 / 3.0, lost / seconds);
        vec![
            vec![third - off, third + off],
            vec![2.0 * third, 2.0 * third],
        ]
    }

    fn are_small(parts: &[Vec<f64>]) -> bool {
        compare(&[100, 200], parts).iter().all(Deviation::is_small)
    }

    #[test]
    fn one_long_turn_matters_less_the_longer_the_measurement() {
        assert!(are_small(&parts(20.0, 0.1)));
        assert!(!are_small(&parts(20.0, 2.0)));
        assert!(are_small(&parts(80.0, 2.0)));
    }

    #[test]
    fn an_unfair_scheduler_stays_unfair() {
        for seconds in [20.0, 300.0] {
            // A vCPU loses a fifth of its time for ever.
            assert!(!are_small(&parts(seconds, seconds / 15.0)));
        }
        // Shares are ignored.
        assert!(!are_small(&[vec![0.5; 2], vec![0.5; 2]]));
    }

    #[test]
    fn the_vcpu_farthest_off_is_reported_with_its_sign() {
        let found = compare(&[100, 200], &parts(20.0, 2.0))[0];
        assert!(found.td.abs() < 1e-9 && (found.vcpu.abs() - 0.3).abs() < 1e-9);
        let found = compare(&[100], &[vec![0.1, 0.4, 0.4]])[0];
        assert!((found.vcpu + 2.0 / 3.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn looks_at_different_moments_give_the_same_parts() {
        let times = |run, all| vec![Time { run, all }];
        let early = parts_between((&times(10, 100), &times(60, 200)));
        let late = parts_between((&times(15, 110), &times(75, 230)));
        assert_eq!(early, late);
    }
}

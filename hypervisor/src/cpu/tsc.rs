//! Agreement of the CPUs' time-stamp counters.
//!
//! The TDX module records IA32_TSC_ADJUST in TDH.SYS.INIT and refuses every CPU with another value
//! (INCONSISTENT_MSR), so each CPU that starts takes the bootstrap CPU's. The counters themselves are compared
//! afterwards: a TD's clock jumps if its vCPU moves to a CPU whose counter differs.
//!
//! Source: Intel SDM volume 3B, section 18.17.3 (Time-Stamp Counter Adjustment).
#![expect(unsafe_code, reason = "IA32_TSC_ADJUST is an MSR")]

use alloc::{
    collections::{BTreeMap, btree_map::Entry},
    format,
    string::String,
    vec::Vec,
};
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use seam::abi::x86::msr::TSC_ADJUST;

use crate::{
    cpu::{self, Cpu},
    msr, time,
};

/// The bootstrap CPU's value.
static REFERENCE: AtomicU64 = AtomicU64::new(0);
/// Number of CPUs that had another one.
static CHANGED: AtomicU32 = AtomicU32::new(0);

/// Takes the running CPU's IA32_TSC_ADJUST as the value for all CPUs.
pub(super) fn set_reference() {
    REFERENCE.store(msr::read(TSC_ADJUST).unwrap_or(0), Relaxed);
}

/// Gives the running CPU the bootstrap CPU's IA32_TSC_ADJUST, before anything on it uses the clock. The CPU has its
/// tables, as the register may be absent.
pub(super) fn follow_reference() {
    let wanted = REFERENCE.load(Relaxed);
    // A CPU without the register has nothing to differ in.
    if msr::read(TSC_ADJUST).is_some_and(|value| value != wanted) {
        // SAFETY: the CPU has the register, every value is allowed, and nothing on this CPU has read the counter yet.
        unsafe { msr::write(TSC_ADJUST, wanted) };
        CHANGED.fetch_add(1, Relaxed);
    }
}

/// Returns the number of CPUs whose IA32_TSC_ADJUST was not the bootstrap CPU's and was changed to it.
pub(super) fn changed() -> u32 {
    CHANGED.load(Relaxed)
}

/// Rounds of a comparison; the one with the shortest answer counts.
const ROUNDS: u32 = 16;

/// Compares the counter of one CPU of every other package with this CPU's. Returns one sentence for each that differs.
pub(super) fn compare_packages() -> Vec<String> {
    let here = cpu::this().map_or(0, |cpu| cpu.place().package);
    let mut others: BTreeMap<u32, &Cpu> = BTreeMap::new();
    for cpu in cpu::all().iter().filter(|cpu| cpu.is_up()) {
        let package = cpu.place().package;
        if package != here
            && let Entry::Vacant(entry) = others.entry(package)
        {
            entry.insert(cpu);
        }
    }
    let compare = |(package, cpu): (u32, &Cpu)| {
        let ahead = difference((0..ROUNDS).filter_map(|_| sample(cpu.number)));
        (ahead != 0).then(|| sentence(package, cpu.number, ahead))
    };
    others.into_iter().filter_map(compare).collect()
}

fn sentence(package: u32, cpu: u32, ahead: i64) -> String {
    let ns = u128::from(ahead.unsigned_abs()) * 1_000_000_000 / u128::from(time::hz());
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    format!(
        "the time-stamp counter of package {package} (CPU {cpu}) is at least {ns} ns {side} CPU 0's: clocks in TDs will \
         jump; switch the machine off and on, and update its firmware if that does not help"
    )
}

/// A reading of another CPU's counter between two of this CPU's.
#[derive(Clone, Copy, Debug)]
struct Sample {
    before: u64,
    there: u64,
    after: u64,
}

fn sample(cpu: u32) -> Option<Sample> {
    let there = AtomicU64::new(0);
    let before = time::tsc();
    cpu::on_each(&[cpu], &|_| there.store(time::tsc(), SeqCst)).ok()?;
    let after = time::tsc();
    Some(Sample {
        before,
        there: there.load(SeqCst),
        after,
    })
}

/// Returns how many ticks the other counter is at least ahead (negative: behind), by the sample with the shortest
/// answer; 0 if it may agree.
fn difference(samples: impl Iterator<Item = Sample>) -> i64 {
    let best = samples.min_by_key(|s| s.after.wrapping_sub(s.before));
    let Some(Sample {
        before,
        there,
        after,
    }) = best
    else {
        return 0;
    };
    let ticks = |a: u64, b: u64| i64::try_from(a - b).unwrap_or(i64::MAX);
    match () {
        () if there > after => ticks(there, after),
        () if there < before => -ticks(before, there),
        () => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(before: u64, there: u64, after: u64) -> Sample {
        Sample {
            before,
            there,
            after,
        }
    }

    #[test]
    fn a_counter_between_two_readings_agrees() {
        assert_eq!(difference([sample(100, 150, 200)].into_iter()), 0);
        assert_eq!(difference([sample(100, 100, 100)].into_iter()), 0);
        assert_eq!(difference(core::iter::empty()), 0);
    }

    #[test]
    fn the_shortest_answer_decides() {
        let samples = [
            sample(0, 900, 1000),
            sample(2000, 2500, 2100),
            sample(3000, 3900, 4000),
        ];
        assert_eq!(difference(samples.into_iter()), 400);
        let samples = [sample(5000, 4000, 5100), sample(0, 1, 2000)];
        assert_eq!(difference(samples.into_iter()), -1000);
        assert_eq!(difference([sample(1, u64::MAX, 2)].into_iter()), i64::MAX);
    }

    #[test]
    fn a_difference_is_told_with_its_package() {
        time::set_hz(1_000_000_000);
        let told = sentence(1, 24, -500);
        assert!(
            told.starts_with(
                "the time-stamp counter of package 1 (CPU 24) is at least 500 ns behind CPU 0's"
            ),
            "{told}"
        );
    }
}

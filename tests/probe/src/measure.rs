//! What the emulation costs: a CPUID, an empty SEAMCALL, a VP.ENTER with its exit, clearing 2 MiB.
#![expect(unsafe_code, reason = "clears memory of its own")]

use core::arch::asm;

use seam::abi::{Gprs, Leaf, PAGE_2M};

use crate::attempt::clear;
use crate::cpu::{cpuid, rdtsc};
use crate::td::Td;
use crate::td::guest::program;
use crate::tdx::{call, pages};
use crate::{Check, checks, expect, serial};

/// The number of measurements of the time of each.
const ROUNDS: u64 = 3;
/// The number of repetitions in a measurement of time.
const CALLS: u64 = 50_000;
const ENTRIES: u64 = 50_000;
const CLEARINGS: u64 = 500;
/// Divides the repetitions if instructions are counted, because they do not vary.
const FEWER: u64 = 50;

#[repr(align(64))]
struct Line([u64; 8]);

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Meter {
    /// The time that the emulator needs, by whoever started it: a line says when an operation begins, and another when
    /// it is done.
    Time,
    /// Instructions of the software, the monitor and the module, on a machine whose time-stamp counter counts them. A
    /// line says the ticks of each operation.
    Instructions,
}

/// Does each of them many times.
pub fn run(meter: Meter) -> Check {
    let team = checks::bring_up()?;
    // An exit that does next to nothing: how fast this machine is.
    meter.report("cpuid", CALLS, || {
        let _ = cpuid(0, 0);
    });
    // A leaf that does nothing, and succeeds.
    let mut failed = 0;
    meter.report("empty-seamcall", CALLS, || {
        failed |= call(Leaf::MngKeyReclaimid, Gprs::default()).is_err() as u64;
    });
    expect("a SEAMCALL", failed, 0)?;

    let td = Td::build(team, 1, program::COUNT)?;
    td.hear(0, "the first number", 1)?;
    let entries = meter.times(ENTRIES);
    for round in 0..meter.rounds() {
        let first = 2 + round * entries;
        meter.measure("vp-enter", entries, || td.hear_count(0, first, entries))?;
    }
    td.end(team)?;

    let page = pages(2 * (PAGE_2M / 4096) as usize).next_multiple_of(PAGE_2M);
    let zeros = Line([0; 8]);
    meter.report("clear-2m-movdir64b", CLEARINGS, || {
        failed |= clear(page, &zeros.0, PAGE_2M / 64, true).is_err() as u64;
    });
    expect("clearing", failed, 0)?;
    meter.report("clear-2m-rep-stosq", CLEARINGS, || {
        // SAFETY: memory that was allocated for this, 2 MiB of it.
        unsafe {
            asm!("rep stosq", inout("rdi") page => _, inout("rcx") PAGE_2M / 8 => _, in("rax") 0, options(nostack));
        }
    });
    Ok(())
}

impl Meter {
    fn rounds(self) -> u64 {
        match self {
            Self::Time => ROUNDS,
            Self::Instructions => 1,
        }
    }

    fn times(self, times: u64) -> u64 {
        match self {
            Self::Time => times,
            Self::Instructions => times / FEWER,
        }
    }

    /// Does it `times` times in each round, or fewer if instructions are counted.
    fn report(self, name: &str, times: u64, mut work: impl FnMut()) {
        let times = self.times(times);
        for _ in 0..self.rounds() {
            self.measure(name, times, || (0..times).for_each(|_| work()));
        }
    }

    /// Does what does it `times` times, and reports it.
    fn measure<R>(self, name: &str, times: u64, work: impl FnOnce() -> R) -> R {
        if self == Self::Time {
            serial::line(format_args!("bench: begin {name} {times}"));
        }
        let start = rdtsc();
        let result = work();
        let ticks = rdtsc() - start;
        match self {
            Self::Time => serial::line(format_args!("bench: done {name}")),
            Self::Instructions => {
                serial::line(format_args!("bench: count {name} {}", ticks / times));
            }
        }
        result
    }
}

//! The costs of the emulation: a CPUID, an empty SEAMCALL, a VP.ENTER with its exit, clearing 2 MiB.
#![expect(unsafe_code, reason = "clears memory of its own")]

use core::arch::asm;

use seam::abi::{Gprs, Leaf, PAGE_2M};

use crate::attempt::clear;
use crate::cpu::cpuid;
use crate::td::Td;
use crate::td::guest::program;
use crate::tdx::{call, pages};
use crate::{Check, checks, expect, serial};

/// The number of measurements of each.
const ROUNDS: u64 = 3;
/// The number of repetitions in a measurement.
const CALLS: u64 = 50_000;
const ENTRIES: u64 = 50_000;
const CLEARINGS: u64 = 500;

#[repr(align(64))]
struct Line([u64; 8]);

/// Does each of them many times.
pub fn run() -> Check {
    let team = checks::bring_up()?;
    // An exit that does next to nothing: how fast this machine is.
    report("cpuid", CALLS, || {
        let _ = cpuid(0, 0);
    });
    // A leaf that does nothing, and succeeds.
    let mut failed = 0;
    report("empty-seamcall", CALLS, || {
        failed |= call(Leaf::MngKeyReclaimid, Gprs::default()).is_err() as u64;
    });
    expect("a SEAMCALL", failed, 0)?;

    let td = Td::build(team, 1, program::COUNT)?;
    td.hear(0, "the first number", 1)?;
    for round in 0..ROUNDS {
        let first = 2 + round * ENTRIES;
        timed("vp-enter", ENTRIES, || td.hear_count(0, first, ENTRIES))?;
    }
    td.end(team)?;

    let page = pages(2 * (PAGE_2M / 4096) as usize).next_multiple_of(PAGE_2M);
    let zeros = Line([0; 8]);
    report("clear-2m-movdir64b", CLEARINGS, || {
        failed |= clear(page, &zeros.0, PAGE_2M / 64, true).is_err() as u64;
    });
    expect("clearing", failed, 0)?;
    report("clear-2m-rep-stosq", CLEARINGS, || {
        // SAFETY: memory that was allocated for this, 2 MiB of it.
        unsafe {
            asm!("rep stosq", inout("rdi") page => _, inout("rcx") PAGE_2M / 8 => _, in("rax") 0, options(nostack));
        }
    });
    Ok(())
}

/// Does it `times` times in each round.
fn report(name: &str, times: u64, mut work: impl FnMut()) {
    for _ in 0..ROUNDS {
        timed(name, times, || (0..times).for_each(|_| work()));
    }
}

/// Does what does it `times` times, and says when it begins and when it is done, for whoever looks at the time that the
/// emulator needs.
fn timed<R>(name: &str, times: u64, work: impl FnOnce() -> R) -> R {
    serial::line(format_args!("bench: begin {name} {times}"));
    let result = work();
    serial::line(format_args!("bench: done {name}"));
    result
}

//! Scenarios in which the host deliberately does what it must never do. The stub has to report it, once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Bench, Scenario};
use crate::console::Console;

pub const ALL: &[Scenario] = &[
    Scenario::new("seamrr-access", seamrr_access),
    Scenario::new("keyid-access", keyid_access),
];

/// Time limit of a report.
const ANSWER: Duration = Duration::from_secs(20);

/// KeyID 1 in an address: the KeyID bits are 51:48.
const KEYID_1: u64 = 1 << 48;

/// `mem peek` reads a line of 64 bytes that is no RAM with loads of 4 bytes.
const LOADS: usize = 16;

/// The host reads the SEAM range.
fn seamrr_access(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine()?;
    let mut console = bench.console(&machine)?;
    let seamrr = seamrr(&mut console)?;
    bench.provoke("seamrr_access", LOADS);
    peek(&mut console, seamrr)
}

/// The host reads ordinary memory through an address that carries a KeyID.
fn keyid_access(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine()?;
    let mut console = bench.console(&machine)?;
    bench.provoke("keyid_alias", LOADS);
    peek(&mut console, KEYID_1 | 0x10_0000)
}

/// Reads a line of memory, whose bits all read as one. Each load is reported once, and the console continues.
fn peek(console: &mut Console, address: u64) -> Result<()> {
    let answer = console.succeed(&format!("mem peek {address:#x}"), ANSWER)?;
    ensure!(answer["bytes"] == "ff".repeat(64), "{answer}");
    let events = console.guest().events()?;
    let violations = events.iter().filter(|event| event.kind() == "violation");
    let reported: Vec<_> = violations
        .map(|event| event.text("pa").to_owned())
        .collect();
    let loads: Vec<_> = (0..LOADS)
        .map(|i| format!("{:#x}", address + 4 * i as u64))
        .collect();
    ensure!(reported == loads, "reported are accesses to {reported:?}");
    console.succeed("version", ANSWER)?;
    Ok(())
}

/// Returns the SEAM range, as the stub reported it.
fn seamrr(console: &mut Console) -> Result<u64> {
    let events = console.guest().events()?;
    let base = events
        .iter()
        .map(|e| e.text("seamrr"))
        .find(|s| !s.is_empty());
    let base = base.context("the stub did not say where SEAMRR is")?;
    let digits = base.trim_start_matches("0x");
    u64::from_str_radix(digits, 16).with_context(|| format!("SEAMRR is {base}"))
}

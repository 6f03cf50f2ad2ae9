//! Scenarios in which the host deliberately does what it must never do. The stub has to report it, once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Bench, Scenario};
use crate::console::Console;
use crate::media::Media;
use crate::qemu::Machine;

pub const ALL: &[Scenario] = &[
    Scenario::new("seamrr-access", seamrr_access),
    Scenario::new("keyid-access", keyid_access),
    Scenario::new("vtd-reach", vtd_reach),
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

/// The tables of the VT-d unit let a device reach the SEAM range and a TDR.
fn vtd_reach(bench: &mut Bench) -> Result<()> {
    let media = Media::of_program(&bench.programs().probe())?.with_bytes("probe.txt", b"dma");
    let machine = Machine::new(bench.disk(&media)?, Some(bench.stub())).with_iommu();
    bench.provoke("dma_reach", 3);
    let mut guest = bench.start(&machine)?;
    guest.expect("dma: on\n", Duration::from_secs(180))?;
    let said = guest.expect("probe: end\n", Duration::from_secs(60))?;
    ensure!(!said.contains("FAIL "), "{said}");
    guest.wait_for_end(Duration::from_secs(60))?;
    let private = said
        .lines()
        .find_map(|line| line.strip_prefix("dma: private "))
        .context("the probe did not say which page is private")?;
    let events = guest.events()?;
    let start = events.iter().find(|event| event.kind() == "start");
    let seamrr = start.context("the stub did not start")?.text("seamrr");
    let behind = number(seamrr)? + 0x1000;
    let reported: Vec<_> = (events.iter())
        .filter(|event| event.kind() == "violation")
        .map(|event| {
            (
                event.text("pa"),
                event.text("requester"),
                event.text("device_address"),
            )
        })
        .collect();
    let expected = [
        (seamrr, "0x100", "0x2000"),
        (private, "0x100", "0x3000"),
        (&format!("{behind:#x}"), "0x100", "0x4000"),
    ];
    ensure!(reported == expected, "reported is {reported:?}");
    Ok(())
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
    number(base.context("the stub did not say where SEAMRR is")?)
}

/// Parses an address of the debug console.
fn number(text: &str) -> Result<u64> {
    let digits = text.trim_start_matches("0x");
    u64::from_str_radix(digits, 16).with_context(|| format!("{text} is no address"))
}

//! Programs of others' in TDs with Linux: what nobody wrote for this hypervisor, and has to work all the same.
//!
//! Every part ends within [`LIMIT`], whatever its programs do.

mod compliance;
mod debian;
mod kexec;
mod stress;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::shell::{PROMPT, Shell};
use super::{COMMAND, config, start, td};
use crate::console::Console;
use crate::scenarios::{Bench, Need, Scenario};

pub const ALL: &[Scenario] = &[
    Scenario::foreign(
        "foreign-stress",
        stress::stress,
        &[Need::Linux, Need::Programs],
    ),
    Scenario::foreign(
        "foreign-kexec",
        kexec::kexec,
        &[Need::Linux, Need::Programs],
    ),
    Scenario::foreign(
        "foreign-debian",
        debian::debian,
        &[Need::Linux, Need::Debian],
    ),
    Scenario::foreign(
        "foreign-lkvs",
        compliance::compliance,
        &[Need::Linux, Need::Lkvs],
    ),
];

/// The time that a part may take.
const LIMIT: Duration = Duration::from_secs(25 * 60);
/// Linux's message when a CPU has got nowhere for long.
const LOCKUPS: &str = "soft lockup|hard LOCKUP|rcu.*stall|blocked for more than|Oops|BUG:";

/// The time that a part has.
#[derive(Clone, Copy, Debug)]
struct Time(Instant);

impl Time {
    fn start() -> Self {
        Self(Instant::now() + LIMIT)
    }

    /// Returns the rest of it, at most `limit`.
    fn within(self, limit: Duration) -> Duration {
        self.0.saturating_duration_since(Instant::now()).min(limit)
    }

    /// Returns the rest of it.
    fn left(self) -> Duration {
        self.within(LIMIT)
    }
}

/// The console of a machine with one TD of four vCPUs, *linux*, that has this initial file system.
fn console(
    bench: &mut Bench,
    initrd: &Path,
    memory: &str,
    cmdline: &str,
    machine_memory: &str,
) -> Result<Console> {
    let tds = [td("linux", 4, memory, cmdline)];
    let mut machine = bench.machine_with_system(&config(&tds), initrd)?;
    machine.memory = machine_memory.to_owned();
    bench.console(&machine)
}

/// Starts the TD anew, to its shell.
fn boot(bench: &mut Bench, console: &mut Console) -> Result<()> {
    start(bench, console, "linux", &[PROMPT]).map(drop)
}

/// Linux has noticed nothing that it complains about.
fn no_lockup(shell: &mut Shell<'_>) -> Result<()> {
    let said = shell.run(&format!("dmesg | grep -E '{LOCKUPS}'"), COMMAND)?;
    ensure!(said.trim().is_empty(), "{said}");
    Ok(())
}

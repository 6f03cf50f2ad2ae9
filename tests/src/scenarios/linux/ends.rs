//! Scenario that ends a TD with Linux at any moment of its life.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::shell::{PROMPT, Shell};
use super::{COMMAND, config, free_bytes, sound, start, td, wait, wait_for_state};
use crate::console::Console;
use crate::scenarios::Bench;

/// Number of times that a TD is ended at each of three moments.
const ENDS: usize = 20;

/// The moment at which a TD is ended.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// During its boot, when its console has printed this text.
    Boot(&'static str),
    /// While its shell waits.
    Shell,
    /// While all of its vCPUs are busy.
    Busy,
}

/// Messages of a boot, early and late.
const SAID: [&str; 5] = [
    "vCPUs, ",
    "Linux version",
    "Memory: ",
    "smp: Bringing up",
    "Trying to unpack rootfs",
];

/// Ends TDs at any moment: nothing is lost, and the next TD boots in the same memory.
pub fn terminate(bench: &mut Bench) -> Result<()> {
    // More than half of the machine's memory, so that no two TDs fit side by side.
    const MEMORY: u64 = 224 << 20;
    let memory = format!("{}M", MEMORY >> 20);
    let tds = [
        td("linux", 4, &memory, ""),
        td("quiet", 4, &memory, "quiet"),
    ];
    let mut machine = bench.machine_with_linux(&config(&tds))?;
    machine.memory = "512M".to_owned();
    let mut console = bench.console(&machine)?;
    let free = free_bytes(&mut console)?;
    ensure!(free < 2 * MEMORY, "{free} bytes are free");
    let started = Instant::now();
    for round in 0..ENDS {
        let boot = Moment::Boot(SAID[round % SAID.len()]);
        for moment in [boot, Moment::Shell, Moment::Busy] {
            end_at(bench, &mut console, moment, free)
                .with_context(|| format!("round {round}, {moment:?}"))?;
            sound(&mut console)?;
        }
    }
    bench.note(format!(
        "ended {ENDS} times each in the middle of the boot, at the shell, and busy on all vCPUs: {} s",
        started.elapsed().as_secs()
    ));
    // One more TD runs in the same memory.
    start(bench, &mut console, "linux", &[PROMPT])?;
    let mut shell = Shell::reopen(&mut console, "linux")?;
    ensure!(shell.run("nproc", COMMAND)?.trim() == "4", "not 4 vCPUs");
    shell.leave()?;
    end(&mut console, "linux", free)?;
    sound(&mut console)
}

fn end_at(bench: &mut Bench, console: &mut Console, moment: Moment, free: u64) -> Result<()> {
    // If the way to the shell does not matter, the quiet TD is used, which boots faster.
    let (name, said) = match moment {
        Moment::Boot(said) => ("linux", said),
        Moment::Shell | Moment::Busy => ("quiet", PROMPT),
    };
    start(bench, console, name, &[said])?;
    if matches!(moment, Moment::Busy) {
        let mut shell = Shell::reopen(console, name)?;
        shell.run("for i in 1 2 3 4; do (while :; do :; done) & done", COMMAND)?;
        shell.leave()?;
        wait_until_all_run(console, name)?;
    }
    end(console, name, free)
}

/// Waits until each vCPU has run for a while.
fn wait_until_all_run(console: &mut Console, name: &str) -> Result<()> {
    const WHILE_US: u64 = 100_000;
    let run_us = |shown: &Value| -> Vec<u64> {
        let cpus = shown["cpus"].as_array();
        let times = cpus.into_iter().flatten().map(|cpu| cpu["run_us"].as_u64());
        times.flatten().collect()
    };
    let command = format!("td show {name}");
    let before = run_us(&console.succeed(&command, COMMAND)?);
    ensure!(before.len() == 4, "{before:?}");
    wait(console, &command, |shown| {
        let now = run_us(shown);
        let mut each = now.iter().zip(&before);
        each.all(|(now, before)| now - before >= WHILE_US)
            .then_some(())
    })
}

fn end(console: &mut Console, name: &str, free: u64) -> Result<()> {
    console.succeed(&format!("td terminate {name}"), COMMAND)?;
    wait_for_state(console, name, "reclaimed")?;
    let now = free_bytes(console)?;
    ensure!(now == free, "{free} bytes were free before, {now} now");
    let hkids = console.succeed("hkids", COMMAND)?;
    ensure!(hkids["quarantined"] == 0, "{hkids}");
    Ok(())
}

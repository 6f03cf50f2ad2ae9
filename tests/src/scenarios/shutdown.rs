//! Scenario in which the TDX module shuts down under a running host: the operator and the test rig both report it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::stage::{ANSWER, LIFE, Named, machine};
use super::{Bench, Scenario};
use crate::console::Console;
use crate::qemu::{Machine, Trouble};

pub const ALL: &[Scenario] = &[Scenario::new("module-shutdown", module_shutdown)];

/// The entry of a vCPU at which the module shuts down: some time after the TDs have started.
const HOOK: &str = "shutdown TDH.VP.ENTER call 500";
/// The sentence that the hypervisor shows.
const SHUT_DOWN: &str = "TDX failed: the module was shut down; restart the machine";
/// The sentence with the number that the module recorded begins so.
const RECORDED: &str = "the module recorded fatal error 0x";
/// The interval at which the machine is polled.
const LOOK: Duration = Duration::from_millis(50);

/// Checks that the hypervisor reports the shutdown wherever TDX is mentioned, and answers every command, and that a rig
/// that does not expect the shutdown ends the run at once with the reason.
fn module_shutdown(bench: &mut Bench) -> Result<()> {
    let tds = [Named::new("smp", "64M", 2), Named::new("hello", "64M", 1)];
    let machine = machine(bench, &tds)?.with_stub_option("hooks", HOOK);
    the_operator_is_told(bench, &machine)?;
    the_rig_ends_the_run(bench, &machine)
}

fn the_operator_is_told(bench: &mut Bench, machine: &Machine) -> Result<()> {
    let mut machine = machine.clone();
    machine.provoked.push(Trouble::ModuleShutdown);
    bench.provoke_trouble(Trouble::ModuleShutdown);
    let mut console = bench.console(&machine)?;
    console.succeed("td start smp", LIFE)?;
    let begin = Instant::now();
    let tdx = loop {
        let tdx = console.succeed("tdx", ANSWER)?;
        if tdx["state"] == "failed" {
            break tdx;
        }
        ensure!(
            begin.elapsed() < LIFE,
            "the module did not shut down: {tdx}"
        );
        sleep(LOOK);
    };
    let cause = tdx["reasons"][1].as_str().unwrap_or_default();
    ensure!(
        tdx["reasons"][0] == SHUT_DOWN && cause.starts_with(RECORDED),
        "{tdx}"
    );
    let boot = console.succeed("boot", ANSWER)?;
    ensure!(boot["problems"] == json!([SHUT_DOWN]), "{boot}");
    for command in ["td start hello", "td reset smp", "td destroy smp"] {
        let answer = console.ask(command, LIFE)?;
        ensure!(
            answer["ok"] == false && answer.to_string().contains(SHUT_DOWN),
            "`{command}`: {answer}"
        );
    }
    every_td_shows_it(&mut console)?;
    let report = console.succeed("report", ANSWER)?;
    let log = report["log"].to_string();
    let is_logged = log.contains(&format!("{SHUT_DOWN}; {RECORDED}"));
    ensure!(
        is_logged && report["tdx"]["reasons"] == tdx["reasons"],
        "{log}"
    );
    Ok(())
}

fn every_td_shows_it(console: &mut Console) -> Result<()> {
    let list = console.succeed("td list", ANSWER)?;
    let tds = list["tds"].as_array().map_or(&[][..], Vec::as_slice);
    let shows = |td: &Value| {
        let problem = td["problem"].as_str().unwrap_or_default();
        problem.starts_with(SHUT_DOWN)
    };
    ensure!(tds.len() == 2 && tds.iter().all(shows), "{list}");
    Ok(())
}

fn the_rig_ends_the_run(bench: &mut Bench, machine: &Machine) -> Result<()> {
    bench.provoke_trouble(Trouble::ModuleShutdown);
    let mut console = bench.console(machine)?;
    let begin = Instant::now();
    let mut answer = console.succeed("td start smp", LIFE);
    while answer.is_ok() && begin.elapsed() < LIFE {
        sleep(LOOK);
        answer = console.ask("tdx", ANSWER);
    }
    let error = answer.err().map(|error| format!("{error:#}"));
    let error = error.unwrap_or_default();
    ensure!(
        error.contains("the TDX module has shut down, and every TD is lost"),
        "the run went on: {error}"
    );
    Ok(())
}

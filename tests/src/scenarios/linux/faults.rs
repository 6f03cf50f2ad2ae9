//! Scenario of failures in a TD with Linux.

use anyhow::{Context, Result, ensure};

use super::shell::{PROMPT, Shell};
use super::{BOOT, COMMAND, console, free_bytes, sound, start, td, wait};
use crate::console::Console;
use crate::scenarios::Bench;
use crate::scenarios::stage::said;

/// Checks that a failure in a guest is shown on its console and by `td show`, and affects no other TD.
pub fn faults(bench: &mut Bench) -> Result<()> {
    // TDs without a program to start or a root file system: the kernel panics, or waits for a device that never comes.
    let tds = [
        td("panic", 1, "256M", ""),
        td("early", 1, "256M", "rdinit=/none"),
        td("hang", 2, "256M", "rdinit=/none root=/dev/vda rootwait"),
        td("triple", 1, "256M", "reboot=t"),
        td("small", 1, "64M", ""),
        td("huge", 2, "4G", ""),
    ];
    let mut console = console(bench, &tds)?;
    let free = free_bytes(&mut console)?;

    // The guest's memory is exhausted: that ends only a process in it. Then its kernel panics, and tells the host.
    start(bench, &mut console, "panic", &[PROMPT])?;
    let mut shell = Shell::reopen(&mut console, "panic")?;
    let said = shell.run("tail /dev/zero; echo status $?", BOOT)?;
    ensure!(
        said.contains("Out of memory: Killed process") && said.contains("status 137"),
        "{said}"
    );
    shell.type_line("echo c >/proc/sysrq-trigger")?;
    shell.wait_for("Kernel panic - not syncing: sysrq triggered crash", BOOT)?;
    shell.leave()?;
    ends_with(bench, &mut console, "panic", "its kernel has panicked")?;
    // The TD can't be resumed; it is reset.
    let refused = console.ask("td resume panic", COMMAND)?;
    let refused = refused["error"].as_str().context("a refusal")?;
    ensure!(
        refused.contains("\"td reset panic\" restarts it"),
        "{refused}"
    );
    let reset = console.succeed("td reset panic", BOOT)?;
    ensure!(reset["state"] == "runnable", "{reset}");

    // It panics before it can tell the host, and hangs.
    let panicked = "end Kernel panic - not syncing: VFS: Unable to mount root fs";
    start(bench, &mut console, "early", &[panicked])?;
    goes_on(&mut console, "early")?;
    // Its boot never finishes.
    let waits = "Waiting for root device /dev/vda";
    start(bench, &mut console, "hang", &[waits])?;
    goes_on(&mut console, "hang")?;

    start(bench, &mut console, "triple", &[PROMPT])?;
    let mut shell = Shell::reopen(&mut console, "triple")?;
    shell.type_line("reboot -f")?;
    shell.leave()?;
    ends_with(bench, &mut console, "triple", "triple fault on vCPU 0")?;

    // Too little memory for its kernel, and more than the machine has.
    for (name, why) in [("small", "is too small"), ("huge", "not enough memory")] {
        let refused = console.ask(&format!("td start {name}"), COMMAND)?;
        let refused = refused["error"].as_str().context("a refusal")?;
        ensure!(refused.contains(why), "{refused}");
        bench.note(refused);
        let shown = console.succeed(&format!("td show {name}"), COMMAND)?;
        let problem = shown["problem"].as_str().context("a problem")?;
        ensure!(problem.contains(why), "{problem}");
    }

    for name in ["panic", "early", "hang", "triple"] {
        console.succeed(&format!("td destroy {name}"), COMMAND)?;
    }
    let now = free_bytes(&mut console)?;
    ensure!(now == free, "{free} bytes were free before, {now} now");
    sound(&mut console)
}

/// Waits until a TD has ended, and checks that its console gives the reason as well.
fn ends_with(bench: &mut Bench, console: &mut Console, name: &str, why: &str) -> Result<()> {
    let problem = wait_for_problem(console, name)?;
    ensure!(problem.contains(why), "{name}: {problem}");
    let said = said(console, name, COMMAND)?;
    ensure!(said.contains(why), "{name} has a console that says\n{said}");
    bench.note(format!("{name}: {problem}"));
    Ok(())
}

/// Checks that a TD that makes no progress can be inspected.
fn goes_on(console: &mut Console, name: &str) -> Result<()> {
    let shown = console.succeed(&format!("td show {name}"), COMMAND)?;
    ensure!(shown["state"] == "runnable", "{shown}");
    ensure!(shown["cpus"][0]["entries"].as_u64() > Some(0), "{shown}");
    Ok(())
}

fn wait_for_problem(console: &mut Console, name: &str) -> Result<String> {
    let command = format!("td show {name}");
    wait(console, &command, |shown| {
        shown["problem"].as_str().map(str::to_owned)
    })
}

//! Scenarios with Debian's OVMF as a TD: unmodified firmware reaches its shell, and the TDs next to it continue.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::linux::shell::{PROMPT, Shell};
use super::linux::{self, COMMAND};
use super::smp::Bystander;
use super::stage::{
    LIFE, Named, OVMF, Words, machine, nothing_is_left, show, type_to, used, wait_for_state,
};
use super::{Bench, Scenario};
use crate::console::Console;

pub const ALL: &[Scenario] = &[
    Scenario::new("ovmf", beside_smp),
    Scenario::by_name_only("ovmf-linux", beside_linux).with_linux(),
];

/// Time limit from the start to the shell, far more than needed, for a busy computer. The shell's timer runs slow,
/// because the firmware assumes 1 GHz.
const BOOT: Duration = Duration::from_secs(300);
/// The shell's prompt.
const SHELL: &str = "Shell> ";
/// The command that is typed, and its answer. The echo comes letter by letter; only the answer contains the word in
/// one piece.
const TYPED: &str = "echo seamark-hears-ovmf\r";
const ANSWERED: &str = "seamark-hears-ovmf";

/// Runs OVMF next to *smp*, and another OVMF that can't pass RBP: that one recurses until its stack has overwritten
/// its page tables.
fn beside_smp(bench: &mut Bench) -> Result<()> {
    let tds = [
        Named::new("smp", "64M", 2),
        Named::new(OVMF, "256M", 1),
        Named::new(OVMF, "256M", 1)
            .called("mute")
            .with("no_rbp_mod = true"),
    ];
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    let mut smp = Bystander::start(&mut console)?;
    console.succeed("td start mute", LIFE)?;
    reaches_its_shell(bench, &mut console)?;
    // Its final state is undefined.
    let mute = show(&mut console, "mute")?;
    let problem = mute["problem"].as_str().unwrap_or("no problem");
    bench.note(format!("without RBP: {}, {problem}", mute["state"]));
    smp.goes_on(&mut console)?;
    is_taken_down(&mut console)?;
    nothing_is_left(&mut console, &["smp", "mute"], before)
}

/// Runs OVMF next to Linux, which answers before and after.
fn beside_linux(bench: &mut Bench) -> Result<()> {
    let tds = [
        linux::td("linux", 2, "256M", ""),
        format!("[[td]]\nname = \"{OVMF}\"\nimage = \"{OVMF}\"\nmemory = \"256M\"\n"),
    ];
    let file = format!("[[file]]\nname = \"{OVMF}\"\npath = \"{OVMF}.fd\"\n");
    let media = bench
        .linux_media(&(file + &linux::config(&tds)))?
        .with_file(&format!("{OVMF}.fd"), &bench.programs().guest(OVMF))?;
    let machine = bench.machine_with(&media)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    linux::start(bench, &mut console, "linux", &[PROMPT])?;
    reaches_its_shell(bench, &mut console)?;
    let mut shell = Shell::reopen(&mut console, "linux")?;
    let said = shell.run("echo $((6 * 7))", COMMAND)?;
    ensure!(said.trim() == "42", "{said}");
    shell.leave()?;
    is_taken_down(&mut console)?;
    nothing_is_left(&mut console, &["linux"], before)
}

/// Starts OVMF, and waits until its shell answers a command.
fn reaches_its_shell(bench: &mut Bench, console: &mut Console) -> Result<()> {
    let begin = Instant::now();
    console.succeed(&format!("td start {OVMF}"), LIFE)?;
    let mut words = Words::of(OVMF);
    words.wait(console, SHELL, BOOT)?;
    let seconds = begin.elapsed().as_secs_f32();
    type_to(console, OVMF, TYPED)?;
    words.wait(console, ANSWERED, BOOT)?;
    let entries = show(console, OVMF)?["cpus"][0]["entries"].clone();
    bench.note(format!("{seconds:.0} s to OVMF's shell, {entries} entries"));
    Ok(())
}

/// Checks that OVMF has not ended, and takes it down.
fn is_taken_down(console: &mut Console) -> Result<()> {
    let report = show(console, OVMF)?;
    ensure!(
        report["state"] == "runnable" && report["problem"].is_null(),
        "{report}"
    );
    console.succeed(&format!("td terminate {OVMF}"), LIFE)?;
    wait_for_state(console, OVMF, "reclaimed", LIFE)
}

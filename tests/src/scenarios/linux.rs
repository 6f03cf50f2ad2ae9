//! Debian's own kernel in TDs, as Debian ships it: what its users do with it, and what goes wrong with it.

mod shell;

use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::shell::Shell;
use super::{Bench, Scenario};
use crate::console::Console;

pub const ALL: &[Scenario] = &[
    Scenario::by_name_only("linux-boot", boot).with_linux(),
    Scenario::by_name_only("linux-two", two).with_linux(),
    Scenario::by_name_only("linux-terminate", terminate).with_linux(),
    Scenario::by_name_only("linux-faults", faults).with_linux(),
];

/// What the issue allows from `td start` to the shell.
const BOOT: Duration = Duration::from_secs(90);
/// For what is done at a shell, or at the console.
const COMMAND: Duration = Duration::from_secs(30);

/// A configuration with these TDs, and the files that they need.
fn config(tds: &[String]) -> String {
    let files = ["vmlinuz", "initrd"]
        .map(|name| format!("[[file]]\nname = \"{name}\"\npath = \"{name}\"\n"));
    files.concat() + &tds.concat()
}

/// A TD with Linux.
fn td(name: &str, vcpus: u32, memory: &str, more: &str) -> String {
    format!(
        "[[td]]\nname = \"{name}\"\nkernel = \"vmlinuz\"\ninitrd = \"initrd\"\ncmdline = \"console=ttyS0 {more}\"\n\
         memory = \"{memory}\"\nvcpus = {vcpus}\n"
    )
}

fn console(bench: &mut Bench, tds: &[String]) -> Result<Console> {
    let machine = bench.machine_with_linux(&config(tds))?;
    bench.console(&machine)
}

/// A shell within the time, with all vCPUs, and what Linux knows of where it runs; then reboot and power-off from inside.
fn boot(bench: &mut Bench) -> Result<()> {
    let tds = [td("linux", 4, "512M", "")];
    let mut console = console(bench, &tds)?;
    let started = Instant::now();
    console.succeed("td start linux", BOOT)?;
    let built = started.elapsed();
    let mut shell = Shell::open(&mut console, "linux")?;
    let first = shell.wait_for("Linux version", BOOT)?;
    let to_first = started.elapsed();
    shell.wait_for_prompt(BOOT)?;
    let to_shell = started.elapsed();
    drop(first);
    bench.note(format!(
        "td start: {:.1} s; first kernel message after {:.1} s, shell after {:.1} s",
        built.as_secs_f32(),
        to_first.as_secs_f32(),
        to_shell.as_secs_f32()
    ));
    ensure!(to_shell <= BOOT, "the shell was there after {to_shell:?}");

    let dmesg = shell.run("dmesg | grep -i tdx", COMMAND)?;
    ensure!(dmesg.contains("tdx: Guest detected"), "{dmesg}");
    let encryption = shell.run("dmesg | grep -i 'memory encryption'", COMMAND)?;
    ensure!(
        encryption.contains("Memory Encryption Features active: Intel TDX"),
        "{encryption}"
    );
    ensure!(
        shell.run("nproc", COMMAND)?.trim() == "4",
        "not 4 processors"
    );
    let report = shell.run("tdreport", COMMAND)?;
    shell.leave()?;

    let shown = console.succeed("td show linux", COMMAND)?;
    let mrtd = shown["mrtd"].as_str().context("an MRTD")?;
    ensure!(report.contains(&format!("MRTD   {mrtd}")), "{report}");
    for line in predicted(bench, &tds)? {
        ensure!(report.contains(&line), "no {line:?} in\n{report}");
    }
    note_exits(bench, &mut console, &shown)?;

    let mut shell = Shell::open(&mut console, "linux")?;
    shell.type_line("reboot")?;
    shell.wait_for("Linux version", BOOT)?;
    shell.wait_for_prompt(BOOT)?;
    ensure!(
        shell.run("nproc", COMMAND)?.trim() == "4",
        "not 4 processors after reboot"
    );
    shell.type_line("poweroff")?;
    shell.leave()?;
    wait_for_state(&mut console, "linux", "reclaimed")?;
    sound(&mut console)
}

/// What `cargo xtask measure` says of the only TD of a configuration, line by line.
fn predicted(bench: &Bench, tds: &[String]) -> Result<Vec<String>> {
    let directory = bench.directory()?.join("config");
    fs::create_dir_all(&directory)?;
    let linux = bench.programs().linux();
    fs::copy(linux.kernel(), directory.join("vmlinuz"))?;
    fs::copy(linux.initrd(), directory.join("initrd"))?;
    let file = directory.join("seamark.toml");
    fs::write(&file, config(tds))?;
    let xtask = env::current_exe()?;
    let measured = Command::new(xtask).arg("measure").arg(&file).output()?;
    ensure!(
        measured.status.success(),
        "{}",
        String::from_utf8_lossy(&measured.stderr)
    );
    let lines = String::from_utf8(measured.stdout)?;
    let lines: Vec<_> = lines
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(_name, line)| line.to_owned())
        .collect();
    ensure!(lines.len() == 5, "MRTD and four RTMRs: {lines:?}");
    Ok(lines)
}

/// What it took.
fn note_exits(bench: &mut Bench, console: &mut Console, shown: &Value) -> Result<()> {
    let calls = shown["built"]["calls"].as_u64().context("SEAMCALLs")?;
    let stats = console.succeed("stats", COMMAND)?;
    let exits = stats["exits"].as_array().context("exits")?;
    let exits: Vec<_> = exits
        .iter()
        .filter(|exit| exit["count"].as_u64() != Some(0))
        .map(|exit| format!("{} {}", exit["count"], exit["what"].as_str().unwrap_or("?")))
        .collect();
    bench.note(format!(
        "{calls} SEAMCALLs to build it; exits: {}",
        exits.join(", ")
    ));
    Ok(())
}

/// Two TDs side by side: one is busy on all of its vCPUs, and the other answers.
fn two(bench: &mut Bench) -> Result<()> {
    let tds = [td("one", 2, "256M", ""), td("two", 2, "256M", "")];
    let mut console = console(bench, &tds)?;
    for name in ["one", "two"] {
        console.succeed(&format!("td start {name}"), BOOT)?;
    }
    for name in ["one", "two"] {
        let mut shell = Shell::open(&mut console, name)?;
        shell.wait_for_prompt(2 * BOOT)?;
        shell.leave()?;
    }
    let mut shell = Shell::open(&mut console, "one")?;
    shell.run("for i in 1 2; do (while :; do :; done) & done", COMMAND)?;
    shell.leave()?;
    let mut shell = Shell::open(&mut console, "two")?;
    let started = Instant::now();
    let said = shell.run(
        "dd if=/dev/urandom bs=1M count=4 2>/dev/null | sha256sum | wc -c",
        COMMAND,
    )?;
    ensure!(said.trim() == "68", "{said}");
    bench.note(format!(
        "beside a busy TD: {:.1} s for a digest of 4 MiB",
        started.elapsed().as_secs_f32()
    ));
    shell.leave()?;
    for name in ["one", "two"] {
        console.succeed(&format!("td destroy {name}"), COMMAND)?;
    }
    sound(&mut console)
}

/// Times that a TD is ended at each of three moments.
const ENDS: usize = 20;

/// The end at any moment: nothing is lost, and the next one boots in the same memory.
fn terminate(bench: &mut Bench) -> Result<()> {
    let mut console = console(bench, &[td("linux", 4, "256M", "")])?;
    let free = free_bytes(&mut console)?;
    for round in 0..ENDS {
        // In the middle of its boot: each time somewhere else.
        console.succeed("td start linux", BOOT)?;
        let mut shell = Shell::open(&mut console, "linux")?;
        shell.wait_for(MOMENTS[round % MOMENTS.len()], BOOT)?;
        shell.leave()?;
        end(&mut console, free)?;
    }
    for round in 0..2 * ENDS {
        console.succeed("td start linux", BOOT)?;
        let mut shell = Shell::open(&mut console, "linux")?;
        shell.wait_for_prompt(BOOT)?;
        if round >= ENDS {
            shell.run("for i in 1 2 3 4; do (while :; do :; done) & done", COMMAND)?;
        }
        shell.leave()?;
        end(&mut console, free)?;
    }
    bench.note(format!(
        "ended {ENDS} times each in the middle of its boot, at the shell, and busy"
    ));
    sound(&mut console)
}

/// Moments of a boot, by what it says.
const MOMENTS: [&str; 5] = [
    "vCPUs, ",
    "Linux version",
    "Memory: ",
    "smp: Bringing up",
    "Unpacking initramfs",
];

fn end(console: &mut Console, free: u64) -> Result<()> {
    console.succeed("td terminate linux", COMMAND)?;
    wait_for_state(console, "linux", "reclaimed")?;
    let now = free_bytes(console)?;
    ensure!(now == free, "{} bytes were free before, {now} now", free);
    Ok(())
}

fn free_bytes(console: &mut Console) -> Result<u64> {
    let memory = console.succeed("mem", COMMAND)?;
    ensure!(memory["ledger"]["balanced"] == true, "{memory}");
    memory["ledger"]["free_bytes"]
        .as_u64()
        .context("free bytes")
}

/// What goes wrong in a guest is shown, and hurts nobody else.
fn faults(bench: &mut Bench) -> Result<()> {
    let tds = [
        td("panic", 1, "256M", "init=/bin/false panic=-1"),
        td("small", 1, "64M", ""),
        td("hang", 2, "256M", ""),
        td("triple", 1, "256M", ""),
    ];
    let mut console = console(bench, &tds)?;
    // A kernel that panics, and says so to the host.
    console.succeed("td start panic", BOOT)?;
    let problem = wait_for_problem(&mut console, "panic")?;
    bench.note(format!("panic: {problem}"));
    // A TD with too little memory for its kernel.
    console.succeed("td start small", BOOT)?;
    let problem = wait_for_problem(&mut console, "small")?;
    ensure!(problem.contains("too little memory"), "{problem}");
    bench.note(format!("too little memory: {problem}"));
    // One that never gets anywhere can be looked at and ended.
    console.succeed("td start hang", BOOT)?;
    let mut shell = Shell::open(&mut console, "hang")?;
    shell.wait_for_prompt(BOOT)?;
    shell.type_line("while :; do :; done")?;
    shell.leave()?;
    let shown = console.succeed("td show hang", COMMAND)?;
    ensure!(shown["state"] == "runnable", "{shown}");
    for name in ["panic", "small", "hang"] {
        console.succeed(&format!("td destroy {name}"), COMMAND)?;
    }
    sound(&mut console)
}

fn wait_for_problem(console: &mut Console, name: &str) -> Result<String> {
    let command = format!("td show {name}");
    wait(console, &command, |shown| {
        shown["problem"].as_str().map(str::to_owned)
    })
}

fn wait_for_state(console: &mut Console, name: &str, state: &str) -> Result<()> {
    let command = format!("td show {name}");
    wait(console, &command, |shown| {
        (shown["state"] == state).then_some(())
    })
}

/// Asks until the answer is there.
fn wait<T>(console: &mut Console, command: &str, found: impl Fn(&Value) -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + BOOT;
    loop {
        let shown = console.succeed(command, COMMAND)?;
        if let Some(found) = found(&shown) {
            return Ok(found);
        }
        ensure!(
            Instant::now() < deadline,
            "it did not come to that: {shown}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// No call was made that the module should not have been asked, and nothing was lost.
fn sound(console: &mut Console) -> Result<()> {
    let stats = console.succeed("stats", COMMAND)?;
    ensure!(
        stats["total"]["illegal"] == 0 && stats["lost_pages"] == 0 && stats["lost_hkids"] == 0,
        "{stats}"
    );
    Ok(())
}

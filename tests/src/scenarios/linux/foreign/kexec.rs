//! CPUs that go and come back, and kernels that follow each other in one life of a TD.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::{Time, boot, console, no_lockup};
use crate::console::Console;
use crate::scenarios::Bench;
use crate::scenarios::linux::shell::{PROMPT, Shell};
use crate::scenarios::linux::{COMMAND, TRIES, sound};

/// Rounds in which all CPUs but the first are switched off, and on again.
const ROUNDS: u32 = 20;
/// For all rounds.
const ROUNDS_LIMIT: Duration = Duration::from_secs(600);
/// For each step of the next kernel's boot, which the computer may be too busy for.
const NEXT_BOOT: Duration = Duration::from_secs(600);
/// The kernel that follows.
const NEXT: &str = "/boot/vmlinuz --initrd=/boot/initrd --reuse-cmdline";

/// CPUs are switched off and on; another kernel starts with all of them; a kernel that crashes is followed by one that
/// has its memory to look at.
pub fn kexec(bench: &mut Bench) -> Result<()> {
    let time = Time::start();
    let initrd = bench.programs().foreign().programs();
    let mut console = console(bench, &initrd, "1G", "crashkernel=256M", "2G")?;
    boot(bench, &mut console)?;
    let mut shell = Shell::reopen(&mut console, "linux")?;
    let set = |value: u32| {
        format!(
            "for c in 1 2 3; do echo {value} > /sys/devices/system/cpu/cpu$c/online || echo FAI''LED; done"
        )
    };
    let rounds = format!(
        "for i in $(seq {ROUNDS}); do {}; echo $(nproc); {}; echo $(nproc); done",
        set(0),
        set(1)
    );
    let said = shell.run(&rounds, time.within(ROUNDS_LIMIT))?;
    ensure!(!said.contains("FAILED"), "{said}");
    let counts: Vec<u32> = said
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    ensure!(
        counts == [1, 4].repeat(ROUNDS as usize),
        "{counts:?}\n{said}"
    );
    let said = shell.run("dmesg | grep 'Failed to hand over CPU'", COMMAND)?;
    ensure!(said.trim().is_empty(), "{said}");
    no_lockup(&mut shell)?;
    shell.leave()?;
    bench.note(format!("{ROUNDS} times three CPUs off and on"));

    follow(
        bench,
        &mut console,
        time,
        &format!("kexec -s -l {NEXT} && kexec -e"),
    )?;
    is_whole(&mut console, 4)?;
    bench.note("kexec: 4 CPUs");

    // A kernel that was not started on the TD's first CPU leaves that alone.
    for (cpu, cpus) in [(0, 4), (2, 3)] {
        console.succeed("td destroy linux", COMMAND)?;
        boot(bench, &mut console)?;
        let crash =
            format!("kexec -s -p {NEXT} && taskset -c {cpu} sh -c 'echo c > /proc/sysrq-trigger'");
        follow(bench, &mut console, time, &crash)?;
        is_whole(&mut console, cpus)?;
        let mut shell = Shell::reopen(&mut console, "linux")?;
        let said = shell.run("head -c 4 /proc/vmcore", COMMAND)?;
        ensure!(said.contains("ELF"), "{said}");
        shell.leave()?;
        bench.note(format!("kdump after a crash on CPU {cpu}: {cpus} CPUs"));
    }
    sound(&mut console)
}

/// Has a kernel be followed by another one, to its shell. Where QEMU loses that, all is done again.
fn follow(bench: &mut Bench, console: &mut Console, time: Time, command: &str) -> Result<()> {
    for _ in 0..TRIES {
        let mut shell = Shell::reopen(console, "linux")?;
        shell.type_line(command)?;
        // The shell's own echo has neither.
        let is_there = shell.wait_while_booting("Linux version", time.within(NEXT_BOOT))?
            && shell.wait_while_booting(PROMPT, time.within(NEXT_BOOT))?;
        shell.leave()?;
        if is_there {
            return Ok(());
        }
        bench.note("the next kernel executed code that was patched already; started again");
        console.succeed("td destroy linux", COMMAND)?;
        boot(bench, console)?;
    }
    bail!("QEMU has lost the next kernel {TRIES} times")
}

/// The kernel runs on so many CPUs, and the TD is the same.
fn is_whole(console: &mut Console, cpus: u32) -> Result<()> {
    let mut shell = Shell::reopen(console, "linux")?;
    let said = shell.run("nproc", COMMAND)?;
    ensure!(said.trim() == cpus.to_string(), "not {cpus} CPUs: {said}");
    let report = shell.run("tdreport", COMMAND)?;
    ensure!(report.contains("MRTD"), "{report}");
    shell.leave()?;
    let shown = console.succeed("td show linux", COMMAND)?;
    ensure!(
        shown["state"] == "runnable" && shown["problem"].is_null(),
        "{shown}"
    );
    Ok(())
}

//! Intel's LKVS: tdx-compliance, a module that tries what CPUID, control registers and MSRs do in a TD; and halt_test, one that
//! halts a vCPU for good.

mod expected;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::expected::judge;
use super::{Time, boot, console};
use crate::console::Console;
use crate::scenarios::Bench;
use crate::scenarios::linux::COMMAND;
use crate::scenarios::linux::shell::Shell;
use crate::scenarios::linux::sound;

/// The parts of tdx-compliance.
const PARTS: [&str; 3] = ["msr", "cpuid", "cr"];
/// It flips CR4.PKE and leaves it: Linux must not use protection keys. RCU must not send an NMI to the vCPU that halts for
/// good, which would wake it.
const COMMAND_LINE: &str = "nopku rcupdate.rcu_cpu_stall_suppress=1";
/// The vCPU that halts, and the time that it has to stay halted.
const HALTS: usize = 3;
const HALTED: Duration = Duration::from_secs(10);
/// Number of times that it is looked for.
const LOOKS: usize = 6;

/// The modules' output; without a checkout of LKVS there is nothing to run.
pub fn compliance(bench: &mut Bench) -> Result<()> {
    if !bench.programs().has_lkvs() {
        bench.note("skipped: --lkvs DIR");
        return Ok(());
    }
    let time = Time::start();
    let initrd = bench.programs().foreign().lkvs();
    let mut console = console(bench, &initrd, "512M", COMMAND_LINE, "2G")?;
    boot(bench, &mut console)?;
    let mut shell = Shell::reopen(&mut console, "linux")?;
    shell.run("mount -t debugfs debugfs /sys/kernel/debug", COMMAND)?;
    shell.run("insmod /lib/tdx-compliance.ko", COMMAND)?;
    let mut wrong = Vec::new();
    for part in PARTS {
        let tests = "/sys/kernel/debug/tdx/tdx-tests";
        shell.run(&format!("echo {part} 1.5 > {tests}"), time.left())?;
        let said = shell.run(&format!("cat {tests}"), time.left())?;
        let verdict = judge(&bench.module(), part, &said)?;
        bench.note(format!("{part}: {}", verdict.total));
        wrong.extend(verdict.wrong);
    }
    shell.leave()?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    halt(bench, &mut console)?;
    sound(&mut console)
}

/// A vCPU that executes HLT with interrupts blocked stays where it is; the others go on. Linux itself may wait for the halted
/// vCPU at any time, so the host is asked.
fn halt(bench: &mut Bench, console: &mut Console) -> Result<()> {
    let mut shell = Shell::reopen(console, "linux")?;
    // A process on the vCPU that halts would halt, too; and the kernel's messages come to the console.
    shell.run("taskset -pc 0 $$; dmesg -n 8", COMMAND)?;
    shell.type_line(&format!("taskset -c {HALTS} insmod /lib/halt_test.ko &"))?;
    shell.wait_for("Start to trigger hlt", COMMAND)?;
    shell.leave()?;
    // It may have been on the way to the instruction.
    for look in (0..LOOKS).rev() {
        let before = entries(console)?;
        std::thread::sleep(HALTED);
        let after = entries(console)?;
        if before[HALTS] == after[HALTS] && before != after {
            break;
        }
        ensure!(
            look > 0,
            "vCPU {HALTS} does not stay halted while others go on: {before:?}, then {after:?}"
        );
    }
    bench.note("halt_test: halted");
    console.succeed("td destroy linux", COMMAND).map(drop)
}

/// Returns how often each vCPU was entered.
fn entries(console: &mut Console) -> Result<Vec<u64>> {
    let shown = console.ask("td show linux", COMMAND)?;
    let cpus = shown["cpus"].as_array().context("no vCPUs")?;
    let entries = cpus.iter().map(|cpu| cpu["entries"].as_u64());
    entries.collect::<Option<_>>().context("no entries")
}

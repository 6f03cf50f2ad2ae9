//! Intel's LKVS: tdx-compliance, a module that tries what CPUID, control registers and MSRs do in a TD; and halt_test, one that
//! halts a vCPU for good.

mod expected;

use std::time::Duration;

use anyhow::{Result, ensure};

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
/// The time that a vCPU has to stay halted.
const HALTED: Duration = Duration::from_secs(10);

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

/// A vCPU that executes HLT with interrupts blocked stays where it is; the others go on.
fn halt(bench: &mut Bench, console: &mut Console) -> Result<()> {
    let mut shell = Shell::reopen(console, "linux")?;
    // A process on the vCPU that halts would halt, too.
    shell.run("taskset -pc 0 $$", COMMAND)?;
    // The module is taken apart before the last line, so that it is the kernel's alone.
    let command = "(taskset -c 3 insmod /lib/halt_test.ko; echo RETUR''NED) & sleep 2; dmesg | grep 'trigger hlt'";
    let said = shell.run(command, COMMAND)?;
    ensure!(said.contains("Start to trigger hlt"), "{said}");
    let said = shell.run(&format!("sleep {}; jobs", HALTED.as_secs()), COMMAND)?;
    shell.leave()?;
    ensure!(
        said.contains("Running") && !said.contains("RETURNED"),
        "the halted vCPU went on:\n{said}"
    );
    bench.note("halt_test: halted");
    console.succeed("td destroy linux", COMMAND).map(drop)
}

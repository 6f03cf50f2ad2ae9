//! Intel's LKVS: tdx-compliance, a module that tries what CPUID, control registers and MSRs do in a TD.

use anyhow::{Context, Result, ensure};

use super::{Time, boot, console};
use crate::scenarios::Bench;
use crate::scenarios::linux::COMMAND;
use crate::scenarios::linux::shell::Shell;
use crate::scenarios::linux::sound;

/// What it can be asked for.
const PARTS: [&str; 3] = ["msr", "cpuid", "cr"];
/// It flips CR4.PKE and leaves it: Linux must not use protection keys.
const COMMAND_LINE: &str = "nopku";

/// What the module says of each part; without a checkout of it there is nothing to run.
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
    let mut failures = Vec::new();
    for part in PARTS {
        let tests = "/sys/kernel/debug/tdx/tdx-tests";
        shell.run(&format!("echo {part} 1.5 > {tests}"), time.left())?;
        let said = shell.run(&format!("cat {tests}"), time.left())?;
        let total = said.lines().find(|line| line.contains("Total:"));
        let total = total.with_context(|| format!("{part}:\n{said}"))?;
        bench.note(format!("{part}: {}", total.trim()));
        failures.extend(
            said.lines()
                .filter(|line| line.contains("FAIL") && !line.contains("Total:"))
                .map(|line| format!("{part}: {}", line.trim())),
        );
    }
    shell.leave()?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    sound(&mut console)
}

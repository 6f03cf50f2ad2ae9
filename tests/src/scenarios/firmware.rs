//! A firmware that leaves much behind, played by the probe, which starts the hypervisor.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Bench, Scenario};
use crate::console::Console;
use crate::media::Media;
use crate::qemu::Machine;

pub const ALL: &[Scenario] = &[
    Scenario::new("armed-watchdog", armed_watchdog),
    Scenario::new("dirty-firmware", dirty),
];

/// Time limit of a boot, and of a reply: far more than needed, for a busy computer.
const LIMIT: Duration = Duration::from_secs(240);
/// The inputs of the I/O APIC that the hypervisor uses: the serial port's and ACPI's.
const USED: [&str; 2] = ["pin 4 ", "pin 9 "];
/// The PM1a control register of QEMU's q35 under OVMF.
const PM1A_CONTROL: &str = "i /h 0x604";

/// Returns a machine whose firmware is spoilt.
fn machine(bench: &Bench) -> Result<Machine> {
    let program = fs::read(bench.programs().seamark()).context("the hypervisor")?;
    let media = Media::of_program(&bench.programs().probe())?
        .with_bytes("probe.txt", b"dirty-firmware")
        .with_bytes("program.efi", &program);
    bench.machine_with(&media)
}

/// Boots on a plain machine whose firmware has its watchdog armed, which would reset the machine and so end it. With the
/// stub the watchdog does not fire.
fn armed_watchdog(bench: &mut Bench) -> Result<()> {
    let mut machine = machine(bench)?.with_cpus(1, 1).with_memory("1G");
    machine.stub = None;
    let console = Console::wait(bench.start(&machine)?, LIMIT)?;
    let is_held_up = console.boot_log().contains("refused once");
    ensure!(is_held_up, "{}", console.boot_log());
    Ok(())
}

/// Boots on a machine whose firmware refuses ExitBootServices once, and leaves the timer and all lines open to vectors of
/// its own, and ACPI mode off.
fn dirty(bench: &mut Bench) -> Result<()> {
    let mut machine = machine(bench)?;
    machine.monitor = true;
    let mut console = Console::wait(bench.start(&machine)?, LIMIT)?;
    for said in [
        "probe: ExitBootServices is refused once",
        "probe: everything is open",
    ] {
        ensure!(console.boot_log().contains(said), "no {said:?}");
    }
    let boot = console.succeed("boot", LIMIT)?;
    ensure!(
        boot["problems"].as_array().is_some_and(Vec::is_empty),
        "{boot}"
    );
    let cpus = console.succeed("cpus", LIMIT)?;
    ensure!(cpus["running"] == machine.cpus, "{cpus}");
    let guest = console.guest();
    lines_are_masked(&guest.monitor("info pic")?)?;
    local_interrupts_are_masked(&guest.monitor("info lapic 0")?)?;
    let control = guest.monitor(PM1A_CONTROL)?;
    let value = control
        .split("= 0x")
        .nth(1)
        .and_then(|value| value.get(..4));
    let value = value.and_then(|digits| u16::from_str_radix(digits, 16).ok());
    ensure!(
        value.context(control)? & 1 == 1,
        "the machine is not in ACPI mode"
    );
    Ok(())
}

/// Checks QEMU's `info pic`: no input of the I/O APIC is open, except those in use, and none of the older controllers.
fn lines_are_masked(said: &str) -> Result<()> {
    let pins: Vec<_> = said.lines().filter(|line| line.contains("pin ")).collect();
    ensure!(pins.len() == 24, "{said}");
    for pin in pins {
        let is_used = USED.iter().any(|used| pin.contains(used));
        ensure!(is_used || pin.contains("masked"), "{pin}");
    }
    let older: Vec<_> = said.lines().filter(|line| line.contains("imr=")).collect();
    ensure!(older.len() == 2, "{said}");
    for controller in older {
        ensure!(controller.contains("imr=ff"), "{controller}");
    }
    Ok(())
}

/// Checks QEMU's `info lapic`: the timer has the hypervisor's vector, and what it does not use is masked.
fn local_interrupts_are_masked(said: &str) -> Result<()> {
    let line = |name: &str| {
        let mut lines = said.lines();
        let line = lines.find(|line| line.split_whitespace().next() == Some(name));
        line.with_context(|| format!("no {name} in:\n{said}"))
    };
    for name in ["LVT0", "LVTPC", "LVTERR", "LVTTHMR"] {
        ensure!(line(name)?.contains("masked"), "{}", line(name)?);
    }
    let timer = line("LVTT")?;
    ensure!(
        !timer.contains("(vec 65)") && !timer.contains("periodic"),
        "{timer}"
    );
    Ok(())
}

//! Scenarios with OVMF as the firmware of TDs: Debian 12's and Debian 13's find their machine by fw_cfg, and reach
//! their shells without a disk.

mod large;
mod measured;
mod medium;
mod power;
mod virtual_disk;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::stage::{
    ANSWER, LIFE, Named, OVMF, Words, machine, nothing_is_left, only_known_parts_are_missing,
    type_to, used, wait_for_state,
};
use super::{Bench, Scenario};
use crate::console::Console;
use crate::programs::OVMF_13;

pub const ALL: &[Scenario] = &[
    Scenario::by_name_only("uefi-shell", shells).with_ovmf_13(),
    Scenario::by_name_only("uefi-large", large::lazily).with_grub_and_linux(),
    Scenario::by_name_only("uefi-power", power::ways).with_grub_and_linux(),
    Scenario::by_name_only("uefi-measured", measured::boots).with_measured_disks(),
    Scenario::by_name_only("ovmf-virtio", virtual_disk::boots).with_measured_disks(),
];

/// Time limit from the start to the shell, far more than needed, for a busy computer. The shell waits for five seconds
/// of its own.
const BOOT: Duration = Duration::from_secs(300);
/// The shell's prompt.
const SHELL: &str = "Shell> ";
/// The TDs' UUID, and the shell's way to show it.
const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";
const SHOWN_UUID: &str = "33 22 11 00 55 44 77 66-88 99 AA BB CC DD EE FF";

/// Starts each OVMF. Its shell shows what the host told it, resets the TD, and powers it off.
fn shells(bench: &mut Bench) -> Result<()> {
    let td = |guest| {
        Named::new(guest, "256M", 2)
            .uefi()
            .with(format!("uuid = \"{UUID}\""))
    };
    let machine = machine(bench, &[td(OVMF), td(OVMF_13)])?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    for name in [OVMF, OVMF_13] {
        reaches_its_shell(bench, &mut console, name)?;
    }
    nothing_is_left(&mut console, &[], before)
}

fn reaches_its_shell(bench: &mut Bench, console: &mut Console, name: &str) -> Result<()> {
    let begin = Instant::now();
    console.succeed(&format!("td start {name}"), LIFE)?;
    let mut words = Words::of(name);
    words.wait(console, SHELL, BOOT)?;
    let seconds = begin.elapsed().as_secs_f32();
    bench.note(format!("{name}: {seconds:.1} s to the shell"));
    only_known_parts_are_missing(bench, console, name)?;
    calls_by_kind(bench, console, name)?;
    let mut shell = Shell {
        console,
        name,
        words: &mut words,
    };
    let system = shell.run("smbiosview -t 1")?;
    ensure!(system.contains(SHOWN_UUID), "{system}");
    let tables = shell.tables()?;
    for table in ["FACP", "APIC", "MCFG"] {
        ensure!(tables.iter().any(|name| name == table), "{tables:?}");
    }
    bench.note(format!("    ACPI: {}", tables.join(", ")));
    type_to(console, name, "reset\r")?;
    // The output of the life before is gone.
    words.wait_for(console, BOOT, |text| {
        text.contains(SHELL) && !text.contains(SHOWN_UUID)
    })?;
    type_to(console, name, "reset -s\r")?;
    wait_for_state(console, name, "reclaimed", LIFE)
}

/// The firmware's shell.
struct Shell<'a> {
    console: &'a mut Console,
    name: &'a str,
    words: &'a mut Words,
}

impl Shell<'_> {
    /// Runs a command. Returns its output.
    fn run(&mut self, command: &str) -> Result<String> {
        let before = self.words.text.len();
        type_to(self.console, self.name, &format!("{command}\r"))?;
        self.words
            .wait_for(self.console, BOOT, |text| text[before..].contains(SHELL))?;
        Ok(self.words.text[before..].to_owned())
    }

    /// Returns the names of the ACPI tables that the XSDT lists.
    fn tables(&mut self) -> Result<Vec<String>> {
        const HEADER: usize = 36;
        let system = self.run("dmem")?;
        let root = system.split_once("ACPI 2.0 Table").context("no ACPI")?.1;
        let root = root.split_whitespace().next().unwrap_or_default();
        let root = self.memory(u64::from_str_radix(root, 16)?, HEADER)?;
        let xsdt = long(&root, 24)?;
        let length = long(&self.memory(xsdt, HEADER)?, 4)? as u32 as usize;
        let xsdt = self.memory(xsdt, length)?;
        let mut names = Vec::new();
        for at in (HEADER..length).step_by(8) {
            let name = self.memory(long(&xsdt, at)?, 4)?;
            names.push(String::from_utf8_lossy(&name).into_owned());
        }
        Ok(names)
    }

    /// Reads memory.
    fn memory(&mut self, at: u64, bytes: usize) -> Result<Vec<u8>> {
        let dump = self.run(&format!("dmem {at:x} {bytes:x}"))?;
        // Address, a colon, bytes with blanks and a hyphen between them, then the same as text between asterisks.
        let lines = dump.lines().filter_map(|line| line.trim().split_once(": "));
        let digits = lines.filter_map(|(_, rest)| rest.split_once('*'));
        let digits = digits.flat_map(|(digits, _)| digits.split([' ', '-']));
        let read: Vec<_> = digits
            .filter_map(|digits| u8::from_str_radix(digits, 16).ok())
            .collect();
        ensure!(read.len() == bytes, "{at:#x}: {dump}");
        Ok(read)
    }
}

fn long(bytes: &[u8], at: usize) -> Result<u64> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    Ok(u64::from_le_bytes(*bytes.context("a short table")?))
}

/// Notes the calls that the firmware made.
fn calls_by_kind(bench: &mut Bench, console: &mut Console, name: &str) -> Result<()> {
    let stats = console.succeed(&format!("stats {name}"), ANSWER)?;
    for exit in stats["exits"].as_array().context("no exits")? {
        let what = exit["what"].as_str().unwrap_or_default();
        bench.note(format!("    {:>7} {what}", exit["count"]));
    }
    Ok(())
}

//! Measured boots: the registers that `cargo xtask measure` predicts are those of the report that the TD reads, and the
//! events are those of its log. Two kernels with two command lines, each in a unified kernel image and started by GRUB.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::console::Console;
use crate::programs::{OVMF, OVMF_13, UefiBoot};
use crate::qemu::Device;
use crate::scenarios::Bench;
use crate::scenarios::linux::shell::{PROMPT, Shell};
use crate::scenarios::stage::{ANSWER, LIFE, Named, Words, machine, nothing_illegal};

/// Time limit of a boot to the shell, far more than needed, for a busy computer.
const BOOT: Duration = Duration::from_secs(600);
/// The log, as Linux shows it, and the number of its bytes that are read: more than any of these boots writes.
const LOG: &str = "/sys/firmware/acpi/tables/data/CCEL";
const LOG_BYTES: usize = 16 << 10;

/// A TD, its firmware, and the disk in its drive.
struct Case {
    td: &'static str,
    firmware: &'static str,
    disk: &'static str,
}

const CASES: [Case; 5] = [
    case("uki-1", OVMF_13, "uki-1"),
    case("uki-2", OVMF_13, "uki-2"),
    case("grub-1", OVMF_13, "grub-1"),
    case("grub-2", OVMF_13, "grub-2"),
    // This firmware measures nothing, and has no log.
    case("unmeasured", OVMF, "uki-1"),
];

const fn case(td: &'static str, firmware: &'static str, disk: &'static str) -> Case {
    Case { td, firmware, disk }
}

/// Boots each TD, and compares its report and its log with the prediction.
pub fn boots(bench: &mut Bench) -> Result<()> {
    // One vCPU: QEMU's race on patched code needs two.
    let td = |(drive, case): (usize, &'static Case)| {
        Named::new(case.firmware, "1G", 1)
            .called(case.td)
            .uefi()
            .with(format!("[[td.pci]]\ndevice = \"0000:0{drive}:00.0\""))
    };
    let tds: Vec<_> = (1..).zip(&CASES).map(td).collect();
    let measured = bench.programs().measured();
    let machine = CASES.iter().fold(machine(bench, &tds)?, |machine, case| {
        machine.with_device(Device::Snapshot(measured.disk(case.disk)))
    });
    let machine = machine.with_iommu();
    let mut console = bench.console(&machine)?;
    for (drive, case) in (1..).zip(&CASES) {
        case.run(bench, &mut console, drive).context(case.td)?;
    }
    nothing_illegal(&mut console)
}

impl Case {
    fn run(&self, bench: &mut Bench, console: &mut Console, drive: usize) -> Result<()> {
        let started = Instant::now();
        console.succeed(&format!("td start {}", self.td), LIFE)?;
        Words::of(self.td).wait(console, PROMPT, BOOT)?;
        let took = started.elapsed().as_secs_f32();
        let mut shell = Shell::reopen(console, self.td)?;
        // The kernel's messages stay out of the answers.
        shell.run("dmesg -n 1", ANSWER)?;
        let report = shell.run("tdreport", ANSWER)?;
        let log = self.log(&mut shell)?;
        shell.leave()?;
        console.succeed(&format!("td destroy {}", self.td), LIFE)?;
        let boot = UefiBoot {
            config: &bench.directory()?.join("media/seamark.toml"),
            td: self.td,
            disk: &bench.programs().measured().disk(self.disk),
            serial: &format!("seamark{drive}"),
            log: log.as_deref(),
        };
        let predicted = bench.programs().measure_boot(&boot)?;
        let lines = predicted.lines().filter_map(|line| line.split_once("  "));
        let lines: Vec<_> = lines.map(|(_, line)| line).collect();
        ensure!(lines.len() == 5, "MRTD and four RTMRs: {lines:?}");
        for line in lines {
            ensure!(report.contains(line), "no {line:?} in\n{report}");
        }
        bench.note(format!(
            "{}: shell after {took:.1} s, as predicted",
            self.td
        ));
        Ok(())
    }

    /// Reads the event log inside, if there is one.
    fn log(&self, shell: &mut Shell<'_>) -> Result<Option<Vec<u8>>> {
        let command = format!("test -e {LOG} && head -c {LOG_BYTES} {LOG} | base64");
        let text = shell.run(&command, ANSWER)?;
        let text: String = text.split_whitespace().collect();
        ensure!(
            text.is_empty() == (self.firmware == OVMF),
            "a log of {} characters",
            text.len()
        );
        let log = STANDARD.decode(&text);
        let log = log.map_err(|error| anyhow!("the log's transfer: {error}"))?;
        Ok(Some(log).filter(|log| !log.is_empty()))
    }
}

//! Plain machines, without the stub: `seamark.efi` boots on each, to its prompt or to a sentence that says why not.
//!
//! Each entry of [`ALL`] differs from the usual machine in what its fields say. The group `machines` runs all of
//! them; the few that are marked run with everything else.

mod bochs;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Bench, Need, Scenario};
use crate::console::Console;
use crate::media::Media;
use crate::qemu::Shape;

/// Time limit of a boot, and of a reply: far more than needed, for a busy computer.
const LIMIT: Duration = Duration::from_secs(240);

/// The group of all machines.
pub(super) const GROUP: &str = "machines";

/// QEMU's TCG has no x2APIC.
const NO_X2APIC: &str = "no x2APIC";
/// The reason why no TD can run on a CPU that TCG presents as AMD's; TCG's `max` is one.
const NOT_INTEL: &str = "not an Intel CPU";
/// The reason why no TD can run on a CPU that TCG presents as Intel's.
const NO_SEAM: &str = "the CPU has no SEAM";

/// A configuration with a TD, which no plain machine can run.
const CONFIG: &str = "[[file]]\nname = \"kernel\"\npath = \"vmlinuz\"\n\
                      [[td]]\nname = \"linux\"\nkernel = \"kernel\"\nmemory = \"64M\"\n";

/// A plain machine and the expected outcome of its boot.
pub(super) struct Plain {
    cpus: u32,
    sockets: u32,
    memory: &'static str,
    shape: Shape,
    outcome: Outcome,
}

/// The expected outcome of a boot.
enum Outcome {
    /// The prompt.
    Prompt {
        /// A part of each problem that `boot` lists; it lists no others.
        problems: &'static [&'static str],
        /// A part of the first reason that `tdx` gives.
        reason: &'static str,
    },
    /// A sentence that says why the hypervisor does not start.
    Sentence(&'static str),
}

impl Plain {
    /// The usual machine without a stub.
    const USUAL: Self = Self {
        cpus: 2,
        sockets: 1,
        memory: "512M",
        shape: Shape::USUAL,
        outcome: Outcome::Prompt {
            problems: &[NO_X2APIC],
            reason: NOT_INTEL,
        },
    };

    const fn cpus(cpus: u32, sockets: u32) -> Self {
        Self {
            cpus,
            sockets,
            ..Self::USUAL
        }
    }

    const fn cpu(cpu: &'static str) -> Self {
        let mut plain = Self::USUAL;
        plain.shape.cpu = cpu;
        plain
    }

    const fn intel(cpu: &'static str) -> Self {
        Self::cpu(cpu).reason(NO_SEAM)
    }

    const fn chipset(chipset: &'static str) -> Self {
        let mut plain = Self::USUAL;
        plain.shape.chipset = chipset;
        plain
    }

    const fn on(mut self, chipset: &'static str) -> Self {
        self.shape.chipset = chipset;
        self
    }

    const fn with(further: &'static [&'static str]) -> Self {
        let mut plain = Self::USUAL;
        plain.shape.further = further;
        plain
    }

    const fn serial(serial: &'static str) -> Self {
        let mut plain = Self::USUAL;
        plain.shape.serial = serial;
        plain
    }

    const fn memory(mut self, memory: &'static str) -> Self {
        self.memory = memory;
        self
    }

    const fn and(mut self, further: &'static [&'static str]) -> Self {
        self.shape.further = further;
        self
    }

    const fn reason(mut self, reason: &'static str) -> Self {
        self.outcome = Outcome::Prompt {
            problems: &[NO_X2APIC],
            reason,
        };
        self
    }

    const fn sentence(mut self, sentence: &'static str) -> Self {
        self.outcome = Outcome::Sentence(sentence);
        self
    }

    /// Boots the machine and compares the outcome.
    pub(super) fn run(&self, bench: &mut Bench) -> Result<()> {
        let media = Media::of_program(&bench.programs().seamark())?
            .with_config_text(CONFIG)
            .with_bytes("vmlinuz", b"a kernel");
        // Most of these machines are ones without a VT-d unit; one names a unit of its own.
        let mut machine = bench
            .machine_with(&media)?
            .with_memory(self.memory)
            .without_iommu();
        machine.stub = None;
        machine.cpus = self.cpus;
        machine.sockets = self.sockets;
        machine.shape = self.shape;
        match self.outcome {
            Outcome::Prompt { problems, reason } => {
                // The firmware of a plain machine takes long to start hundreds of CPUs.
                let limit = LIMIT + self.cpus * Duration::from_secs(4);
                let console = Console::wait(bench.start(&machine)?, limit)?;
                self.is_well(console, problems, reason)
            }
            Outcome::Sentence(sentence) => {
                let mut guest = bench.start(&machine)?;
                guest.expect(sentence, LIMIT).map(drop)
            }
        }
    }

    fn is_well(&self, mut console: Console, problems: &[&str], reason: &str) -> Result<()> {
        let boot = console.succeed("boot", LIMIT)?;
        are_these(&boot["problems"], problems).with_context(|| format!("{boot}"))?;
        let cpus = console.succeed("cpus", LIMIT)?;
        let listed = cpus["cpus"].as_array().map_or(0, Vec::len);
        ensure!(
            listed == self.cpus as usize && cpus["running"] == 1,
            "{cpus}"
        );
        let tdx = console.succeed("tdx", LIMIT)?;
        ensure!(tdx["state"] == "unavailable", "{tdx}");
        let first = tdx["reasons"][0].as_str().unwrap_or_default();
        ensure!(first.contains(reason), "{tdx}");
        let tds = console.succeed("td list", LIMIT)?;
        let problem = tds["tds"][0]["problem"].as_str().unwrap_or_default();
        ensure!(problem.contains("no TD can run here"), "{tds}");
        let memory = console.succeed("mem", LIMIT)?;
        ensure!(memory["ledger"]["balanced"] == true, "{memory}");
        Ok(())
    }
}

/// Boots the hypervisor on a CPU that the probe has left in 5-level paging mode. It is the only one: the firmware's
/// other CPUs would still be in 4-level mode, with which OVMF does not cope when its services end.
fn five_levels(bench: &mut Bench) -> Result<()> {
    let program = fs::read(bench.programs().seamark()).context("the hypervisor")?;
    let media = Media::of_program(&bench.programs().probe())?
        .with_bytes("probe.txt", b"five-levels")
        .with_bytes("program.efi", &program);
    let mut machine = bench
        .machine_with(&media)?
        .with_cpus(1, 1)
        .with_memory("512M");
    machine.stub = None;
    let mut console = Console::wait(bench.start(&machine)?, LIMIT)?;
    ensure!(
        console.boot_log().contains("probe: start"),
        "{}",
        console.boot_log()
    );
    let boot = console.succeed("boot", LIMIT)?;
    are_these(&boot["problems"], &[NO_X2APIC]).with_context(|| format!("{boot}"))?;
    // The address is in the direct map, above the image and the heap: every level of the tables is walked.
    console.succeed("mem peek 0x100000", LIMIT)?;
    Ok(())
}

/// Starts 254 CPUs in two packages, which only the stub gives an x2APIC: QEMU 7.2 without KVM has none, and starts no
/// machine with more than 255 CPUs.
fn many_cpus(bench: &mut Bench) -> Result<()> {
    const CPUS: usize = 254;
    // Far fewer than the CPUs: what is the same for all is said once.
    const MAX_LINES: usize = 60;
    // Emulated CPUs share the computer's cores; one that gets none for a while is not stuck.
    let patient = "[host]\ncpu_timeout_ms = 60000\n";
    let machine = bench.machine_with_config(patient)?;
    let machine = machine.with_cpus(CPUS as u32, 2).with_memory("4G");
    let mut console = Console::wait(bench.start(&machine)?, 4 * LIMIT)?;
    let said = console.boot_log().to_owned();
    ensure!(said.lines().count() <= MAX_LINES, "{said}");
    let (_, took) = said
        .split_once("254 of 254 CPUs run, after ")
        .with_context(|| format!("not every CPU runs:\n{said}"))?;
    let us: u64 = took.split(' ').next().unwrap_or_default().parse()?;
    bench.note(format!("{} ms to start 253 CPUs", us / 1000));
    let boot = console.succeed("boot", LIMIT)?;
    are_these(&boot["problems"], &[]).with_context(|| format!("{boot}"))?;
    let cpus = console.succeed("cpus", LIMIT)?;
    ensure!(cpus["running"] == CPUS && cpus["packages"] == 2, "{cpus}");
    let tdx = console.succeed("tdx", LIMIT)?;
    ensure!(tdx["state"] == "ready", "{tdx}");
    let groups = tdx["microcode"].as_array().map_or(&[][..], Vec::as_slice);
    let of_first = groups.first().and_then(|group| group["cpus"].as_array());
    ensure!(
        groups.len() == 1 && of_first.is_some_and(|cpus| cpus.len() == CPUS),
        "{tdx}"
    );
    Ok(())
}

/// Checks that each sentence has one of the parts, and each part is in a sentence.
fn are_these(sentences: &Value, parts: &[&str]) -> Result<()> {
    let sentences: Vec<_> = sentences.as_array().context("no list")?.iter().collect();
    let has = |sentence: &Value, part: &str| sentence.as_str().is_some_and(|s| s.contains(part));
    for sentence in &sentences {
        ensure!(
            parts.iter().any(|part| has(sentence, part)),
            "an unexpected problem: {sentence}"
        );
    }
    for part in parts {
        ensure!(
            sentences.iter().any(|sentence| has(sentence, part)),
            "no problem mentions {part:?}"
        );
    }
    Ok(())
}

pub const ALL: &[Scenario] = &[
    // Chipsets.
    Scenario::plain("machines-i440fx", &Plain::chipset("pc")).always(),
    Scenario::plain("machines-i440fx-old", &Plain::chipset("pc-i440fx-2.12")),
    Scenario::plain("machines-q35-old", &Plain::chipset("q35,smm=off")),
    Scenario::plain("machines-no-hpet", &Plain::chipset("q35,hpet=off")).always(),
    // Numbers of CPUs.
    Scenario::plain("machines-one-cpu", &Plain::cpus(1, 1)),
    Scenario::plain("machines-four-cpus", &Plain::cpus(4, 4)),
    Scenario::plain("machines-eight-cpus", &Plain::cpus(8, 2)).always(),
    Scenario::plain("machines-255-cpus", &Plain::cpus(255, 1)),
    Scenario::in_group(GROUP, "machines-many-cpus", many_cpus, &[]),
    // CPU models.
    Scenario::plain("machines-qemu64", &Plain::cpu("qemu64")),
    Scenario::plain("machines-i440fx-qemu64", &Plain::cpu("qemu64").on("pc")),
    Scenario::plain("machines-core2", &Plain::intel("Conroe")),
    Scenario::plain("machines-nehalem", &Plain::intel("Nehalem")),
    Scenario::plain("machines-skylake", &Plain::intel("Skylake-Server")).always(),
    Scenario::plain("machines-icelake", &Plain::intel("Icelake-Server")),
    Scenario::plain("machines-epyc", &Plain::cpu("EPYC")).always(),
    Scenario::plain("machines-opteron", &Plain::cpu("Opteron_G3")),
    // CPUs without a feature.
    Scenario::plain(
        "machines-no-nx",
        &Plain::cpu("max,phys-bits=48,-nx").sentence("execute disable"),
    )
    .always(),
    Scenario::plain(
        "machines-no-gib-pages",
        &Plain::cpu("max,phys-bits=40,-pdpe1gb").memory("5G"),
    ),
    Scenario::plain("machines-no-la57", &Plain::cpu("max,phys-bits=39,-la57")),
    // Memory.
    Scenario::plain("machines-256m", &Plain::USUAL.memory("256M")),
    Scenario::plain("machines-12g", &Plain::USUAL.memory("12G")),
    Scenario::plain("machines-numa", &Plain::cpus(4, 2).memory("6G").and(NUMA)).always(),
    // PCI.
    Scenario::plain("machines-two-bridges", &Plain::with(TWO_BRIDGES)),
    Scenario::plain("machines-bridge-i440fx", &Plain::chipset("pc").and(PXB)),
    Scenario::plain("machines-iommu", &Plain::with(IOMMU)).always(),
    Scenario::plain("machines-usb", &Plain::with(USB)),
    Scenario::plain("machines-usb-i440fx", &Plain::chipset("pc").and(UHCI)),
    Scenario::plain("machines-devices", &Plain::with(DEVICES)),
    // Firmware that switches 5-level paging on, as OVMF does not.
    Scenario::in_group(GROUP, "machines-five-levels", five_levels, &[]).always(),
    // An emulator of its own.
    Scenario::in_group(GROUP, "machines-bochs", bochs::run, &[Need::Bochs]),
    // The serial port.
    Scenario::plain(
        "machines-other-irq",
        &Plain::serial("isa-serial,index=0,irq=5,chardev=serial"),
    ),
    Scenario::plain(
        "machines-com2",
        &Plain::serial("isa-serial,index=1,chardev=serial"),
    )
    .always(),
    // The firmware's own console is a port that the hypervisor does not drive.
    Scenario::plain(
        "machines-no-serial",
        &Plain::serial("pci-serial,chardev=serial").sentence("has no console"),
    )
    .always(),
];

const NUMA: &[&str] = &[
    "-object",
    "memory-backend-ram,id=m0,size=2G",
    "-object",
    "memory-backend-ram,id=m1,size=4G",
    "-numa",
    "node,nodeid=0,cpus=0-1,memdev=m0",
    "-numa",
    "node,nodeid=1,cpus=2-3,memdev=m1",
];
const TWO_BRIDGES: &[&str] = &[
    "-device",
    "pxb-pcie,id=far,bus_nr=128,bus=pcie.0",
    "-device",
    "pcie-root-port,id=far_port,bus=far,chassis=1",
    "-device",
    "e1000e,bus=far_port",
    "-device",
    "pcie-root-port,id=near,bus=pcie.0,chassis=2",
    "-device",
    "pcie-pci-bridge,id=old,bus=near",
    "-device",
    "e1000,bus=old,addr=1",
];
const PXB: &[&str] = &[
    "-device",
    "pxb,id=far,bus_nr=128,bus=pci.0,addr=9",
    "-device",
    "pci-bridge,id=below,bus=far,chassis_nr=3,addr=1",
    "-device",
    "e1000,bus=below,addr=1",
];
const IOMMU: &[&str] = &[
    "-device",
    "intel-iommu,intremap=off,aw-bits=48",
    "-device",
    "e1000e",
];
const USB: &[&str] = &[
    "-device",
    "qemu-xhci",
    "-device",
    "usb-kbd",
    "-device",
    "ich9-usb-ehci1,id=ehci,addr=1d.7,multifunction=on",
    "-device",
    "ich9-usb-uhci1,masterbus=ehci.0,firstport=0,addr=1d.0,multifunction=on",
];
const UHCI: &[&str] = &["-device", "piix3-usb-uhci", "-device", "usb-kbd"];
const DEVICES: &[&str] = &[
    "-device",
    "e1000e",
    "-device",
    "virtio-net-pci",
    "-device",
    "VGA",
    "-device",
    "megasas",
    "-device",
    "ich9-intel-hda",
    "-device",
    "virtio-rng-pci",
    "-device",
    "virtio-serial-pci",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_at_least_25_machines() {
        assert!(ALL.len() >= 25, "{}", ALL.len());
    }

    #[test]
    fn every_machine_is_in_the_group() {
        for machine in ALL {
            assert!(machine.name.starts_with("machines-"), "{}", machine.name);
            assert_eq!(machine.group, Some(GROUP));
        }
    }

    #[test]
    fn problems_are_neither_missing_nor_unexpected() {
        let said = serde_json::json!(["no x2APIC: one CPU"]);
        assert!(are_these(&said, &[NO_X2APIC]).is_ok());
        assert!(are_these(&said, &[]).is_err());
        assert!(are_these(&said, &[NO_X2APIC, "clock"]).is_err());
    }
}

//! Scenarios with QEMU's model of a VT-d unit, and `edu` as a device that is turned against the machine.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stage::{self, ANSWER, CHECKS, LIFE, Named, Words, until};
use super::{Bench, Scenario};
use crate::console::Console;
use crate::qemu::{Device, Edu, Machine};

pub const ALL: &[Scenario] = &[
    Scenario::new("vtd-on", on),
    Scenario::new("vtd-without", without),
    Scenario::new("vtd-dma", dma),
    Scenario::new("vtd-flood", flood),
    Scenario::new("vtd-interrupts", interrupts),
];

/// Bytes that the device writes.
const BYTES: u64 = 256;
const PAGE: usize = 4096;
/// The address of the registers of QEMU's unit.
const UNIT: u64 = 0xFED9_0000;
/// The I/O APIC's registers, as an example of MMIO.
const IO_APIC: u64 = 0xFEC0_0000;

/// The unit is on before the TDX module is brought up, and nothing is left to complain about.
fn on(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine()?.with_iommu();
    let mut console = bench.console(&machine)?;
    let log = console.boot_log();
    let on = log.find("VT-d: 1 units, DMA is blocked, interrupts are remapped");
    let swept = log.find("bus mastering switched off");
    let module = log.find("TDX: TDH.SYS.INIT");
    ensure!(
        swept.is_some() && swept < on && on < module,
        "swept, on, module: {swept:?} {on:?} {module:?}"
    );
    let boot = console.succeed("boot", ANSWER)?;
    ensure!(boot["problems"] == Value::Array(vec![]), "{boot}");
    let tdx = console.succeed("tdx", ANSWER)?;
    ensure!(tdx["dma"]["blocked_by_vtd"] == true, "{tdx}");
    let iommu = console.succeed("iommu", ANSWER)?;
    let unit = &iommu["units"][0];
    ensure!(
        unit["base"] == format!("{UNIT:#x}") && unit["works"] == true,
        "{iommu}"
    );
    // The serial port and the power button have an entry each.
    let interrupts = &iommu["interrupts"];
    ensure!(
        interrupts["used"] == 2 && interrupts["extended"] == true,
        "{iommu}"
    );
    ensure!(iommu["faults"] == Value::Array(vec![]), "{iommu}");
    let memory = console.succeed("mem", ANSWER)?;
    ensure!(memory["ledger"]["balanced"] == true, "{memory}");
    let report = console.succeed("report", ANSWER)?;
    ensure!(report["iommu"]["units"] == iommu["units"], "{report}");
    Ok(())
}

/// Without a unit, `tdx` says what keeps devices from memory. The device, turned against the machine, reaches it: what
/// the other scenarios block is real.
fn without(bench: &mut Bench) -> Result<()> {
    let machine = with_edu(bench.machine()?).without_iommu();
    let mut console = bench.console(&machine)?;
    let tdx = console.succeed("tdx", ANSWER)?;
    ensure!(tdx["dma"]["blocked_by_vtd"] == false, "{tdx}");
    let why = tdx["dma"]["why_not"].as_str().unwrap_or_default();
    ensure!(why.contains("no DMAR"), "{why}");
    let list = console.succeed("pci list", ANSWER)?;
    let functions = list["functions"].as_array().into_iter().flatten();
    let edu = functions.into_iter().find(|line| line["id"] == "1234:11e8");
    let refusal = edu.and_then(|edu| edu["refusals"][0].as_str());
    ensure!(
        refusal.is_some_and(|why| why.starts_with("nothing confines its DMA")),
        "{list}"
    );
    let mut edu = Edu::take(console.guest().bus()?)?;
    let free = free_page(&mut console)?;
    edu.bus().write64(free, u64::MAX)?;
    edu.write_zeros(free, BYTES)?;
    let reached = edu.bus().read32(free)?;
    ensure!(reached == 0, "edu did not reach {free:#x}: {reached:#x}");
    Ok(())
}

/// The device writes to a TD's private memory, to the hypervisor's image, to its page tables and to MMIO. Each is
/// blocked, reported once, and counted. The TD and the machine go on.
fn dma(bench: &mut Bench) -> Result<()> {
    let hello = Named::new("hello", "64M", 1);
    let machine = with_edu(stage::machine(bench, &[hello])?.with_memory("512M"));
    let mut console = bench.console(&machine)?;
    console.succeed("td start hello", LIFE)?;
    Words::of("hello").pass(&mut console, "hello", CHECKS)?;
    let private = private_page(bench, &mut console)?;
    let (image, tables) = host_pages(&mut console)?;
    let mut edu = Edu::take(console.guest().bus()?)?;
    let targets = [
        ("private memory", private),
        ("the image", image),
        ("page tables", tables),
        ("MMIO", IO_APIC),
    ];
    for (number, (what, target)) in (1..).zip(targets) {
        let before = content(&mut console, target)?;
        ensure!(
            what == "MMIO" || before.contains(|c| !"0x \r\n:".contains(c)),
            "{what} at {target:#x} has nothing to lose"
        );
        // The second try is counted, and not told again.
        for _ in 0..2 {
            edu.write_zeros(target, BYTES)?;
        }
        let function = edu.name.clone();
        let faults = until(&mut console, "iommu", |iommu| {
            let first = &iommu["faults"][0];
            first["function"] == function && first["accesses"].as_u64() >= Some(2 * number)
        })?;
        ensure!(faults["faults"][0]["muted"] == false, "{faults}");
        if what != "MMIO" {
            ensure!(
                content(&mut console, target)? == before,
                "{what} at {target:#x} changed"
            );
        }
        let page = target / PAGE as u64 * PAGE as u64;
        let line = format!("VT-d blocked a write to {page:#x} by {function}");
        let told = told(&mut console, &line)?;
        ensure!(told == 1, "{what}: {told} times {line:?}");
    }
    // Nothing else suffers.
    let td = console.succeed("td show hello", ANSWER)?;
    ensure!(td["problem"].is_null(), "{td}");
    console.succeed("td destroy hello", LIFE)?;
    console.succeed("td start hello", LIFE)?;
    Words::of("hello").pass(&mut console, "hello", CHECKS)?;
    stage::nothing_illegal(&mut console)
}

/// A device that goes on trying is counted, told about a few times, and takes nothing from the machine.
fn flood(bench: &mut Bench) -> Result<()> {
    /// More than are told in the interval of the rate limit.
    const PAGES: u64 = 20;
    const TOLD: usize = 8;
    let machine = with_edu(bench.machine()?);
    let mut console = bench.console(&machine)?;
    let mut edu = Edu::take(console.guest().bus()?)?;
    for page in 0..PAGES {
        edu.write_zeros(0x1000_0000 + page * PAGE as u64, BYTES)?;
    }
    let faults = until(&mut console, "iommu", |iommu| {
        let accesses = iommu["faults"][0]["accesses"].as_u64();
        let lost = iommu["lost"].as_u64();
        accesses
            .zip(lost)
            .is_some_and(|(a, lost)| a + lost >= PAGES)
    })?;
    let told = told(&mut console, "VT-d blocked a write to 0x1000")?;
    let untold = faults["faults"][0]["untold"].as_u64().unwrap_or(0) as usize;
    // Each interval tells as many; the copies take some of them on a busy computer.
    ensure!(
        told + untold <= PAGES as usize + TOLD && told >= 1,
        "{told} told, {untold} not: {faults}"
    );
    bench.note(format!("{told} of {PAGES} faults told"));
    let boot = console.succeed("boot", ANSWER)?;
    ensure!(boot["problems"] == Value::Array(vec![]), "{boot}");
    Ok(())
}

/// The device raises the entry of the serial port's interrupt. The unit drops it, because its source is another.
fn interrupts(bench: &mut Bench) -> Result<()> {
    let machine = with_edu(bench.machine()?);
    let mut console = bench.console(&machine)?;
    let mut edu = Edu::take(console.guest().bus()?)?;
    // Entry 0 in remappable format.
    edu.interrupt(0xFEE0_0010, 0)?;
    let dropped = |text: &str| text.contains("IRTE SID");
    let log = console.guest().qemu_log()?;
    ensure!(dropped(&log), "QEMU let the interrupt pass: {log}");
    // The port itself, whose interrupt it is, works.
    console.succeed("version", ANSWER)?;
    let boot = console.succeed("boot", ANSWER)?;
    ensure!(boot["problems"] == Value::Array(vec![]), "{boot}");
    Ok(())
}

/// Adds `edu` behind a root port, the unit, and the ways to drive the device.
fn with_edu(mut machine: Machine) -> Machine {
    machine.monitor = true;
    machine.bus = true;
    machine.with_iommu().with_device(Device::Edu)
}

/// Returns how often the log has these words.
fn told(console: &mut Console, words: &str) -> Result<usize> {
    let log = console.succeed("dmesg", Duration::from_secs(60))?;
    Ok(log.to_string().matches(words).count())
}

/// Returns the physical memory at `address` as QEMU's monitor shows it.
fn content(console: &mut Console, address: u64) -> Result<String> {
    let lines = console
        .guest()
        .monitor(&format!("xp /{}gx {address:#x}", BYTES / 8))?;
    let values = lines.lines().filter_map(|line| line.split_once(": "));
    Ok(values
        .map(|(_, values)| values.trim().to_owned() + " ")
        .collect())
}

/// Returns a page of free memory.
fn free_page(console: &mut Console) -> Result<u64> {
    let memory = console.succeed("mem", ANSWER)?;
    let regions = memory["regions"].as_array().context("no regions")?;
    let address = |value: &Value| {
        let digits = value.as_str().unwrap_or_default().trim_start_matches("0x");
        u64::from_str_radix(digits, 16).unwrap_or(0)
    };
    let sizes = regions
        .iter()
        .filter(|region| region["kind"] == "conventional")
        .map(|region| {
            (
                address(&region["end"]) - address(&region["start"]),
                address(&region["start"]),
            )
        });
    let (size, start) = sizes.max().context("no free memory")?;
    // The middle: the host allocates from the ends.
    Ok((start + size / 2) / PAGE as u64 * PAGE as u64)
}

/// Returns a page of the hypervisor's code, and its first page table.
fn host_pages(console: &mut Console) -> Result<(u64, u64)> {
    let registers = console.guest().monitor("info registers")?;
    let register = |name: &str| -> Result<u64> {
        let (_, value) = registers
            .split_once(name)
            .with_context(|| format!("no {name} in {registers}"))?;
        let digits = value.split_whitespace().next().unwrap_or_default();
        u64::from_str_radix(digits, 16).with_context(|| format!("{name}{digits}"))
    };
    // The image is mapped at its own addresses.
    let mask = !(PAGE as u64 - 1);
    Ok((register("RIP=")? & mask, register("CR3=")? & mask))
}

/// Returns a page of the TD's private memory, which has the content of a page of its image.
fn private_page(bench: &Bench, console: &mut Console) -> Result<u64> {
    let image = fs::read(bench.programs().guest("hello"))?;
    let zeros = [0; PAGE];
    let pages: HashMap<&[u8], usize> = image
        .chunks_exact(PAGE)
        .enumerate()
        .filter(|(_, page)| *page != zeros && page[..8] != [0; 8])
        .map(|(index, page)| (page, index))
        .collect();
    let dump = bench.directory()?.join("memory");
    // Without the quotes, the slash would divide the size.
    let save = format!("pmemsave 0 {:#x} \"{}\"", 512u64 << 20, dump.display());
    console.guest().monitor(&save)?;
    let memory = fs::read(&dump).with_context(|| dump.display().to_string())?;
    fs::remove_file(&dump)?;
    let found = memory
        .chunks_exact(PAGE)
        .enumerate()
        .filter(|(_, page)| pages.contains_key(page))
        .map(|(index, _)| (index * PAGE) as u64);
    for address in found.collect::<Vec<_>>() {
        // The file itself is the host's, and can be read.
        let answer = console.enter(&format!("mem peek {address:#x}"), ANSWER)?;
        if answer.text.contains("private memory") {
            return Ok(address);
        }
    }
    anyhow::bail!("no page of the guest's image is private memory")
}

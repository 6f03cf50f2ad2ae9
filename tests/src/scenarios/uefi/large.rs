//! TDs of 2 and of 16 GiB: the way to the kernel costs the same. Firmware accepts what is below 4 GiB, and the kernel the
//! rest as it uses it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::medium::{self, MENU, key};
use crate::console::Console;
use crate::programs::OVMF_13;
use crate::qemu::Device;
use crate::scenarios::Bench;
use crate::scenarios::linux::shell::{PROMPT, Shell};
use crate::scenarios::stage::{
    ANSWER, LIFE, Named, Words, machine, nothing_illegal, show, type_to, used, wait_for_state,
};

/// Time limit of a boot, far more than needed, for a busy computer.
const BOOT: Duration = Duration::from_secs(600);
/// The kernel's first line.
const FIRST_LINE: &str = "Linux version";
const MIB: u64 = 1 << 20;
/// The memory that the large TD may have more than the small one at GRUB's menu, where both wait: the firmware's tables
/// of the larger address space, and what differs from boot to boot.
const MORE: u64 = 16 * MIB;
/// The same once the kernel's first line is seen. The kernel does not wait: it makes its table of all pages, a 64th of the
/// memory.
const MORE_IN_KERNEL: u64 = 1 << 30;

/// A TD of the test.
struct Size {
    name: &'static str,
    memory: &'static str,
    gib: u64,
    drive: &'static str,
}

const SIZES: [Size; 2] = [
    Size {
        name: "small",
        memory: "2G",
        gib: 2,
        drive: "0000:01:00.0",
    },
    Size {
        name: "large",
        memory: "16G",
        gib: 16,
        drive: "0000:02:00.0",
    },
];

/// Boots both TDs to their kernels, one after the other, and compares what it took.
pub fn lazily(bench: &mut Bench) -> Result<()> {
    let medium = medium::write(bench)?;
    let td = |size: &Size| {
        // One vCPU: QEMU's race on patched code needs two.
        Named::new(OVMF_13, size.memory, 1)
            .called(size.name)
            .uefi()
            .with(format!("[[td.pci]]\ndevice = \"{}\"", size.drive))
    };
    let machine = machine(bench, &SIZES.each_ref().map(td))?
        .with_iommu()
        .with_memory("20G")
        .with_device(Device::Snapshot(medium.clone()))
        .with_device(Device::Snapshot(medium));
    let mut console = bench.console(&machine)?;
    let tdx = console.succeed("tdx", ANSWER)?;
    let pamt = tdx["memory"]["pamt_bytes"].as_u64().context("a PAMT")?;
    bench.note(format!(
        "a machine of 20 GiB: PAMT of {} MiB, TDX ready after {} ms",
        pamt / MIB,
        tdx["bring_up_us"].as_u64().unwrap_or_default() / 1000
    ));
    let small = Cost::of(bench, &mut console, &SIZES[0])?;
    let large = Cost::of(bench, &mut console, &SIZES[1])?;
    for (place, [small, large], more) in [
        ("in the menu", [small.in_menu, large.in_menu], MORE),
        (
            "in the kernel",
            [small.in_kernel, large.in_kernel],
            MORE_IN_KERNEL,
        ),
    ] {
        ensure!(
            large <= small + more,
            "{place}, {} MiB of the small TD's memory are mapped, {} MiB of the large one's",
            small / MIB,
            large / MIB
        );
    }
    // The host makes tables for all memory that could be mapped in small pages, but no SEAMCALLs for it.
    ensure!(
        large.build_calls <= small.build_calls + 64,
        "{} SEAMCALLs built the small TD, {} the large one",
        small.build_calls,
        large.build_calls
    );
    has_its_memory(bench, &mut console, &SIZES[1])?;
    nothing_illegal(&mut console)
}

/// The cost of a TD.
struct Cost {
    /// SEAMCALLs to build it.
    build_calls: u64,
    /// Bytes of private memory in GRUB's menu.
    in_menu: u64,
    /// Bytes of private memory when the kernel's first line was seen.
    in_kernel: u64,
}

impl Cost {
    /// Starts a TD, and records its cost until its kernel's first line. The small TD is terminated then.
    fn of(bench: &mut Bench, console: &mut Console, size: &Size) -> Result<Self> {
        let before = used(console)?.0;
        let started = Instant::now();
        console.succeed(&format!("td start {}", size.name), LIFE)?;
        let build = started.elapsed();
        let tables = used(console)?.0.wrapping_sub(before);
        let built = show(console, size.name)?;
        let mut words = Words::of(size.name);
        words.wait(console, MENU, BOOT)?;
        let to_menu = started.elapsed();
        let in_menu = mapped(console, size.name)?;
        let sept = show(console, size.name)?["pages"]["sept"].clone();
        let exits: Vec<_> = exits(console, size.name)?
            .into_iter()
            .map(|(what, count)| format!("{count} {what}"))
            .collect();
        type_to(console, size.name, key::LINUX)?;
        words.wait(console, FIRST_LINE, BOOT)?;
        let to_kernel = started.elapsed();
        let in_kernel = mapped(console, size.name)?;
        let build_calls = built["built"]["calls"].as_u64().context("SEAMCALLs")?;
        bench.note(format!(
            "{}: built in {:.2} s by {build_calls} SEAMCALLs with {} MiB of the host's memory; menu after {:.1} s with {} MiB \
             mapped and {} pages of S-EPT; kernel after {:.1} s with {} MiB mapped",
            size.memory,
            build.as_secs_f32(),
            tables / MIB,
            to_menu.as_secs_f32(),
            in_menu / MIB,
            sept,
            to_kernel.as_secs_f32(),
            in_kernel / MIB
        ));
        bench.note(format!("    until the menu: {}", exits.join(", ")));
        if size.name == SIZES[0].name {
            console.succeed(&format!("td terminate {}", size.name), LIFE)?;
            wait_for_state(console, size.name, "reclaimed", LIFE)?;
        }
        Ok(Self {
            build_calls,
            in_menu,
            in_kernel,
        })
    }
}

/// Returns the bytes of private memory that a TD has mapped.
fn mapped(console: &mut Console, name: &str) -> Result<u64> {
    let shown = show(console, name)?;
    let pages = |key: &str| shown["pages"][key].as_u64().context("pages");
    Ok(pages("private_4k")? * 4096 + pages("private_2m")? * 2 * MIB)
}

/// Returns the exits of a TD by reason.
fn exits(console: &mut Console, name: &str) -> Result<BTreeMap<String, u64>> {
    let stats = console.succeed(&format!("stats {name}"), ANSWER)?;
    let exits = stats["exits"].as_array().context("no exits")?;
    let exit = |exit: &Value| Some((exit["what"].as_str()?.to_owned(), exit["count"].as_u64()?));
    Ok(exits.iter().filter_map(exit).collect())
}

/// Checks that a TD's kernel has all of its memory, most of which is still not accepted, and can use it.
fn has_its_memory(bench: &mut Bench, console: &mut Console, size: &Size) -> Result<()> {
    let mut words = Words::of(size.name);
    words.wait(console, PROMPT, BOOT)?;
    let mut shell = Shell::reopen(console, size.name)?;
    let memory = shell.run("grep -E 'MemTotal|Unaccepted' /proc/meminfo", ANSWER)?;
    shell.leave()?;
    let kib = |what: &str| -> Result<u64> {
        let line = memory.lines().find(|line| line.starts_with(what));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(number.with_context(|| memory.clone())?.parse()?)
    };
    let (total, unaccepted) = (kib("MemTotal")?, kib("Unaccepted")?);
    bench.note(format!(
        "{}: Linux has {} MiB, of which {} MiB are not accepted",
        size.memory,
        total >> 10,
        unaccepted >> 10
    ));
    // Linux's table of all pages, and up to 1 GiB that it shares with devices (swiotlb).
    ensure!(total >= (size.gib << 20) * 7 / 8, "{memory}");
    ensure!(unaccepted >= (size.gib << 20) / 2, "{memory}");
    console
        .succeed(&format!("td destroy {}", size.name), LIFE)
        .map(drop)
}

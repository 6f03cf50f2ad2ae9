//! Physical PCI functions, as the console shows them.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Bench, Scenario};
use crate::console::Console;
use crate::qemu::Device;

pub const ALL: &[Scenario] = &[Scenario::new("pci-devices", devices)];

const ANSWER: Duration = Duration::from_secs(20);

/// QEMU's devices by vendor and device, with their first base address register's size and the best reset.
const DEVICES: [(&str, u64, &str); 3] = [
    ("1b36:0010", 0x4000, "function-level"),
    ("1af4:1041", 0x1000, "function-level"),
    ("1234:11e8", 0x10_0000, "bus behind 0000:00:"),
];

/// A drive, a network card and `edu` behind root ports are alone in their groups and can be reset. The chipset's functions
/// are the host's.
fn devices(bench: &mut Bench) -> Result<()> {
    let drive = bench.directory()?.join("nvme.img");
    File::create(&drive)
        .and_then(|file| file.set_len(16 << 20))
        .with_context(|| format!("can't make {}", drive.display()))?;
    let machine = bench
        .machine()?
        .with_iommu()
        .with_device(Device::Nvme(drive))
        .with_device(Device::Net)
        .with_device(Device::Edu);
    let mut console = bench.console(&machine)?;
    let list = console.succeed("pci list", ANSWER)?;
    let functions = list["functions"].as_array().context("a list")?;
    for (id, size, reset) in DEVICES {
        let line = functions.iter().find(|line| line["id"] == id);
        let address = line.with_context(|| format!("no {id}: {list}"))?["address"]
            .as_str()
            .context("an address")?;
        let report = show(&mut console, address)?;
        let has_port = report["bridge"]
            .as_str()
            .is_some_and(|at| at.starts_with("0000:00:"));
        ensure!(has_port && report["group_members"] == json!([]), "{report}");
        ensure!(
            report["owner"] == "none" && report["health"] == "good",
            "{report}"
        );
        ensure!(report["refusals"] == json!([]), "{report}");
        let first = report["resets"][0].as_str().unwrap_or_default();
        ensure!(first.starts_with(reset), "{report}");
        let sizes: Vec<_> = bars(&report)
            .filter_map(|bar| bar["size"].as_u64())
            .collect();
        ensure!(sizes.contains(&size), "{report}");
        // The registers that were measured have their values again.
        let again = show(&mut console, address)?;
        ensure!(again["bars"] == report["bars"], "{again}");
        bench.note(format!("{address}: {id}, {} bytes, {first}", sizes[0]));
    }
    let sata = show(&mut console, "00:1f.2")?;
    let why = sata["refusals"].as_array().context("reasons")?;
    let is_said = |words: &str| {
        why.iter()
            .any(|why| why.as_str().is_some_and(|w| w.contains(words)))
    };
    ensure!(is_said("can't be isolated from 0000:00:1f.0"), "{sata}");
    let lpc = show(&mut console, "0000:00:1f.0")?;
    ensure!(lpc["owner"] == "host" && bars(&lpc).count() == 0, "{lpc}");
    Ok(())
}

fn show(console: &mut Console, address: &str) -> Result<Value> {
    console.succeed(&format!("pci show {address}"), ANSWER)
}

fn bars(report: &Value) -> impl Iterator<Item = &Value> {
    report["bars"].as_array().into_iter().flatten()
}

//! Physical PCI functions, as the console shows them.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::stage::{self, LIFE, Named};
use super::{Bench, Scenario};
use crate::console::Console;
use crate::qemu::Device;

pub const ALL: &[Scenario] = &[
    Scenario::new("pci-devices", devices),
    Scenario::new("pci-claims", claims),
    Scenario::new("pci-errors", errors),
];

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

/// A bridge to conventional PCI with two functions, which have its id, and one function that can't be reset.
const EDUS: [&str; 10] = [
    "-device",
    "pcie-root-port,id=above,slot=20,chassis=20",
    "-device",
    "pcie-pci-bridge,id=old,bus=above",
    "-device",
    "edu,bus=old,addr=1",
    "-device",
    "edu,bus=old,addr=2",
    "-device",
    "edu,bus=pcie.0,addr=0x10",
];

/// Groups go to a TD whole or not at all, what can't be reset or confined to none, and a function that a TD has had to
/// no other before it is released.
fn claims(bench: &mut Bench) -> Result<()> {
    let tds = [
        Named::new("hello", "64M", 1).called("one"),
        Named::new("hello", "64M", 1).called("two"),
    ];
    let mut machine = stage::machine(bench, &tds)?.with_iommu();
    machine.shape.further = &EDUS;
    let mut console = bench.console(&machine)?;
    let (pair, lone) = edus(&mut console)?;
    let [first, second] = &pair;
    let lpc = "0000:00:1f.0";
    for (device, code, why) in [
        (
            "1234:11e8",
            "invalid-argument",
            "is not one PCI function but 3",
        ),
        (&*lone, "unsupported", "it offers no reset"),
        ("00:1f.2", "unsupported", lpc),
        (
            "0000:77:00.0",
            "invalid-argument",
            "there is no PCI function",
        ),
    ] {
        refused(&mut console, &format!("td attach one {device}"), code, why)?;
    }
    let release = format!("pci release {first}");
    refused(&mut console, &release, "wrong-state", "no TD has had")?;

    let attached = console.succeed(&format!("td attach one {first}"), ANSWER)?;
    let warning = attached["warnings"][0].as_str().unwrap_or_default();
    ensure!(warning.contains(second), "{attached}");
    refused(&mut console, "td start one", "failed", second)?;
    ensure!(
        owner(&mut console, first)? == "none",
        "after a refused start"
    );

    for td in ["one", "two"] {
        for function in &pair {
            // The first TD has one of them already.
            console.ask(&format!("td attach {td} {function}"), ANSWER)?;
        }
    }
    console.succeed("td start one", LIFE)?;
    ensure!(owner(&mut console, second)? == "one", "while it runs");
    refused(
        &mut console,
        "td start two",
        "failed",
        "TD one has PCI function",
    )?;
    refused(&mut console, &release, "wrong-state", "TD one has")?;
    let line = format!("td detach one {first}");
    refused(
        &mut console,
        &line,
        "wrong-state",
        "while a TD is not built",
    )?;
    console.succeed("td destroy one", LIFE)?;
    ensure!(owner(&mut console, first)? == "formerly one", "afterwards");
    refused(
        &mut console,
        "td start two",
        "failed",
        "may hold data of TD one",
    )?;
    let released = console.succeed(&release, ANSWER)?;
    ensure!(released["functions"] == json!(pair), "{released}");
    console.succeed("td start two", LIFE)?;
    ensure!(owner(&mut console, first)? == "two", "after the release");
    console.succeed("td destroy two", LIFE)?;
    let events = console.succeed("events", ANSWER)?.to_string();
    for (td, what) in [("one", "got"), ("one", "gave back"), ("two", "got")] {
        let event = format!("TD {td} {what} PCI function {first}");
        ensure!(events.contains(&event), "no {event:?}: {events}");
    }
    stage::nothing_illegal(&mut console)?;
    drop(console);

    let mut machine = stage::machine(bench, &tds)?.without_iommu();
    machine.shape.further = &EDUS;
    let mut console = bench.console(&machine)?;
    let (pair, _) = edus(&mut console)?;
    let line = format!("td attach one {}", pair[0]);
    refused(
        &mut console,
        &line,
        "unsupported",
        "nothing confines its DMA",
    )
}

/// A network card that reports errors (AER).
const CARD: [&str; 6] = [
    "-netdev",
    "user,id=net20,restrict=on",
    "-device",
    "pcie-root-port,id=above,slot=20,chassis=20",
    "-device",
    "virtio-net-pci,id=card,netdev=net20,bus=above,aer=on,romfile=,iommu_platform=on,disable-legacy=on",
];

/// An error that a function reports ends the TD that has it, with a sentence. An unsupported request does not. The
/// function works in the next life, whose errors begin anew.
fn errors(bench: &mut Bench) -> Result<()> {
    let td = Named::new("hello", "64M", 1).with("[[td.pci]]\ndevice = \"1af4:1041\"");
    let mut machine = stage::machine(bench, &[td])?.with_iommu();
    machine.shape.further = &CARD;
    machine.monitor = true;
    let mut console = bench.console(&machine)?;
    console.succeed("td start hello", LIFE)?;
    let shown = console.succeed("td show hello", ANSWER)?;
    let at = shown["pci"][0]["address"].as_str().context("an address")?;
    let at = at.to_owned();

    inject(&mut console, "UNSUP")?;
    let report = show(&mut console, &at)?;
    ensure!(
        report["errors"] == json!(["unsupported request"]),
        "{report}"
    );
    // Many looks at the function's errors.
    let now = console.succeed("boot", ANSWER)?["uptime_us"].as_u64();
    let later = now.map(|now| now + 2_000_000);
    stage::until(&mut console, "boot", |boot| {
        boot["uptime_us"].as_u64() > later
    })?;
    let shown = console.succeed("td show hello", ANSWER)?;
    ensure!(shown["problem"].is_null(), "{shown}");

    inject(&mut console, "COMP_TIME")?;
    let said = format!("PCI function {at}: it reported an error: completion timeout");
    stage::until(&mut console, "td show hello", |td| {
        td["problem"]
            .as_str()
            .is_some_and(|why| why.contains(&said))
    })?;
    console.succeed("td destroy hello", LIFE)?;
    let report = show(&mut console, &at)?;
    ensure!(
        report["errors"] == json!([]) && report["owner"] == "formerly hello",
        "{report}"
    );
    console.succeed("td start hello", LIFE)?;
    let shown = console.succeed("td show hello", ANSWER)?;
    ensure!(shown["problem"].is_null(), "{shown}");
    console.succeed("td destroy hello", LIFE)?;
    stage::nothing_illegal(&mut console)
}

/// Has the card meet an error.
fn inject(console: &mut Console, error: &str) -> Result<()> {
    let said = console
        .guest()
        .monitor(&format!("pcie_aer_inject_error card {error}"))?;
    ensure!(said.contains("OK id: card"), "{said}");
    Ok(())
}

/// Returns the addresses of the two functions behind the bridge, and that of the third.
fn edus(console: &mut Console) -> Result<([String; 2], String)> {
    let list = console.succeed("pci list", ANSWER)?;
    let functions = list["functions"].as_array().into_iter().flatten();
    let edus = functions.filter(|line| line["id"] == "1234:11e8");
    let edus: Vec<_> = edus.filter_map(|line| line["address"].as_str()).collect();
    // In the order of addresses: bus 0 comes first.
    let [lone, first, second] = edus[..] else {
        anyhow::bail!("{list}");
    };
    Ok(([first, second].map(str::to_owned), lone.to_owned()))
}

fn owner(console: &mut Console, address: &str) -> Result<String> {
    let report = show(console, address)?;
    Ok(report["owner"].as_str().unwrap_or_default().to_owned())
}

/// Runs a command that must be refused with this code and these words.
fn refused(console: &mut Console, line: &str, code: &str, why: &str) -> Result<()> {
    let answer = console.ask(line, LIFE)?;
    let said = answer["error"].as_str().unwrap_or_default();
    ensure!(
        answer["code"] == code && said.contains(why),
        "{line}: {answer}, not {code}, {why:?}"
    );
    Ok(())
}

//! Scenarios with TDs that have PCI functions of the machine.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::linux::shell::{PROMPT, Shell};
use super::linux::{COMMAND, config, start, td};
use super::stage::{ANSWER, nothing_is_left, used};
use super::{Bench, Scenario};
use crate::console::Console;
use crate::qemu::Device;

pub const ALL: &[Scenario] = &[Scenario::new("io-small", small).with_linux()];

/// QEMU's drive and card.
const DRIVE: &str = "1b36:0010";
const CARD: &str = "1af4:1041";
/// Bytes that the guest writes.
const BYTES: usize = 8 << 20;

/// Linux in a TD writes to its drive and reads back what it wrote, has an address, and pings. The drive's image has the
/// data. The TD is terminated; nothing is left of it but the label of its functions.
fn small(bench: &mut Bench) -> Result<()> {
    let image = drive(bench)?;
    let functions = [DRIVE, CARD].map(|id| format!("[[td.pci]]\ndevice = \"{id}\"\n"));
    let linux = td("io", 2, "512M", "") + &functions.concat();
    let machine = bench.machine_with_linux(&config(&[linux]))?;
    let machine = machine
        .with_iommu()
        .with_memory("3G")
        .with_device(Device::Nvme(image.clone()))
        .with_device(Device::Net);
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    let times = start(bench, &mut console, "io", &[PROMPT])?;
    bench.note(format!("shell after {:.1} s", times[0].as_secs_f64()));

    let written = {
        let mut shell = Shell::reopen(&mut console, "io")?;
        let written = use_drive(&mut shell)?;
        use_card(&mut shell)?;
        shell.leave()?;
        written
    };
    let content = fs::read(&image).with_context(|| format!("can't read {}", image.display()))?;
    let kept = format!("{:x}", Sha256::digest(&content[..BYTES]));
    ensure!(
        kept == written,
        "the guest wrote {written}, the drive has {kept}"
    );

    for function in functions_of(&mut console)? {
        let counts = &function["counts"];
        ensure!(
            counts["interrupts"].as_u64() > Some(0) && counts["refused"] == 0,
            "{function}"
        );
        bench.note(format!(
            "{}: {} interrupts, {} + {} accesses by exits",
            function["device"], counts["interrupts"], counts["config"], counts["memory"]
        ));
    }
    nothing_is_left(&mut console, &["io"], before)?;
    let list = console.succeed("pci list", ANSWER)?;
    for id in [DRIVE, CARD] {
        let line = function(&list, id)?;
        ensure!(line["owner"] == "formerly io", "{line}");
    }
    let iommu = console.succeed("iommu", ANSWER)?;
    ensure!(iommu["faults"] == Value::Array(vec![]), "{iommu}");
    // The serial port and the power button have an entry each.
    ensure!(iommu["interrupts"]["used"] == 2, "{iommu}");
    Ok(())
}

/// Makes an empty drive.
fn drive(bench: &Bench) -> Result<PathBuf> {
    let image = bench.directory()?.join("nvme.img");
    File::create(&image)
        .and_then(|file| file.set_len(64 << 20))
        .with_context(|| format!("can't make {}", image.display()))?;
    Ok(image)
}

/// Writes random bytes to the drive and reads them back. Returns their SHA-256.
fn use_drive(shell: &mut Shell<'_>) -> Result<String> {
    let blocks = BYTES >> 20;
    let make = format!("dd if=/dev/urandom of=/tmp/data bs=1M count={blocks}");
    shell.run(&make, COMMAND)?;
    let made = hash(shell, "/tmp/data")?;
    let write = format!("dd if=/tmp/data of=/dev/nvme0n1 bs=1M count={blocks} conv=fsync");
    shell.run(&write, COMMAND)?;
    shell.run("echo 3 > /proc/sys/vm/drop_caches", COMMAND)?;
    let read = format!("dd if=/dev/nvme0n1 of=/tmp/back bs=1M count={blocks}");
    shell.run(&read, COMMAND)?;
    let back = hash(shell, "/tmp/back")?;
    ensure!(back == made, "written {made}, read {back}");
    Ok(made)
}

fn hash(shell: &mut Shell<'_>, file: &str) -> Result<String> {
    let said = shell.run(&format!("sha256sum {file}"), COMMAND)?;
    let hash = said.split_whitespace().next().unwrap_or_default();
    ensure!(hash.len() == 64, "{said}");
    Ok(hash.to_owned())
}

/// Gets an address by DHCP, and pings the gateway.
fn use_card(shell: &mut Shell<'_>) -> Result<()> {
    shell.run("ifconfig eth0 up", COMMAND)?;
    let lease = shell.run("udhcpc -n -q -i eth0 -s /etc/udhcpc", COMMAND)?;
    ensure!(lease.contains("lease of 10.0.2.15 obtained"), "{lease}");
    let ping = shell.run("ping -c 1 -w 20 10.0.2.2", COMMAND)?;
    ensure!(ping.contains("1 packets received"), "{ping}");
    Ok(())
}

fn functions_of(console: &mut Console) -> Result<Vec<Value>> {
    let shown = console.succeed("td show io", ANSWER)?;
    let functions = shown["pci"].as_array().cloned();
    let functions = functions.with_context(|| format!("no functions: {shown}"))?;
    ensure!(functions.len() == 2, "{shown}");
    Ok(functions)
}

fn function<'a>(list: &'a Value, id: &str) -> Result<&'a Value> {
    let functions = list["functions"].as_array().into_iter().flatten();
    let mut found = functions.filter(|line| line["id"] == id);
    found.next().with_context(|| format!("no {id}: {list}"))
}

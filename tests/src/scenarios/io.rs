//! Scenarios with TDs that have PCI functions of the machine.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::linux::shell::{PROMPT, Shell};
use super::linux::{COMMAND, config, start, td};
use super::stage::{self, ANSWER, LIFE, Named, Words, nothing_is_left, used};
use super::{Bench, Scenario};
use crate::console::Console;
use crate::qemu::Device;

pub const ALL: &[Scenario] = &[
    Scenario::new("io-small", small).with_linux(),
    Scenario::new("io-hostile", hostile),
];

/// QEMU's drive and card.
const DRIVE: &str = "1b36:0010";
const CARD: &str = "1af4:1041";
/// Blocked accesses of a hostile guest, at least: one for each address that it tries on its own.
const BLOCKED: u64 = 8;
/// The hostile guest's words when its drive works.
const DESCRIBED: &str = "ok the-drive-describes-itself";
/// Bytes of tables that stay after the first life with a function, at most: the unit's for its bus, the host's for its
/// memory.
const STAYING: u64 = 64 << 10;
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
    console.succeed("td destroy io", LIFE)?;
    let after = used(&mut console)?;
    let more = after.0.wrapping_sub(before.0);
    ensure!(
        more <= STAYING && after.1 == before.1,
        "{more} bytes more are in use, and {} in quarantine",
        after.1
    );
    stage::nothing_illegal(&mut console)?;
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

/// A guest turns its drive against everything, while another TD runs. Nothing but that guest suffers, and each blocked
/// access is counted.
fn hostile(bench: &mut Bench) -> Result<()> {
    const STEPS: u64 = 300;
    let image = drive(bench)?;
    let tds = [
        Named::new("drive", "64M", 1)
            .wishing(&[0, STEPS])
            .with(format!("[[td.pci]]\ndevice = \"{DRIVE}\"")),
        Named::new("smp", "64M", 2),
    ];
    let machine = stage::machine(bench, &tds)?.with_iommu();
    let machine = machine.with_memory("1G").with_device(Device::Nvme(image));
    let mut console = bench.console(&machine)?;
    // A first life leaves tables that stay: the unit's for the drive's bus, the host's for the drive's memory.
    console.succeed("td start drive", LIFE)?;
    Words::of("drive").wait(&mut console, DESCRIBED, LIFE)?;
    console.succeed("td destroy drive", LIFE)?;
    let before = used(&mut console)?;
    console.succeed("td start smp", LIFE)?;
    console.succeed("td start drive", LIFE)?;
    let mut words = Words::of("drive");
    words.wait(&mut console, "drive: seed ", LIFE)?;
    let seed = words
        .text
        .lines()
        .find(|line| line.starts_with("drive: seed "));
    bench.note(seed.unwrap_or_default().to_owned());
    words.pass(&mut console, "drive", LIFE)?;
    // The other TD goes on.
    let mut smp = Words::of("smp");
    smp.read(&mut console)?;
    let lines = |text: &str| text.matches(" counts ").count();
    let so_far = lines(&smp.text);
    smp.wait_for(&mut console, LIFE, |text| lines(text) > so_far)?;
    ensure!(!smp.text.contains("FAIL "), "{}", smp.text);

    let iommu = console.succeed("iommu", ANSWER)?;
    let faults = &iommu["faults"][0];
    ensure!(faults["accesses"].as_u64() >= Some(BLOCKED), "{iommu}");
    let shown = console.succeed("td show drive", ANSWER)?;
    let counts = &shown["pci"][0]["counts"];
    ensure!(counts["interrupts"].as_u64() > Some(0), "{shown}");
    bench.note(format!(
        "{} accesses blocked by VT-d; {} interrupts, {} + {} accesses by exits",
        faults["accesses"], counts["interrupts"], counts["config"], counts["memory"]
    ));
    // The next life finds a drive that works.
    console.succeed("td destroy drive", LIFE)?;
    console.succeed("td start drive", LIFE)?;
    Words::of("drive").wait(&mut console, DESCRIBED, LIFE)?;
    nothing_is_left(&mut console, &["drive", "smp"], before)
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

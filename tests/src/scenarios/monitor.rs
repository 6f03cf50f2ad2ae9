//! The monitor beneath other programs than the hypervisor.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use super::{Bench, Scenario};
use crate::media::Media;
use crate::qemu::{Boot, Machine};

pub const ALL: &[Scenario] = &[
    Scenario::new("probe", probe),
    Scenario::by_name_only("monitor-linux", linux),
];

/// Debian's kernel of the 6.12 series, in bookworm-security and bookworm-backports.
const KERNEL_PACKAGE: &str = "linux-image-6.12-cloud-amd64";

/// The machine that the stub presents, checked from inside by an EFI application.
fn probe(bench: &mut Bench) -> Result<()> {
    let media = Media::of_program(&bench.programs().probe())?;
    let machine = Machine::new(bench.disk(&media)?, Some(bench.stub()));
    let mut guest = bench.start(&machine)?;
    let limit = Duration::from_secs(120);
    guest.expect("\nprobe: start\n", limit)?;
    let said = guest.expect(" failed\n", limit)?;
    let checks = said.lines().filter(|line| line.starts_with("ok ")).count();
    let failures: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("FAIL "))
        .collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    ensure!(
        said.ends_with(&format!("probe: {checks} ok, 0 failed\n")),
        "{said}"
    );
    bench.note(format!("{checks} checks"));
    // Eight of its checks do what is forbidden.
    bench.provoke("seamrr_access", 2);
    bench.provoke("keyid_alias", 2);
    bench.provoke("private_read", 3);
    bench.provoke("private_write", 2);
    guest.wait_for_end(limit)?;
    Ok(())
}

/// Debian's 6.12 cloud kernel boots through OVMF above the resident monitor, with all CPUs, until it has no root.
fn linux(bench: &mut Bench) -> Result<()> {
    let kernel = debian_kernel(bench.directory()?)?;
    let boot = Boot::Linux {
        kernel,
        command_line: "console=ttyS0,115200 panic=-1".to_owned(),
    };
    // With TDX on, firmware locks the CPUs in x2APIC mode, and Linux then wants interrupt remapping, which this machine
    // does not have.
    let machine = Machine::new(boot, Some(bench.stub())).with_stub_option("tdx", "off");
    let mut guest = bench.start(&machine)?;
    let limit = Duration::from_secs(240);
    guest.expect("smp: Brought up ", limit)?;
    let cpus = guest.expect("\n", limit)?;
    ensure!(cpus.ends_with(" 4 CPUs\n"), "brought up {cpus}");
    guest.expect("VFS: Unable to mount root fs", limit)?;
    Ok(())
}

/// Fetches the kernel without installing it.
fn debian_kernel(directory: &Path) -> Result<PathBuf> {
    if let Some(kernel) = env::var_os("SEAMARK_LINUX") {
        return Ok(kernel.into());
    }
    let unpacked = directory.join("kernel");
    fs::create_dir_all(&unpacked)?;
    if let Some(kernel) = find_kernel(&unpacked)? {
        return Ok(kernel);
    }
    let advice = "run `apt-get update` first, or set SEAMARK_LINUX to a kernel image of your own";
    let depends =
        output(Command::new("apt-cache").args(["depends", "--important", KERNEL_PACKAGE]))
            .context(advice)?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("apt-get knows no {KERNEL_PACKAGE}; {advice}"))?;
    output(
        Command::new("apt-get")
            .args(["download", package])
            .current_dir(directory),
    )
    .context(advice)?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            output(Command::new("dpkg").arg("-x").arg(&path).arg(&unpacked))?;
            fs::remove_file(path)?;
        }
    }
    find_kernel(&unpacked)?.with_context(|| format!("{package} holds no kernel"))
}

fn find_kernel(unpacked: &Path) -> Result<Option<PathBuf>> {
    let boot = unpacked.join("boot");
    if !boot.exists() {
        return Ok(None);
    }
    for entry in fs::read_dir(boot)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("vmlinuz-") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("can't start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

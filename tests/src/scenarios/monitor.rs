//! Scenarios with the monitor below programs other than the hypervisor.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::linux::{STALE, TRIES};
use super::{Bench, Scenario};
use crate::media::Media;
use crate::qemu::{Boot, Guest, Machine};

pub const ALL: &[Scenario] = &[
    Scenario::new("probe", probe),
    Scenario::by_name_only("monitor-linux", linux).with_linux(),
];

/// Checks the machine that the stub presents, from inside, with an EFI application.
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
    // Eight of its checks do something forbidden.
    bench.provoke("seamrr_access", 2);
    bench.provoke("keyid_alias", 2);
    bench.provoke("private_read", 3);
    bench.provoke("private_write", 2);
    guest.wait_for_end(limit)?;
    Ok(())
}

/// Boots Debian's 6.12 cloud kernel through OVMF above the resident monitor, with all CPUs, until it finds no root.
fn linux(bench: &mut Bench) -> Result<()> {
    let boot = Boot::Linux {
        kernel: bench.programs().linux().kernel(),
        command_line: "console=ttyS0,115200 panic=-1".to_owned(),
    };
    // With TDX on, firmware locks the CPUs in x2APIC mode, and Linux then needs interrupt remapping, which this
    // machine does not have.
    let machine = Machine::new(boot, Some(bench.stub())).with_stub_option("tdx", "off");
    for _ in 0..TRIES {
        let mut guest = bench.start(&machine)?;
        if boots(&mut guest)? {
            return Ok(());
        }
        bench.note("Linux executed code that was patched already; started again");
    }
    bail!("QEMU has lost Linux {TRIES} times")
}

/// Checks that Linux gets as far as it can without a root. Returns `false` if QEMU has lost it.
fn boots(guest: &mut Guest) -> Result<bool> {
    let limit = Duration::from_secs(240);
    let (lost, _) = guest.expect_any(&["smp: Brought up ", STALE], limit)?;
    if lost == 1 {
        return Ok(false);
    }
    let cpus = guest.expect("\n", limit)?;
    ensure!(cpus.ends_with(" 4 CPUs\n"), "brought up {cpus}");
    let (lost, _) = guest.expect_any(&["VFS: Unable to mount root fs", STALE], limit)?;
    Ok(lost == 0)
}

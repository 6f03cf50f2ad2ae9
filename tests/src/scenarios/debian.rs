//! Scenarios with a disk that has Debian on it, as `cargo xtask guest debian` makes it.

mod hub;
mod io;
mod lan;
mod pair;
mod plain;
mod server;
mod uefi;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Bench, Scenario};
use crate::programs::Debian;
use crate::qemu::Forward;
use crate::ssh::Ssh;

pub const ALL: &[Scenario] = &[
    Scenario::by_name_only("debian-plain", plain::boots).with_debian(),
    Scenario::by_name_only("io-debian", io::io).with_debian(),
    Scenario::by_name_only("virtio-debian", lan::lan).with_debian_and_linux(),
    Scenario::in_group(UEFI, "uefi-debian-13", uefi::boots_with_13, &[]).with_debian_and_ovmf_13(),
    Scenario::in_group(UEFI, "uefi-debian-12", uefi::boots_with_12, &[]).with_debian_and_ovmf_13(),
    Scenario::by_name_only("uefi-plain", uefi::boots_what_others_boot).with_debian_and_ovmf_13(),
];

/// The name by which both boots by UEFI run.
const UEFI: &str = "uefi-debian";

/// The end of what a boot prints on the serial port.
const LOGIN: &str = "debian login: ";
/// Time limit of a command that only asks or writes little: far more than needed, for a busy computer.
const COMMAND: Duration = Duration::from_secs(120);
/// The address that QEMU's DHCP server gives the first guest.
const ADDRESS: &str = "10.0.2.15/24";

/// Returns the user's way into a guest behind `forward`.
fn ssh(bench: &Bench, forward: Forward) -> Result<Ssh> {
    // Each guest has the disk's one key, at another port.
    let known_hosts = bench.directory()?.join("known_hosts");
    let key = bench.programs().debian().key();
    Ok(Ssh::new(Debian::USER, key, forward.port, known_hosts))
}

/// Checks that everything started, that the root file system is that of the drive, and that the network has an address
/// from the DHCP server.
fn is_well(ssh: &Ssh) -> Result<()> {
    let state = ssh.run(
        "systemctl is-system-running --wait; systemctl --failed --no-legend --plain",
        COMMAND,
    );
    ensure!(
        state.as_ref().is_ok_and(|state| state.trim() == "running"),
        "a unit failed: {state:?}"
    );
    let root = ssh.run("findmnt --noheadings --output SOURCE,FSTYPE /", COMMAND)?;
    let root: Vec<_> = root.split_whitespace().collect();
    ensure!(root == [Debian::ROOT, "ext4"], "{root:?}");
    let addresses = ssh.run("ip -brief -4 address", COMMAND)?;
    let card = addresses.lines().find(|line| line.contains(ADDRESS));
    card.with_context(|| format!("no {ADDRESS} in {addresses}"))?;
    Ok(())
}

//! A disk with Debian 13, laid out as Debian's installer does: GPT, an EFI system partition with shim and GRUB, and a root
//! file system of ext4.
//!
//! It boots by UEFI, and, since its kernel has NVMe and ext4 built in, directly with the kernel beside it.

mod disk;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use seamark_tests::programs::{Debian, Programs};

use super::mmdebstrap::System;
use super::packages::{output, read, write};
use crate::{host, workspace};

/// Packages beside the essential ones: those of a server with a network, ssh and one user, what the installer adds to
/// boot it by UEFI, and the programs that its services call.
const PACKAGES: [&str; 16] = [
    "dbus",
    "dosfstools",
    "e2fsprogs",
    "grub-efi-amd64",
    "grub-efi-amd64-signed",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-cloud-amd64",
    "openssh-server",
    "shim-signed",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
];
/// Finishes the system. Capitals between percent signs stand for what only this build knows.
const FINISH: &str = include_str!("system.sh");
/// The root file system's UUID.
pub const ROOT_UUID: &str = "5ea3a4c0-0d13-4b1a-9c50-6e2f1c7d8a02";
/// The serial number of the EFI system partition's volume.
const ESP_ID: u32 = 0x5EA3_D13A;

/// The disk; made if it is missing, or if what it is made from has changed.
pub fn get() -> Result<Debian> {
    let debian = Programs::in_directory(&workspace::target().join("seamark")).debian();
    let recipe = format!(
        "{}{}",
        system(&[FINISH]).recipe(),
        disk::recipe(ROOT_UUID, ESP_ID)
    );
    if fs::read_to_string(debian.recipe()).is_ok_and(|made| made == recipe) {
        return Ok(debian);
    }
    host::require(&host::DEBIAN_DISK)?;
    if !host::is_root() {
        host::require(&host::UNPRIVILEGED)?;
    }
    let directory = debian.directory();
    // A part of another build would be taken for one of this.
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory)
        .with_context(|| format!("can't create {}", directory.display()))?;
    let tar = directory.join("system.tar");
    system(&[&finish(&key(&debian)?)]).make(&tar)?;
    disk::make(&debian, &tar, ROOT_UUID, ESP_ID)?;
    fs::remove_file(&tar)?;
    // Last, for it is the sign that all is there.
    write(&debian.recipe(), recipe.as_bytes())?;
    Ok(debian)
}

fn system<'a>(hooks: &'a [&'a str]) -> System<'a> {
    System {
        release: "trixie",
        packages: &PACKAGES,
        left_out: &[],
        hooks,
        is_a_machine: true,
    }
}

/// Returns the commands that finish the system, for the user with this public key.
fn finish(key: &str) -> String {
    FINISH
        .replace("%KEY%", key)
        .replace("%ROOT%", ROOT_UUID)
        .replace("%ESP%", &disk::volume_name(ESP_ID))
}

/// Makes the user's key. Returns its public part.
fn key(debian: &Debian) -> Result<String> {
    let key = debian.key();
    let mut make = Command::new("ssh-keygen");
    make.args(["-q", "-t", "ed25519", "-N", "", "-C", Debian::USER, "-f"]);
    output(make.arg(&key))?;
    let public = read(&key.with_extension("pub"))?;
    Ok(String::from_utf8_lossy(&public).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_known() {
        let text = finish("ssh-ed25519 AAAA debian");
        assert_eq!(text.matches('%').count(), 0, "{text}");
        assert!(text.contains("UUID=5EA3-D13A /boot/efi vfat"), "{text}");
        assert!(text.contains("ssh-ed25519 AAAA debian"));
    }
}

//! The disk in a TD that boots it by UEFI: OVMF, shim, GRUB, the kernel and systemd, all from the TD's own drive; and in a
//! plain machine before and after.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::server::{self, Server, TD, copy_of_disk};
use super::{COMMAND, is_well, plain, ssh};
use crate::console::Console;
use crate::programs::{OVMF, OVMF_13};
use crate::qemu::Forward;
use crate::scenarios::Bench;
use crate::scenarios::stage::{self, ANSWER, LIFE};
use crate::ssh::Ssh;

/// The number of times that the TD is terminated while it boots.
const ENDS: usize = 3;
const ENDS_OF_SOAK: usize = 10;

/// Boots the disk with Debian 13's OVMF.
pub fn boots_with_13(bench: &mut Bench) -> Result<()> {
    boots_with(bench, OVMF_13)
}

/// Boots the disk with Debian 12's OVMF.
pub fn boots_with_12(bench: &mut Bench) -> Result<()> {
    boots_with(bench, OVMF)
}

/// Boots one disk in a plain machine, in a TD that installs a package, and in the plain machine again, which finds the
/// package. The plain machine does not change the image.
pub fn boots_what_others_boot(bench: &mut Bench) -> Result<()> {
    let disk = copy_of_disk(bench)?;
    boots_in_a_plain_machine(bench, &disk, &[]).context("before")?;
    let (mut console, server) = new_server(bench, disk.clone(), OVMF_13)?;
    server.start(bench, &mut console)?;
    is_well(&server.ssh)?;
    note_exits(bench, &mut console)?;
    stage::only_known_parts_are_missing(bench, &mut console, TD)?;
    package::install(&server.ssh, OVMF_13)?;
    // The connection may end before its answer.
    let _ = server.ssh.run("sudo systemctl poweroff", COMMAND);
    stage::wait_for_state(&mut console, TD, "reclaimed", LIFE)?;
    drop(console);
    boots_in_a_plain_machine(bench, &disk, &[OVMF_13]).context("after")
}

/// Boots the disk by UEFI in a machine without Seamark, which leaves the image as it is, and finds the packages there that
/// TDs with these firmwares have installed.
fn boots_in_a_plain_machine(bench: &mut Bench, disk: &Path, installed: &[&str]) -> Result<()> {
    let before = digest(disk)?;
    plain::boots_by_uefi(bench, disk, |ssh| {
        for firmware in installed {
            package::is_there(ssh, firmware)?;
        }
        Ok(())
    })?;
    let after = digest(disk)?;
    ensure!(before == after, "the image was {before}, and is {after}");
    bench.note(format!("a plain machine boots the image {}", &after[..16]));
    Ok(())
}

/// Returns the SHA-256 of a file.
fn digest(file: &Path) -> Result<String> {
    let said = server::output(Command::new("sha256sum").arg(file))?;
    let digest = said.split_whitespace().next();
    Ok(digest.context("a digest")?.to_owned())
}

/// Starts a machine whose TD has this disk and this firmware.
fn new_server(bench: &mut Bench, disk: PathBuf, firmware: &str) -> Result<(Console, Server)> {
    let forward = Forward::to_isolated()?;
    let image = bench.programs().guest(firmware);
    let keys = format!("firmware = \"{firmware}\"\nmemory = \"1G\"\n");
    let machine = server::machine(bench, &disk, forward, (firmware, &image), &keys)?;
    let console = bench.console(&machine)?;
    let ssh = ssh(bench, forward)?;
    Ok((console, Server { ssh, disk }))
}

/// Boots the disk, with ssh, a package and a reboot, and terminates it at random moments of its boot.
fn boots_with(bench: &mut Bench, firmware: &str) -> Result<()> {
    bench.note(format!("{firmware}:"));
    let disk = copy_of_disk(bench)?;
    let (mut console, server) = new_server(bench, disk, firmware)?;
    // The host keeps its tables for the functions' buses and registers once it has made them.
    for command in ["td start", "td destroy"] {
        console.succeed(&format!("{command} {TD}"), LIFE)?;
    }
    let before = stage::used(&mut console)?;
    let started = Instant::now();
    server.start(bench, &mut console)?;
    let took = started.elapsed();
    is_well(&server.ssh)?;
    note_exits(bench, &mut console)?;
    stage::only_known_parts_are_missing(bench, &mut console, TD)?;
    package::install(&server.ssh, firmware)?;
    server.reboot(bench, &mut console)?;
    is_well(&server.ssh)?;
    package::is_there(&server.ssh, firmware)?;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let ends = if bench.programs().soaks() {
        ENDS_OF_SOAK
    } else {
        ENDS
    };
    bench.note(format!(
        "terminated {ends} times while it boots, seed {seed:#x}"
    ));
    for round in 0..ends {
        let ended = end(&mut console, before);
        ended.with_context(|| format!("seed {seed:#x}, round {round}"))?;
        console.succeed(&format!("td start {TD}"), LIFE)?;
        let share = random.f32();
        console.guest().pause(took.mul_f32(share))?;
    }
    end(&mut console, before)?;
    server.start(bench, &mut console)?;
    is_well(&server.ssh)?;
    package::is_there(&server.ssh, firmware)?;
    stage::nothing_is_left(&mut console, &[TD], before)
}

/// Terminates the TD, and checks that nothing of it is left.
fn end(console: &mut Console, before: (u64, u64)) -> Result<()> {
    console.succeed(&format!("td terminate {TD}"), LIFE)?;
    stage::wait_for_state(console, TD, "reclaimed", LIFE)?;
    let after = stage::used(console)?;
    ensure!(before == after, "{before:?} were in use, and {after:?} are");
    stage::nothing_illegal(console)
}

/// A package of this test's own, made and installed inside.
mod package {
    use super::{COMMAND, Context, Result, Ssh, ensure};

    /// Makes a package with a program, and installs it as an administrator does.
    pub fn install(ssh: &Ssh, firmware: &str) -> Result<()> {
        let make = format!(
            "set -e; mkdir -p /tmp/made/DEBIAN /tmp/made/usr/bin; \
             printf 'Package: from-{firmware}\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: nobody <nobody@localhost>\\nDescription: a test\\n' \
             >/tmp/made/DEBIAN/control; \
             printf '#!/bin/sh\\necho installed in a TD\\n' >/tmp/made/usr/bin/from-{firmware}; \
             chmod 755 /tmp/made/usr/bin/from-{firmware}; \
             dpkg-deb --root-owner-group --build /tmp/made /tmp/from-{firmware}.deb; \
             sudo apt-get --yes install /tmp/from-{firmware}.deb"
        );
        ssh.run(&make, COMMAND).context("apt-get install")?;
        is_there(ssh, firmware)
    }

    /// Checks that the package is installed and its program runs.
    pub fn is_there(ssh: &Ssh, firmware: &str) -> Result<()> {
        let ask = format!(
            "dpkg-query --show --showformat '${{db:Status-Status}}' from-{firmware}; echo; from-{firmware}"
        );
        let said = ssh.run(&ask, COMMAND)?;
        ensure!(
            said.lines().eq(["installed", "installed in a TD"]),
            "{said}"
        );
        Ok(())
    }
}

/// Records the exits until the login, by kind.
fn note_exits(bench: &mut Bench, console: &mut Console) -> Result<()> {
    let stats = console.succeed(&format!("stats {TD}"), ANSWER)?;
    let exits = stats["exits"].as_array().context("no exits")?;
    let text = |exit: &serde_json::Value| {
        let what = exit["what"].as_str().unwrap_or("?");
        format!("{} {what}", exit["count"])
    };
    let all: Vec<_> = exits.iter().map(text).collect();
    bench.note(format!("until the login: {}", all.join(", ")));
    Ok(())
}

//! The disk in a TD that boots it by UEFI: OVMF, shim, GRUB, the kernel and systemd, all from the TD's own drive.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::server::{self, Server, TD, copy_of_disk};
use super::{is_well, ssh};
use crate::console::Console;
use crate::programs::{OVMF, OVMF_13};
use crate::qemu::Forward;
use crate::scenarios::Bench;
use crate::scenarios::stage::{self, LIFE};

/// The number of times that the TD is terminated while it boots.
const ENDS: usize = 3;
const ENDS_OF_SOAK: usize = 10;

/// Boots the disk with Debian 13's OVMF and with Debian 12's, with ssh and a reboot, and terminates it at random moments
/// of its boot.
pub fn boots(bench: &mut Bench) -> Result<()> {
    for firmware in [OVMF_13, OVMF] {
        boots_with(bench, firmware).context(firmware)?;
    }
    Ok(())
}

fn boots_with(bench: &mut Bench, firmware: &str) -> Result<()> {
    bench.note(format!("{firmware}:"));
    let forward = Forward::to_isolated()?;
    let disk = copy_of_disk(bench)?;
    let image = bench.programs().guest(firmware);
    let keys = format!("firmware = \"{firmware}\"\nmemory = \"1G\"\n");
    let machine = server::machine(bench, &disk, forward, (firmware, &image), &keys)?;
    let mut console = bench.console(&machine)?;
    // The host keeps its tables for the functions' buses and registers once it has made them.
    for command in ["td start", "td destroy"] {
        console.succeed(&format!("{command} {TD}"), LIFE)?;
    }
    let before = stage::used(&mut console)?;
    let server = Server {
        ssh: ssh(bench, forward)?,
        disk,
    };
    let started = Instant::now();
    server.start(bench, &mut console)?;
    let took = started.elapsed();
    is_well(&server.ssh)?;
    note_unanswered(bench, &mut console)?;
    server.reboot(bench, &mut console)?;
    is_well(&server.ssh)?;
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

/// Records the accesses that nothing answered.
fn note_unanswered(bench: &mut Bench, console: &mut Console) -> Result<()> {
    let shown = stage::show(console, TD)?;
    let places = shown["unanswered"]["places"].as_array();
    let places = places.with_context(|| format!("no places: {shown}"))?;
    let text = |place: &serde_json::Value| {
        let word = |key: &str| place[key].as_str().unwrap_or("?").to_owned();
        let count = |key: &str| place[key].as_u64().unwrap_or(0);
        format!(
            "{} {} ({}, {})",
            word("kind"),
            word("at"),
            count("reads"),
            count("writes")
        )
    };
    let all: Vec<_> = places.iter().map(text).collect();
    bench.note(format!("unanswered (reads, writes): {}", all.join(", ")));
    Ok(())
}

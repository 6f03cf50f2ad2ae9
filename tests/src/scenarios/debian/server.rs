//! A TD with the disk's drive and a network card, as its user sees it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{COMMAND, LOGIN};
use crate::console::Console;
use crate::media::Media;
use crate::qemu::{Device, Forward, Machine};
use crate::scenarios::Bench;
use crate::scenarios::linux::{STALE, TRIES};
use crate::scenarios::stage::{self, LIFE, Words};
use crate::ssh::Ssh;

/// The TD's name.
pub const TD: &str = "debian";
/// Time limit from `td start` to the login, far more than needed, for a busy computer: by UEFI it took 600 s on one with four
/// other machines.
const BOOT: Duration = Duration::from_secs(1500);

/// A file of the host that the TD is built from: its name, and its place.
pub type File<'a> = (&'a str, &'a Path);

/// Creates the machine. Its TD has the first two devices, and these keys besides.
pub fn machine(
    bench: &Bench,
    disk: &Path,
    forward: Forward,
    (name, path): File<'_>,
    keys: &str,
) -> Result<Machine> {
    let config = format!(
        "[host]\ncpu_timeout_ms = 60000\n\
         [[file]]\nname = \"{name}\"\npath = \"{name}\"\n\
         [[td]]\nname = \"{TD}\"\n{keys}vcpus = 2\n\
         [[td.pci]]\ndevice = \"0000:01:00.0\"\n\
         [[td.pci]]\ndevice = \"0000:02:00.0\"\n"
    );
    let media = Media::of_program(&bench.programs().seamark())?
        .with_config_text(&config)
        .with_file(name, path)?;
    let machine = bench.machine_with(&media)?.with_iommu();
    Ok(machine
        .with_device(Device::Nvme(disk.to_owned()))
        .with_device(Device::NetWithSsh(forward)))
}

/// Makes this scenario's own copy of the disk.
pub fn copy_of_disk(bench: &Bench) -> Result<PathBuf> {
    let copy = bench.directory()?.join("nvme.img");
    let mut command = Command::new("cp");
    command
        .arg("--sparse=always")
        .arg(bench.programs().debian().disk())
        .arg(&copy);
    output(&mut command)?;
    Ok(copy)
}

/// Returns the standard output of a command that must succeed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output();
    let output = output.with_context(|| format!("can't start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

/// Starts a TD. Returns when it lets the user in. If QEMU loses the TD, another one is started.
pub fn start(bench: &mut Bench, console: &mut Console, name: &str, ssh: &Ssh) -> Result<()> {
    for _ in 0..TRIES {
        let started = Instant::now();
        console.succeed(&format!("td start {name}"), LIFE)?;
        if comes_up(console, name, ssh)? {
            let took = started.elapsed().as_secs_f32();
            bench.note(format!("{name}: ssh {took:.1} s after td start"));
            return Ok(());
        }
        bench.note(format!(
            "TD {name} executed code that was patched already; started again"
        ));
        console.succeed(&format!("td destroy {name}"), LIFE)?;
    }
    bail!("QEMU has lost TD {name} {TRIES} times")
}

/// Waits until a TD lets the user in. Returns false if QEMU executed code that had been patched.
fn comes_up(console: &mut Console, name: &str, ssh: &Ssh) -> Result<bool> {
    let mut words = Words::of(name);
    words
        .wait_for(console, BOOT, |text| {
            text.contains(LOGIN) || text.contains(STALE)
        })
        .context("no login")?;
    if words.text.contains(STALE) {
        return Ok(false);
    }
    let damaged = words
        .text
        .lines()
        .find(|line| line.contains("EXT4-fs error"));
    ensure!(damaged.is_none(), "{damaged:?}");
    ssh.wait(COMMAND)?;
    Ok(true)
}

/// The TD as its user sees it.
pub struct Server {
    pub ssh: Ssh,
    pub disk: PathBuf,
}

impl Server {
    /// Starts the TD. Returns when it lets the user in. If QEMU loses the TD, another one is started.
    pub fn start(&self, bench: &mut Bench, console: &mut Console) -> Result<()> {
        start(bench, console, TD, &self.ssh)
    }

    /// Reboots from inside. Returns when the next life lets the user in.
    pub fn reboot(&self, bench: &mut Bench, console: &mut Console) -> Result<()> {
        const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.ssh.run(BOOT_ID, COMMAND)?;
        let began = stage::output(console, TD, stage::NOTHING, LIFE)?.began;
        let started = Instant::now();
        // The connection may end before its answer.
        let _ = self.ssh.run("sudo systemctl reboot", COMMAND);
        while stage::output(console, TD, stage::NOTHING, LIFE)?.began == began {
            ensure!(started.elapsed() < BOOT, "it does not reboot");
            console.guest().pause(Duration::from_millis(300))?;
        }
        if !comes_up(console, TD, &self.ssh)? {
            bench.note("TD debian executed code that was patched already; started again");
            console.succeed(&format!("td destroy {TD}"), LIFE)?;
            return self.start(bench, console);
        }
        let took = started.elapsed().as_secs_f32();
        bench.note(format!("ssh {took:.1} s after reboot"));
        let after = self.ssh.run(BOOT_ID, COMMAND)?;
        ensure!(before != after, "it did not reboot");
        Ok(())
    }
}

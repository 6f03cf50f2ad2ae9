//! The disk in a TD that owns the drive and a network card: a server's life, and its end at the worst moments.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::{COMMAND, LOGIN, is_well, ssh};
use crate::console::Console;
use crate::media::{Media, root_of_disk};
use crate::programs::Debian;
use crate::qemu::{Device, Forward, Machine};
use crate::scenarios::Bench;
use crate::scenarios::linux::{STALE, TRIES};
use crate::scenarios::stage::{self, LIFE, Words};
use crate::ssh::{Redirect, Ssh};

/// The TD's name.
const TD: &str = "debian";
/// Time limit from `td start` to the login.
const BOOT: Duration = Duration::from_secs(600);
/// Time limit of copying [`BYTES`] in one direction.
const COPY: Duration = Duration::from_secs(300);
/// The size of what is copied in and out.
const BYTES: usize = 64 << 20;
/// How often the TD is terminated while it writes and sends.
const ENDS: usize = 3;
const ENDS_OF_SOAK: usize = 20;

/// A server that copies data in and out, reboots, and is terminated while its devices are at work. Its next life has the
/// same devices, the same disk, and all that it had finished writing.
pub fn io(bench: &mut Bench) -> Result<()> {
    let forward = Forward::to_isolated()?;
    let disk = copy_of_disk(bench)?;
    let machine = machine(bench, &disk, forward)?;
    let mut console = bench.console(&machine)?;
    let before = stage::used(&mut console)?;
    let server = Server {
        ssh: ssh(bench, forward)?,
        disk,
    };
    server.start(bench, &mut console)?;
    is_well(&server.ssh)?;
    let sum = server.copy_in_and_out(bench)?;
    server.reboot(bench, &mut console)?;
    is_well(&server.ssh)?;
    server.still_has(&sum)?;
    let ends = if bench.programs().soaks() {
        ENDS_OF_SOAK
    } else {
        ENDS
    };
    for round in 0..ends {
        let ended = server.end_at_work(&mut console, before);
        ended.with_context(|| format!("round {round}"))?;
        server.disk_is_sound(bench)?;
        server.start(bench, &mut console)?;
        is_well(&server.ssh)?;
        server.still_has(&sum)?;
    }
    bench.note(format!("terminated at work: {ends} times"));
    stage::nothing_is_left(&mut console, &[TD], before)
}

/// Creates the machine. Its TD has the first two devices.
fn machine(bench: &Bench, disk: &Path, forward: Forward) -> Result<Machine> {
    let config = format!(
        "[host]\ncpu_timeout_ms = 60000\n\
         [[file]]\nname = \"vmlinuz\"\npath = \"vmlinuz\"\n\
         [[td]]\nname = \"{TD}\"\nkernel = \"vmlinuz\"\ncmdline = \"{}\"\nmemory = \"768M\"\nvcpus = 2\n\
         [[td.pci]]\ndevice = \"0000:01:00.0\"\n\
         [[td.pci]]\ndevice = \"0000:02:00.0\"\n",
        Debian::COMMAND_LINE
    );
    let media = Media::of_program(&bench.programs().seamark())?
        .with_config_text(&config)
        .with_file("vmlinuz", &bench.programs().debian().kernel())?;
    let machine = bench.machine_with(&media)?.with_iommu();
    Ok(machine
        .with_device(Device::Nvme(disk.to_owned()))
        .with_device(Device::NetWithSsh(forward)))
}

/// Makes this scenario's own copy of the disk.
fn copy_of_disk(bench: &Bench) -> Result<PathBuf> {
    let copy = bench.directory()?.join("nvme.img");
    copy_sparse(&bench.programs().debian().disk(), &copy)?;
    Ok(copy)
}

fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", "--reflink=auto"])
        .arg(from)
        .arg(to);
    output(&mut copy).map(drop)
}

/// Returns the standard output of a command that must succeed.
fn output(command: &mut Command) -> Result<String> {
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

/// The TD as its user sees it.
struct Server {
    ssh: Ssh,
    disk: PathBuf,
}

impl Server {
    /// Starts the TD. Returns when it lets the user in. If QEMU loses the TD, another one is started.
    fn start(&self, bench: &mut Bench, console: &mut Console) -> Result<()> {
        for _ in 0..TRIES {
            let started = Instant::now();
            console.succeed(&format!("td start {TD}"), LIFE)?;
            if self.comes_up(console)? {
                let took = started.elapsed().as_secs_f32();
                bench.note(format!("ssh {took:.1} s after td start"));
                return Ok(());
            }
            bench.note("TD debian executed code that was patched already; started again");
            console.succeed(&format!("td destroy {TD}"), LIFE)?;
        }
        bail!("QEMU has lost the TD {TRIES} times")
    }

    /// Waits until the TD lets the user in. Returns false if QEMU executed code that had been patched.
    fn comes_up(&self, console: &mut Console) -> Result<bool> {
        let mut words = Words::of(TD);
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
        self.ssh.wait(COMMAND)?;
        Ok(true)
    }

    /// Copies random bytes into the TD's disk and out again. Returns their SHA-256.
    fn copy_in_and_out(&self, bench: &mut Bench) -> Result<String> {
        let directory = bench.directory()?;
        let (sent, received) = (directory.join("sent"), directory.join("received"));
        let mut bytes = vec![0; BYTES];
        fastrand::Rng::new().fill(&mut bytes);
        let sum = digest(&bytes);
        fs::write(&sent, &bytes)?;
        let started = Instant::now();
        let input = Redirect {
            input: Some(&sent),
            ..Redirect::default()
        };
        self.ssh
            .run_with("cat >blob && sync blob", input, COPY)
            .context("64 MiB in")?;
        let went_in = started.elapsed().as_secs_f32();
        // From the drive, not from memory.
        self.ssh
            .run("echo 1 | sudo tee /proc/sys/vm/drop_caches", COMMAND)?;
        self.still_has(&sum)?;
        let started = Instant::now();
        let output = Redirect {
            output: Some(&received),
            ..Redirect::default()
        };
        self.ssh
            .run_with("cat blob", output, COPY)
            .context("64 MiB out")?;
        let went_out = started.elapsed().as_secs_f32();
        let back = digest(&fs::read(&received)?);
        ensure!(back == sum, "{sum} went in, {back} came back");
        bench.note(format!(
            "64 MiB by ssh: {went_in:.1} s to the drive, {went_out:.1} s back"
        ));
        Ok(sum)
    }

    /// Checks that the bytes that were copied in are there.
    fn still_has(&self, sum: &str) -> Result<()> {
        let said = self.ssh.run("sha256sum blob", COPY)?;
        ensure!(said.starts_with(sum), "{said} is not {sum}");
        Ok(())
    }

    /// Reboots from inside. Returns when the next life lets the user in.
    fn reboot(&self, bench: &mut Bench, console: &mut Console) -> Result<()> {
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
        if !self.comes_up(console)? {
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

    /// Terminates the TD while it writes to its drive and sends to the network. All that it had comes back.
    fn end_at_work(&self, console: &mut Console, before: (u64, u64)) -> Result<()> {
        const WRITE: &str = "rm -f part; (while sleep 0.1; do test -s part && echo at work && break; done) & \
                             while dd if=/dev/zero of=part bs=1M count=1024 oflag=direct status=none; do :; done";
        const SEND: &str = "cat /dev/zero";
        let mut writes = self.ssh.flow(WRITE, "at work".len())?;
        let mut sends = self.ssh.flow(SEND, 4 << 20)?;
        writes.wait(COPY)?;
        sends.wait(COPY)?;
        ensure!(
            writes.goes_on()? && sends.goes_on()?,
            "it is not at work when it is terminated"
        );
        console.succeed(&format!("td terminate {TD}"), LIFE)?;
        stage::wait_for_state(console, TD, "reclaimed", LIFE)?;
        let after = stage::used(console)?;
        ensure!(before == after, "{before:?} were in use, and {after:?} are");
        stage::nothing_illegal(console)
    }

    /// Checks that the root file system is sound once its journal is replayed, on a copy of the disk.
    fn disk_is_sound(&self, bench: &Bench) -> Result<()> {
        let copy = bench.directory()?.join("copy.img");
        copy_sparse(&self.disk, &copy)?;
        let root = format!("{}?offset={}", copy.display(), root_of_disk(&copy)?.start);
        output(Command::new("e2fsck").args(["-E", "journal_only", "-p", &root]))?;
        let checked = output(Command::new("e2fsck").args(["-f", "-n", &root]));
        checked.context("the file system is damaged")?;
        Ok(fs::remove_file(&copy)?)
    }
}

fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

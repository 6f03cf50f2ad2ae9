//! The disk in a TD that owns the drive and a network card: a server's life, and its end at the worst moments.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::server::{self, Server, TD, copy_of_disk, output};
use super::{COMMAND, is_well, ssh};
use crate::console::Console;
use crate::media::root_of_disk;
use crate::programs::Debian;
use crate::qemu::Forward;
use crate::scenarios::Bench;
use crate::scenarios::stage::{self, LIFE};
use crate::ssh::Redirect;

/// Time limit of copying [`BYTES`] in one direction.
const COPY: Duration = Duration::from_secs(300);
/// The size of what is copied in and out.
const BYTES: usize = 64 << 20;
/// Not on every user's search path.
const E2FSCK: &str = "/sbin/e2fsck";
/// The number of times that the TD is terminated while it writes and sends.
const ENDS: usize = 3;
const ENDS_OF_SOAK: usize = 20;

/// A server that copies data in and out, reboots, and is terminated while its devices are at work. Its next life has the
/// same devices, the same disk, and all that it had finished writing.
pub fn io(bench: &mut Bench) -> Result<()> {
    let forward = Forward::to_isolated()?;
    let disk = copy_of_disk(bench)?;
    let keys = format!(
        "kernel = \"vmlinuz\"\ncmdline = \"{}\"\nmemory = \"768M\"\n",
        Debian::COMMAND_LINE
    );
    let kernel = bench.programs().debian().kernel();
    let machine = server::machine(bench, &disk, forward, ("vmlinuz", &kernel), &keys)?;
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
    server.start(bench, &mut console)?;
    is_well(&server.ssh)?;
    let mut work = Work::begin(&mut console)?;
    server.read_blocks()?;
    work.end(bench, &mut console, "10,000 reads of 4 KiB")?;
    let sum = server.copy_in_and_out(bench)?;
    work.end(bench, &mut console, "64 MiB in and out")?;
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

impl Server {
    /// Reads from the drive, one request after the other.
    fn read_blocks(&self) -> Result<()> {
        let device = Debian::ROOT;
        let read = format!("sudo dd if={device} of=/dev/null bs=4k count=10000 iflag=direct");
        self.ssh.run(&read, COPY).map(drop)
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

    /// Terminates the TD while it writes to its drive and sends to the network. All that it had comes back.
    fn end_at_work(&self, console: &mut Console, before: (u64, u64)) -> Result<()> {
        const WRITE: &str = "rm -f part; (while sleep 0.1; do test -s part && echo at work && break; done) & \
                             while dd if=/dev/zero of=part bs=1M count=1024 oflag=direct conv=notrunc status=none; do :; done";
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

    /// Checks that the root file system is sound once its journal is replayed, on a copy.
    fn disk_is_sound(&self, bench: &Bench) -> Result<()> {
        let copy = bench.directory()?.join("root.img");
        let place = root_of_disk(&self.disk)?;
        let mut cut = Command::new("dd");
        cut.arg(format!("if={}", self.disk.display()))
            .arg(format!("of={}", copy.display()))
            .arg(format!("skip={}", place.start))
            .arg(format!("count={}", place.end - place.start))
            .args(["bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse"]);
        output(&mut cut)?;
        output(
            Command::new(E2FSCK)
                .args(["-E", "journal_only", "-p"])
                .arg(&copy),
        )?;
        let checked = output(Command::new(E2FSCK).args(["-f", "-n"]).arg(&copy));
        checked.context("the file system is damaged")?;
        Ok(fs::remove_file(&copy)?)
    }
}

/// The work of a TD's functions, by the counts of the host.
struct Work(Vec<Value>);

impl Work {
    fn begin(console: &mut Console) -> Result<Self> {
        let shown = stage::show(console, TD)?;
        let functions = shown["pci"].as_array();
        let functions = functions.filter(|functions| functions.len() == 2);
        let functions = functions.with_context(|| format!("not two functions: {shown}"))?;
        Ok(Self(functions.clone()))
    }

    /// Records what the work since the last call cost the host, and checks that it was nothing but interrupts.
    fn end(&mut self, bench: &mut Bench, console: &mut Console, what: &str) -> Result<()> {
        let now = Self::begin(console)?;
        for (before, after) in self.0.iter().zip(&now.0) {
            let more = |key: &str| -> Result<u64> {
                let [before, after] = [before, after].map(|one| one["counts"][key].as_u64());
                let more = after.zip(before).map(|(after, before)| after - before);
                more.with_context(|| format!("no {key}: {now:?}", now = now.0))
            };
            let kind = after["kind"].as_str().unwrap_or_default();
            bench.note(format!(
                "{what}: {kind}: {} interrupts",
                more("interrupts")?
            ));
            for key in ["config", "memory", "refused", "rests"] {
                let more = more(key)?;
                ensure!(more == 0, "{what}: {kind}: {more} more of {key}");
            }
        }
        *self = now;
        Ok(())
    }
}

fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

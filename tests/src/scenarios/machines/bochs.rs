//! Debian's Bochs: an Intel CPU with VMX and x2APIC that neither QEMU nor the stub emulates. Its firmware has no ACPI
//! tables, and it has one CPU.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::LIMIT;
use crate::console::PROMPT;
use crate::media::Media;
use crate::qemu::Boot;
use crate::scenarios::Bench;

/// The interval at which the serial port's output is read.
const LOOK: Duration = Duration::from_millis(200);
/// The file with the serial port's output.
const SERIAL: &str = "serial.log";

/// Boots Bochs to the prompt. VMXON must succeed, and of the problems only those of a machine without ACPI tables may
/// be there.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let media = Media::of_program(&bench.programs().seamark())?.with_config_text("[host]\n");
    let Boot::Disk(disk) = bench.disk(&media)? else {
        bail!("the bench's disk is a disk");
    };
    let home = bench.directory()?.to_owned();
    let bochs = Bochs::start(&home, &disk)?;
    let said = bochs.wait_for_prompt(&home)?;
    ensure!(said.contains("1 of 1 CPUs run"), "{said}");
    ensure!(said.contains("the CPU has no SEAM"), "{said}");
    for wrong in [
        "VMX operation",
        "bus mastering on",
        "crash: begin",
        "x2APIC:",
    ] {
        ensure!(!said.contains(wrong), "{wrong} in:\n{said}");
    }
    Ok(())
}

/// A running Bochs. It is killed on drop, and when the process that holds it dies.
struct Bochs(Child);

impl Bochs {
    fn start(home: &Path, disk: &Path) -> Result<Self> {
        // Its screen is a VNC server, which takes the first free port from 5900 on and waits for nobody.
        let is_free = TcpListener::bind(("127.0.0.1", 5900)).is_ok();
        ensure!(is_free, "TCP port 5900, which Bochs needs, is in use");
        let settings = home.join("bochsrc");
        fs::write(&settings, configuration(disk))?;
        // Its debugger stands before the first instruction.
        fs::write(home.join("commands"), "c\n")?;
        let log = File::create(home.join("bochs.out"))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "bochs-bin", "-q", "-unlock"])
            .args(["-f", "bochsrc", "-rc", "commands"])
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("can't start setpriv (package util-linux)")?;
        Ok(Self(child))
    }

    /// Returns the output up to the prompt.
    fn wait_for_prompt(mut self, home: &Path) -> Result<String> {
        let start = Instant::now();
        loop {
            // The file appears when the firmware opens the port.
            let said = fs::read(home.join(SERIAL)).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).into_owned();
            if said.contains(PROMPT) {
                return Ok(said);
            }
            if let Some(status) = self.0.try_wait()? {
                let log = fs::read_to_string(home.join("bochs.out")).unwrap_or_default();
                bail!("Bochs ended with {status}\n{log}\n{said}");
            }
            ensure!(
                start.elapsed() < LIMIT,
                "no prompt within {} s:\n{said}",
                LIMIT.as_secs()
            );
            sleep(LOOK);
        }
    }
}

impl Drop for Bochs {
    fn drop(&mut self) {
        // Both fail only if it has exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn configuration(disk: &Path) -> String {
    format!(
        "speaker: enabled=0\n\
         sound: driver=dummy\n\
         display_library: rfb, options=\"timeout=0\"\n\
         memory: guest=512, host=512\n\
         cpu: model=tigerlake, count=1, ips=200000000, reset_on_triple_fault=0\n\
         romimage: file=/usr/share/ovmf/OVMF.fd, address=0xffe00000\n\
         vgaromimage: file=/usr/share/vgabios/vgabios.bin\n\
         pci: enabled=1, chipset=i440fx\n\
         ata0-master: type=disk, path={}, mode=flat\n\
         boot: disk\n\
         com1: enabled=1, mode=file, dev={SERIAL}\n\
         log: bochs.log\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n\
         clock: sync=none\n",
        disk.display()
    )
}

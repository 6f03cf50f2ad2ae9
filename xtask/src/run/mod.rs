//! `cargo xtask run`: Seamark in QEMU on top of the SEAM stub, with its serial console in this terminal.

mod debian;
mod script;
mod terminal;

use std::fs;
use std::io::stdout;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use clap::{Args, ValueEnum};
use seamark_tests::console::Console;
use seamark_tests::media::Media;
use seamark_tests::programs::Programs;
use seamark_tests::qemu::{Boot, Device, Guest, Machine, Stub};

use stub_options as stub;

use self::script::Script;
use crate::folder::Folder;
use crate::{build, guest, host, image};

/// The configuration if none is given: the project's own guests.
const DEFAULT_CONFIG: &str = include_str!("default.toml");
/// The part that is appended if Debian's Linux was fetched.
const LINUX_CONFIG: &str = include_str!("linux.toml");

/// The options of `run`.
#[derive(Args)]
pub struct Options {
    /// Run this system in a TD with devices of its own, instead of the project's own guests
    #[arg(value_enum, value_name = "SYSTEM", conflicts_with = "config")]
    system: Option<System>,
    /// Boot over PXE from QEMU's TFTP server instead of from a disk
    #[arg(long)]
    pxe: bool,
    /// Enter these console commands, separated by semicolons, and exit with 0 if every one succeeded; `wait SECONDS`
    /// waits, `expect TD TEXT` waits until the TD has printed TEXT on its console
    #[arg(long, value_name = "COMMANDS")]
    exec: Option<String>,
    /// With --exec: the time limit of the whole run
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Logical processors, up to 255: their APIC ids end at 254
    #[arg(long, value_name = "N", default_value_t = 4)]
    smp: u32,
    /// Packages; by default two, or one if the processors can't be halved
    #[arg(long, value_name = "M")]
    sockets: Option<u32>,
    /// Memory, 256M to 510G
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    mem: String,
    /// Leave the SEAM stub out: a machine without VMX, SEAM and TDX
    #[arg(long)]
    no_seam: bool,
    /// Leave QEMU's model of a VT-d unit out, which remaps DMA and interrupts
    #[arg(long)]
    no_iommu: bool,
    /// Add an NVMe drive with this file as its content; it is written to; may be repeated
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// Add a network card on QEMU's user network
    #[arg(long, value_enum, value_name = "NETWORK", default_value = "none")]
    net: Network,
    /// Add QEMU's edu, a device that copies to and from any address of memory
    #[arg(long)]
    edu: bool,
    /// Wait for a debugger on TCP port 1234 before the first instruction
    #[arg(long)]
    gdb: bool,
    /// An option of the stub, such as tdx=off (docs/emulation.md lists them); may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    stub: Vec<(String, String)>,
    /// The configuration (seamark.toml) instead of one with the project's own guests; the files that it names are
    /// included
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A system in a TD with devices of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum System {
    /// The disk of `cargo xtask guest debian`, which is not written to, and a network card.
    Debian,
}

/// The network of the machine's card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Network {
    /// The machine has no card.
    None,
    /// QEMU's user network, with its own DHCP and DNS servers.
    User,
}

/// Parses an option with its value.
///
/// # Errors
/// There is no `=`.
pub fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE")?;
    stub::Options::default().set(key, value.as_bytes())?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Options {
    /// Returns the time limit of the whole run.
    fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    fn script(&self) -> Result<Option<Script>> {
        let script = self.exec.as_deref();
        script
            .map(|script| Script::parse(script, self.limit()))
            .transpose()
    }

    /// Checks everything that can be checked before anything is built or started.
    ///
    /// # Errors
    /// A sentence: what is wrong, and what to give instead.
    pub fn check(&self) -> Result<()> {
        self.script()?;
        // The files do not matter yet.
        let boot = Boot::Disk(PathBuf::new());
        self.machine(boot, PathBuf::new()).check()?;
        let mut options = stub::Options::default();
        for (key, value) in &self.stub {
            options.set(key, value.as_bytes()).map_err(Error::msg)?;
        }
        options.check(self.smp).map_err(Error::msg)?;
        ensure!(
            self.stub.is_empty() || !self.no_seam,
            "--no-seam leaves out the stub, whose options --stub gives: leave one of them away"
        );
        for disk in &self.disk {
            ensure!(
                disk.is_file(),
                "there is no disk image {}: make one, for example with `truncate -s 4G {}`",
                disk.display(),
                disk.display()
            );
        }
        if let Some(config) = &self.config {
            Media::default().with_config(config)?;
        }
        Ok(())
    }

    fn machine(&self, boot: Boot, rom: PathBuf) -> Machine {
        let stub = (!self.no_seam).then(|| Stub {
            rom,
            options: self.stub.clone(),
        });
        let sockets = self
            .sockets
            .unwrap_or(if self.smp.is_multiple_of(2) { 2 } else { 1 });
        let mut machine = Machine::new(boot, stub).with_cpus(self.smp, sockets);
        machine.memory.clone_from(&self.mem);
        machine.reboots = self.exec.is_none();
        machine.gdb = self.gdb;
        if self.no_iommu {
            machine = machine.without_iommu();
        }
        machine.devices.extend(self.devices());
        machine
    }

    /// Returns the physical devices of the machine.
    fn devices(&self) -> Vec<Device> {
        let drives = self.disk.iter().cloned().map(Device::Nvme);
        let card = (self.net == Network::User).then_some(Device::Net);
        drives
            .chain(card)
            .chain(self.edu.then_some(Device::Edu))
            .collect()
    }
}

/// Runs the machine until it stops, or until the user leaves it.
///
/// # Errors
/// A program is missing, an option is wrong, the machine can't be started or fails, or, with `--exec`, a command
/// failed.
pub fn run(options: &Options) -> Result<()> {
    options.check()?;
    host::require(&host::QEMU)?;
    if options.system == Some(System::Debian) {
        guest::debian()?;
    }
    let programs = build::all()?;
    let folder = Folder::claim(programs.directory(), "run")?;
    let machine = machine(&programs, folder.path(), options)?;
    if options.gdb {
        let symbols = programs.symbols("seamark");
        eprintln!(
            "The machine waits for `gdb {} -ex 'target remote :1234'`.",
            symbols.display()
        );
    }
    match options.script()? {
        None => terminal::interact(&machine, folder.path()),
        Some(script) => execute(&machine, folder.path(), &script, options.limit()),
    }
}

fn machine(programs: &Programs, folder: &Path, options: &Options) -> Result<Machine> {
    let debian = programs.debian();
    let way = debian::Way::chosen(options, &debian);
    let config = match (&options.config, way) {
        (Some(file), _) => file.clone(),
        (None, Some(debian::Way::Direct)) => {
            written(programs, "debian.toml", debian::DIRECT_CONFIG)?
        }
        (None, Some(debian::Way::Uefi)) => {
            let before = options.devices().len();
            default_config(programs, &debian::uefi_config(before))?
        }
        (None, None) => default_config(programs, "")?,
    };
    let media = image::media(programs, &config)?;
    let boot = if options.pxe {
        let directory = folder.join("tftp");
        media.write_directory(&directory, "seamark.efi")?;
        Boot::Network {
            directory,
            program: "seamark.efi".to_owned(),
        }
    } else {
        let image = folder.join("disk.img");
        media.write_disk(&image)?;
        Boot::Disk(image)
    };
    let mut machine = options.machine(boot, programs.rom());
    machine.symbols = Some(programs.symbols("seamark"));
    if let Some(way) = way {
        way.add_devices(&mut machine, &debian)?;
    }
    Ok(machine)
}

/// Returns the default configuration, with `more` behind it.
fn default_config(programs: &Programs, more: &str) -> Result<PathBuf> {
    let mut config = DEFAULT_CONFIG.to_owned();
    if programs.linux().kernel().exists() {
        config += LINUX_CONFIG;
    }
    config += more;
    written(programs, "seamark.toml", &config)
}

/// Writes a configuration next to the images that it names, where `measure` finds it, too.
fn written(programs: &Programs, name: &str, config: &str) -> Result<PathBuf> {
    let file = programs.directory().join(name);
    // Another run may be reading the file.
    if !fs::read(&file).is_ok_and(|written| written == config.as_bytes()) {
        fs::write(&file, config).with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(file)
}

/// Feeds the commands to the console and prints its output.
fn execute(machine: &Machine, directory: &Path, script: &Script, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let tee = Box::new(anstream::StripStream::new(stdout()));
    let guest = Guest::start(machine, directory, Some(tee))?;
    // An error begins on a line of its own.
    let mut console = Console::wait(guest, limit).inspect_err(|_| println!())?;
    let failed = script.run(&mut console, deadline);
    println!();
    let failed = failed?;
    // Commands may have succeeded on a machine that has since failed.
    if let Some(why) = console.guest().trouble() {
        bail!("{why}");
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    /// Returns the error about a command line before anything is built or started.
    fn refusal(arguments: &[&str]) -> String {
        let line = Line::try_parse_from([&["run"], arguments].concat());
        match line {
            Err(error) => error.to_string(),
            Ok(line) => match line.options.check() {
                Ok(()) => String::new(),
                Err(error) => format!("{error:#}"),
            },
        }
    }

    #[test]
    fn what_is_wrong_is_said_before_anything_starts() {
        for (arguments, words) in [
            (&["--stub", "foo=1"][..], "the options are tdx, module"),
            (&["--stub", "tdx"], "not KEY=VALUE"),
            (&["--stub", "tdx=maybe"], "tdx is on or off, not maybe"),
            (&["--stub", "stuck=0"], "stuck takes a number from 1"),
            (&["--stub", "stuck=4"], "numbered from 0"),
            (&["--stub", "hooks=fail"], "hooks takes statements such as"),
            (
                &["--stub", "tdx=off", "--no-seam"],
                "leave one of them away",
            ),
            (&["--mem", "10X"], "a whole number and M or G"),
            (&["--mem", "0"], "a whole number and M or G"),
            (&["--mem", "1M"], "choose 256M to 510G"),
            (&["--smp", "0"], "at least one CPU"),
            (&["--smp", "6", "--sockets", "4"], "spread evenly"),
            (&["--sockets", "0"], "spread evenly"),
            (&["--smp", "400"], "APIC ids up to"),
            (&["--config", "/none/seamark.toml"], "/none/seamark.toml"),
            (
                &["--disk", "/none/disk.img"],
                "truncate -s 4G /none/disk.img",
            ),
            (&["--net", "tap"], "possible values: none, user"),
            (&["ubuntu"], "possible values: debian"),
            (&["debian", "--config", "a.toml"], "cannot be used with"),
            (&["--exec", "expect hello"], "expect TD TEXT"),
            (&["--exec", "wait 200"], "--timeout"),
        ] {
            let said = refusal(arguments);
            assert!(said.contains(words), "{arguments:?}: {said:?}");
        }
    }

    #[test]
    fn what_is_right_is_accepted() {
        for arguments in [
            &[][..],
            &["--smp", "64", "--sockets", "4", "--mem", "8G"],
            &["--smp", "1"],
            &["--stub", "stuck=2", "--stub", "trace=1"],
            &["--stub", "hooks=busy TDH.MEM.PAGE.AUG call 1"],
            &["--no-seam"],
            &["--no-iommu", "--edu", "--net", "user"],
            &["debian", "--mem", "4G"],
        ] {
            assert_eq!(refusal(arguments), "", "{arguments:?}");
        }
    }
}

//! `cargo xtask run`: Seamark in QEMU on top of the SEAM stub, its serial console in this terminal.

mod terminal;

use std::fs;
use std::io::stdout;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use seamark_tests::console::Console;
use seamark_tests::programs::Programs;
use seamark_tests::qemu::{Boot, Guest, Machine, Stub};

use crate::{host, image};

/// The configuration of those who give none: guests of our own.
const DEFAULT_CONFIG: &str = include_str!("default.toml");
/// What follows when Debian's Linux was fetched.
const LINUX_CONFIG: &str = include_str!("linux.toml");

/// The options of `run`.
#[derive(Args)]
pub struct Options {
    /// Boot over PXE from QEMU's TFTP server instead of from a disk
    #[arg(long)]
    pxe: bool,
    /// Enter these console commands, separated by semicolons, and exit with 0 if every one succeeded
    #[arg(long, value_name = "COMMANDS")]
    exec: Option<String>,
    /// With --exec: how long the whole run may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Logical processors
    #[arg(long, value_name = "N", default_value_t = 4)]
    smp: u32,
    /// Packages; by default two, or one where the processors can't be halved
    #[arg(long, value_name = "M")]
    sockets: Option<u32>,
    /// Memory
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    mem: String,
    /// Leave the SEAM stub out: a machine without VMX, SEAM and TDX
    #[arg(long)]
    no_seam: bool,
    /// Wait for a debugger on TCP port 1234 before the first instruction
    #[arg(long)]
    gdb: bool,
    /// An option of the stub, such as tdx=off; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    stub: Vec<(String, String)>,
    /// The configuration (seamark.toml) instead of one with guests of our own; the files that it names are taken along
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// An option with its value.
///
/// # Errors
/// When there is no `=`.
pub fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs the machine until it stops, or until the one at the terminal leaves it.
///
/// # Errors
/// When something is missing, when the machine can't be started, and with `--exec` when a command failed.
pub fn run(programs: &Programs, options: &Options) -> Result<()> {
    host::require(&host::QEMU)?;
    let machine = machine(programs, options)?;
    let directory = programs.directory().join("run");
    if options.gdb {
        let symbols = programs.symbols("seamark");
        eprintln!(
            "The machine waits for `gdb {} -ex 'target remote :1234'`.",
            symbols.display()
        );
    }
    match &options.exec {
        None => terminal::interact(&machine, &directory),
        Some(commands) => {
            let limit = Duration::from_secs(options.timeout);
            execute(&machine, &directory, commands, limit)
        }
    }
}

fn machine(programs: &Programs, options: &Options) -> Result<Machine> {
    let config = match &options.config {
        Some(file) => file.clone(),
        None => default_config(programs)?,
    };
    let media = image::media(programs, Some(&config))?;
    let boot = if options.pxe {
        let directory = programs.directory().join("tftp");
        media.write_directory(&directory, "seamark.efi")?;
        Boot::Network {
            directory,
            program: "seamark.efi".to_owned(),
        }
    } else {
        let image = programs.directory().join("run.img");
        media.write_disk(&image)?;
        Boot::Disk(image)
    };
    let stub = (!options.no_seam).then(|| Stub {
        rom: programs.rom(),
        options: options.stub.clone(),
    });
    let sockets = options
        .sockets
        .unwrap_or(if options.smp.is_multiple_of(2) { 2 } else { 1 });
    let mut machine = Machine::new(boot, stub).with_cpus(options.smp, sockets);
    machine.memory.clone_from(&options.mem);
    machine.reboots = options.exec.is_none();
    machine.gdb = options.gdb;
    machine.symbols = Some(programs.symbols("seamark"));
    Ok(machine)
}

/// Puts the default configuration beside the images that it names, where `measure` finds it, too.
fn default_config(programs: &Programs) -> Result<PathBuf> {
    let file = programs.directory().join("seamark.toml");
    let mut config = DEFAULT_CONFIG.to_owned();
    if programs.linux().kernel().exists() {
        config += LINUX_CONFIG;
    }
    fs::write(&file, config).with_context(|| format!("can't write {}", file.display()))?;
    Ok(file)
}

/// Feeds the commands to the console and prints what it says.
fn execute(machine: &Machine, directory: &Path, commands: &str, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now());
    let tee = Box::new(anstream::StripStream::new(stdout()));
    let guest = Guest::start(machine, directory, Some(tee))?;
    // What goes wrong begins a line of its own.
    let mut console = Console::wait(guest, left()).inspect_err(|_| println!())?;
    let mut failed = Vec::new();
    for command in commands.split(';').map(str::trim).filter(|c| !c.is_empty()) {
        if !console.enter(command, left())?.succeeded() {
            failed.push(command);
        }
    }
    println!();
    ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

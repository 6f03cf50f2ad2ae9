//! The developer's tasks: `cargo xtask build`, `image`, `run`, `test`, `measure`, `bench`, `sim`.

mod bench;
mod build;
mod chart;
mod conform;
mod disk;
mod folder;
mod guest;
mod host;
mod image;
mod measure;
mod password;
mod run;
mod sim;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, runs and tests Seamark.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the hypervisor (seamark.efi) and the SEAM stub (seamstub.rom).
    Build,
    /// Make a disk image that boots on a server or in QEMU, or the files for network boot.
    Image(image::Options),
    /// Run Seamark in QEMU; the terminal becomes its serial console.
    Run(run::Options),
    /// Fetch a guest from elsewhere, and put it where `run` finds it.
    #[command(subcommand)]
    Guest(guest::Guest),
    /// Replay recordings of Intel's TDX module against the emulated one.
    Conform(conform::Conform),
    /// Compute the MRTD of a TD that is built from a TDVF image, or the registers of each TD in a configuration.
    Measure(measure::Options),
    /// Make the value of host.console_lock, the hash of the console's password.
    Password(password::Options),
    /// Run the benchmarks that have a limit.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Simulate what can't be measured on this computer.
    #[command(subcommand)]
    Sim(sim::Sim),
    /// Check the format, lint, test on this computer, and test whole systems in QEMU.
    Test(test::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(task: Task) -> Result<ExitCode> {
    match task {
        Task::Build => {
            let programs = build::all()?;
            build::report(&programs)?;
            build::report_sizes(&programs)?;
        }
        Task::Image(options) => image::write(&build::all()?, &options)?,
        Task::Guest(guest) => guest.run()?,
        Task::Measure(options) => print!("{}", measure::run(&options)?),
        Task::Password(options) => password::run(&options)?,
        Task::Run(options) => run::run(&options)?,
        Task::Conform(conform) => conform.run()?,
        Task::Bench(bench) => return bench.run(),
        Task::Sim(sim) => return sim.run(),
        Task::Test(options) => return Ok(test::run(&options)),
    }
    Ok(ExitCode::SUCCESS)
}

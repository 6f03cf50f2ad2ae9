//! `cargo xtask bench`: measurements that have a limit.

pub mod exits;
pub mod reclaim;
pub mod stub;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// The benchmarks.
#[derive(Subcommand)]
pub enum Bench {
    /// Instructions of the run loop for an exit, counted by callgrind
    Exits,
    /// Time that each way takes to reclaim a TD's memory, in QEMU
    Reclaim(reclaim::Options),
    /// The emulated SEAM in QEMU: a TD's entry with its exit, an empty SEAMCALL, clearing 2 MiB
    Stub(stub::Options),
}

impl Bench {
    /// Runs the benchmark. The exit code says whether everything is within its limits.
    ///
    /// # Errors
    /// The measurement fails.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Exits => exits::run(),
            Self::Reclaim(options) => reclaim::run(&options),
            Self::Stub(options) => stub::run(&options),
        }
    }
}

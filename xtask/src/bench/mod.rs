//! `cargo xtask bench`: figures that have a limit, measured.

pub mod exits;
pub mod reclaim;
pub mod stub;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// Instructions of the run loop for an exit, counted by callgrind
    Exits,
    /// How long each way takes to get a TD's memory back, in QEMU
    Reclaim(reclaim::Options),
    /// The emulated SEAM in QEMU: a TD's entry with its exit, an empty SEAMCALL, clearing 2 MiB
    Stub,
}

impl Bench {
    /// Measures it. The exit code says whether all is within its limits.
    ///
    /// # Errors
    /// When it can't be measured.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Exits => exits::run(),
            Self::Reclaim(options) => reclaim::run(&options),
            Self::Stub => stub::run(),
        }
    }
}

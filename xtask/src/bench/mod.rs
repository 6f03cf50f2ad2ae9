//! `cargo xtask bench`: figures that have a limit, measured.

pub mod exits;
pub mod reclaim;

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
        }
    }
}

//! `cargo xtask bench`: figures that are kept small, measured on this computer.

pub mod exits;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// Instructions of the run loop for an exit, counted by callgrind
    Exits,
}

impl Bench {
    /// Measures it. The exit code says whether all is within its limits.
    ///
    /// # Errors
    /// When it can't be measured.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Exits => exits::run(),
        }
    }
}

//! `cargo xtask guest`: guests that are not our own.

pub mod cpio;
mod debian;
mod foreign;
mod linux;
mod measured;
mod mmdebstrap;
mod ovmf;
mod packages;

use std::path::Path;

use anyhow::Result;
use clap::Subcommand;
use seamark_tests::programs::{Debian, Linux, OVMF_13, Programs};
use seamark_tests::scenarios::Need;

use crate::workspace;

/// The guests.
#[derive(Subcommand)]
pub enum Guest {
    /// Debian's 6.12 cloud kernel, unmodified, with a static busybox as its system
    Linux,
    /// A disk with Debian 13 as its installer would leave it, with ssh and a key
    Debian {
        /// Put Debian 13's OVMF beside it: `run` then boots the disk by UEFI in a TD
        #[arg(long)]
        uefi: bool,
    },
    /// Debian 13's OVMF, which `firmware` of a TD can name
    Ovmf,
}

impl Guest {
    /// Fetches what the guest is made of, and puts it where `run` finds it.
    ///
    /// # Errors
    /// When something can't be fetched or built.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Linux => {
                let linux = self::linux()?;
                for file in [linux.kernel(), linux.initrd()] {
                    println!("{}", file.display());
                }
                Ok(())
            }
            Self::Debian { uefi } => {
                let debian = self::debian()?;
                let mut files = vec![debian.disk(), debian.kernel(), debian.key()];
                if *uefi {
                    add_firmware(&debian)?;
                    files.push(debian.firmware());
                }
                for file in files {
                    println!("{}", file.display());
                }
                Ok(())
            }
            Self::Ovmf => {
                let programs = programs();
                ovmf::get(&programs)?;
                println!("{}", programs.guest(OVMF_13).display());
                Ok(())
            }
        }
    }
}

fn programs() -> Programs {
    Programs::in_directory(&workspace::target().join("seamark"))
}

/// Puts the firmware that boots the disk in a TD beside it.
fn add_firmware(debian: &Debian) -> Result<()> {
    let programs = programs();
    ovmf::get(&programs)?;
    let firmware = packages::read(&programs.guest(OVMF_13))?;
    packages::write(&debian.firmware(), &firmware)
}

/// Prepares the guests that scenarios with third-party programs need.
///
/// # Errors
/// When something can't be fetched or built.
pub fn foreign(programs: &Programs, needs: &[Need], lkvs: Option<&Path>) -> Result<()> {
    let (linux, foreign) = (programs.linux(), programs.foreign());
    if needs.contains(&Need::Programs) {
        foreign::programs(&linux, &foreign)?;
    }
    if needs.contains(&Need::Ovmf13) {
        ovmf::get(programs)?;
    }
    if needs.contains(&Need::Measured) {
        measured::make(programs)?;
    }
    if needs.contains(&Need::Debian) {
        foreign::debian(&foreign)?;
    }
    match lkvs {
        Some(checkout) if needs.contains(&Need::Lkvs) => foreign::lkvs(&linux, &foreign, checkout),
        _ => Ok(()),
    }
}

/// Debian's kernel and a system for it; fetched and built where they are missing.
///
/// # Errors
/// When something can't be fetched or built.
pub fn linux() -> Result<Linux> {
    linux::get()
}

/// A disk with a whole Debian; made if it is missing or its recipe has changed.
///
/// # Errors
/// When something can't be fetched or built.
pub fn debian() -> Result<Debian> {
    debian::get()
}

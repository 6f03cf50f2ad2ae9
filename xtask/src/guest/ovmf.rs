//! Debian 13's OVMF, beside this machine's own.

use anyhow::{Context, Result};
use seamark_tests::programs::{OVMF_13, Programs};

use super::packages::Packages;

/// The release.
const SUITE: &str = "trixie";

/// Fetches the package, unless it is there.
pub fn get(programs: &Programs) -> Result<()> {
    const INSIDE: &str = "usr/share/ovmf/OVMF.fd";
    let image = programs.guest(OVMF_13);
    if image.exists() {
        return Ok(());
    }
    let directory = image.parent().context("a directory")?;
    let packages = Packages::of_release(directory, SUITE)?;
    packages.fetch(["ovmf"])?;
    std::fs::copy(packages.unpacked().join(INSIDE), &image)
        .with_context(|| format!("the package ovmf has no {INSIDE}"))?;
    Ok(())
}

//! `cargo xtask image`: the disk image for a server, and the media that `run` boots.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use seamark_tests::media::Media;
use seamark_tests::programs::Programs;

use crate::host;

/// The configuration if none is given: the hypervisor's defaults.
const EMPTY_CONFIG: &str = "# Seamark's configuration; everything in it is optional.\n";

/// Returns the hypervisor and its configuration.
///
/// # Errors
/// The program, the configuration or a file that it names can't be read.
pub fn media(programs: &Programs, config: Option<&Path>) -> Result<Media> {
    let media = Media::of_program(&programs.seamark())?;
    match config {
        Some(file) => media.with_config(file),
        None => Ok(media.with_config_text(EMPTY_CONFIG)),
    }
}

/// Writes the disk image next to the programs, or to `output`. `sign` is the key and the certificate to sign it with.
///
/// # Errors
/// A file can't be read or written, or the program can't be signed.
pub fn write(
    programs: &Programs,
    config: Option<&Path>,
    output: Option<&Path>,
    sign: Option<&[PathBuf]>,
) -> Result<PathBuf> {
    let default = programs.directory().join("seamark.img");
    let image = output.unwrap_or(&default);
    let mut media = media(programs, config)?;
    if let Some([key, certificate]) = sign {
        host::require(&host::SIGNING)?;
        media = media.signed(key, certificate)?;
    }
    media.write_disk(image)?;
    let size = fs::metadata(image).context("the image just written")?.len();
    println!(
        "{}  {size} bytes, GPT with a FAT32 EFI system partition",
        image.display()
    );
    Ok(image.to_owned())
}

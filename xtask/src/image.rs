//! `cargo xtask image`: the disk image for a server, and the media that `run` boots.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use seamark_tests::media::Media;
use seamark_tests::programs::Programs;

use crate::host;

/// The configuration if none is given: the hypervisor's defaults.
const EMPTY_CONFIG: &str = "# Seamark's configuration; everything in it is optional.\n";

/// The name of the program on a server.
const NETWORK_PROGRAM: &str = "seamark.efi";

/// Returns the hypervisor and its configuration.
///
/// # Errors
/// The program, the configuration or a file that it names can't be read.
pub fn media(programs: &Programs, config: &Path) -> Result<Media> {
    Media::of_program(&programs.seamark())?.with_config(config)
}

/// The content to write, and its place.
#[derive(Args)]
pub struct Options {
    /// The configuration (seamark.toml); the files that it names are included
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The configuration of one host, named by its MAC address, UUID or serial number, with its files; may be repeated
    #[arg(long, value_name = "HOST=FILE", value_parser = host_and_file)]
    host: Vec<(String, PathBuf)>,
    /// Where to write the image
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write seamark.efi and its files to this directory of a TFTP or HTTP server, instead of an image
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    directory: Option<PathBuf>,
    /// Seal the configurations and their files in the program, and sign it for Secure Boot (PEM files)
    #[arg(long, num_args = 2, value_names = ["KEY", "CERT"])]
    sign: Option<Vec<PathBuf>>,
}

fn host_and_file(text: &str) -> Result<(String, PathBuf), String> {
    let (host, file) = text.split_once('=').ok_or("not HOST=FILE")?;
    Ok((host.to_owned(), file.into()))
}

/// Writes the disk image next to the programs, or where the options say.
///
/// # Errors
/// A file can't be read or written, or the program can't be signed.
pub fn write(programs: &Programs, options: &Options) -> Result<()> {
    let media = Media::of_program(&programs.seamark())?;
    let mut media = match &options.config {
        Some(file) => media.with_config(file)?,
        // If they are signed, the other hosts say that nothing was signed for them.
        None if !options.host.is_empty() => media,
        None => media.with_config_text(EMPTY_CONFIG),
    };
    for (host, file) in &options.host {
        media = media.with_host_config(host, file)?;
    }
    if let Some([key, certificate]) = options.sign.as_deref() {
        host::require(&host::SIGNING)?;
        media = media.signed(key, certificate)?;
    }
    if let Some(directory) = &options.directory {
        media.write_directory(directory, NETWORK_PROGRAM)?;
        let program = directory.join(NETWORK_PROGRAM);
        println!("{}  the program for PXE or HTTP boot", program.display());
        return Ok(());
    }
    let default = programs.directory().join("seamark.img");
    let image = options.output.as_ref().unwrap_or(&default);
    media.write_disk(image)?;
    let size = fs::metadata(image).context("the image just written")?.len();
    println!(
        "{}  {size} bytes, GPT with a FAT32 EFI system partition",
        image.display()
    );
    Ok(())
}

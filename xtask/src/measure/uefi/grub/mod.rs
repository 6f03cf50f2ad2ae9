//! GRUB, as Debian signs it: the kernel that its configuration boots by itself, with command line and initial file system.
//!
//! GRUB 2.12 measures nothing in a TD: it registers its verifier only if there is a TPM. It starts the kernel by itself,
//! so that the firmware does not measure it either. The kernel measures its command line and its initial file system.
//!
//! Source: GRUB 2.12, grub-core/commands/tpm.c and grub-core/kern/efi/tpm.c; and the logs of boots.

mod commands;
mod evaluate;
mod lex;
mod parse;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, ensure};

use super::pe::Image;
use super::uki::initrd;
use crate::disk::Disk;
use crate::measure::event::{Event, Kind, Register};
use evaluate::{Boot, Evaluation, Files};

/// The version whose measurements are known.
const VERSION: &str = "2.12";
/// The directory of the EFI system partition from which Debian's signed GRUB reads its configuration.
const HOME: &str = "/EFI/debian";
/// The devices by GRUB's names: the EFI system partition, and the root file system.
const ESP: &str = "hd0,gpt1";
const ROOT: &str = "hd0,gpt2";

/// Returns whether an image is GRUB.
pub fn is_one(image: &Image<'_>) -> bool {
    version(image).is_some()
}

/// Returns the upstream version that the image's revocation data (SBAT) names.
fn version(image: &Image<'_>) -> Option<String> {
    let sbat = image.section(".sbat")?;
    let text = String::from_utf8_lossy(sbat);
    let line = text.lines().find(|line| line.starts_with("grub,"))?;
    line.split(',').nth(4).map(ToOwned::to_owned)
}

/// Returns the events from GRUB's start to that of the kernel's system.
pub fn events(image: &Image<'_>, disk: &Disk) -> Result<Vec<Event>> {
    let version = version(image).context("it is no GRUB")?;
    ensure!(
        version == VERSION,
        "it is GRUB {version}; only what {VERSION} measures is known"
    );
    let boot = boot(disk)?;
    let read = |path: &str| {
        let content = disk.read_root(path)?;
        content.with_context(|| format!("the root file system has no {path}"))
    };
    read(&boot.kernel)?;
    let line: Vec<u8> = boot
        .command_line
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let options = "LOADED_IMAGE::LoadOptions";
    let mut events = vec![Event::of(Register::Rtmr2, Kind::TAG, options, &line)];
    if let Some(path) = &boot.initrd {
        events.push(initrd(&read(path)?));
    }
    Ok(events)
}

/// Evaluates the configuration, and returns what it boots.
fn boot(disk: &Disk) -> Result<Boot> {
    let mut evaluation = Evaluation::new(disk);
    evaluation.set("root", ESP);
    evaluation.set("prefix", &format!("({ESP}){HOME}"));
    evaluation.boot(&format!("({ESP}){HOME}/grub.cfg"))
}

impl Files for Disk {
    fn read(&self, device: &str, path: &str) -> Result<Option<Vec<u8>>> {
        match device {
            ESP => Ok(self.read_esp(path).ok()),
            ROOT => self.read_root(path),
            other => anyhow::bail!("there is no device ({other})"),
        }
    }

    fn device_of(&self, uuid: &str) -> Option<String> {
        let is_root = self
            .root_uuid()
            .is_some_and(|root| root == uuid.to_lowercase());
        is_root.then(|| ROOT.to_owned())
    }
}

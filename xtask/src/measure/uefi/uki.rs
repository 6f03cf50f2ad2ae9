//! Unified kernel images: what systemd's stub measures of them, and what it passes to the kernel, which measures that.
//!
//! Source: systemd 257, docs/TPM2_PCR_MEASUREMENTS.md and systemd-stub(7); UAPI.5 Unified Kernel Image; Linux 6.12,
//! drivers/firmware/efi/libstub.

use anyhow::{Context, Result};

use super::pe::Image;
use crate::guest::cpio::Archive;
use crate::measure::event::{Event, Kind, Register, utf16};

/// The measured sections, in the order in which the stub measures them.
const MEASURED: [&str; 12] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".dtbauto", ".hwids",
    ".uname", ".sbat", ".pcrpkey",
];
/// Sections that the stub treats in ways that are not predicted.
const NOT_PREDICTED: [&str; 7] = [
    ".ucode", ".dtb", ".dtbauto", ".hwids", ".pcrsig", ".pcrpkey", ".profile",
];
/// Directories of the EFI system partition with more for the stub to measure and to pass on. The image can have one of its
/// own too.
pub const COMPANIONS: [&str; 2] = ["loader/addons", "loader/credentials"];
/// The end of an archive that the stub makes.
const TRAILER: &str = "07070100000000000000000000000000000000000000010000000000000000000000000000000000000000\
                       000000000000000B00000000TRAILER!!!\0\0\0\0";

/// Returns whether an image is a unified kernel image.
pub fn is_one(image: &Image<'_>) -> bool {
    image.section(".linux").is_some() && image.section(".sdmagic").is_some()
}

/// Returns the events from the start of the stub to that of the kernel's system.
pub fn events(image: &Image<'_>) -> Result<Vec<Event>> {
    for section in NOT_PREDICTED {
        anyhow::ensure!(
            image.section(section).is_none(),
            "it has a section {section}, whose measurement is not predicted"
        );
    }
    let mut events = Vec::new();
    let ipl = |name: &str, content: &[u8]| Event::of(Register::Rtmr2, Kind::IPL, name, content);
    for name in MEASURED {
        if let Some(content) = image.section(name) {
            events.push(ipl(
                &format!("name of section {name}"),
                format!("{name}\0").as_bytes(),
            ));
            events.push(ipl(&format!("section {name}"), content));
        }
    }
    let linux = image.section(".linux").context("it has no kernel")?;
    events.push(kernel(linux, ".linux")?);
    let line = image
        .section(".cmdline")
        .context("it has no section .cmdline")?;
    events.push(load_options(&command_line(line)?));
    events.push(initrd(&initrds(image)?));
    Ok(events)
}

/// Returns the event of a kernel that is started as a program.
pub fn kernel(kernel: &[u8], name: &str) -> Result<Event> {
    let digest = Image::parse(kernel).and_then(|image| image.digest());
    Ok(Event {
        register: Register::Rtmr1,
        kind: Kind::APPLICATION,
        digest: digest.with_context(|| format!("the kernel {name}"))?,
        name: format!("kernel {name}"),
    })
}

/// Returns the event by which a kernel measures its command line.
pub fn load_options(line: &str) -> Event {
    Event::of(
        Register::Rtmr2,
        Kind::TAG,
        "LOADED_IMAGE::LoadOptions",
        &utf16(line),
    )
}

/// Returns the event by which a kernel measures its initial file system.
pub fn initrd(content: &[u8]) -> Event {
    Event::of(Register::Rtmr2, Kind::TAG, "Linux initrd", content)
}

/// Returns the command line as the stub passes it on: without spaces at its ends, and without control characters.
fn command_line(section: &[u8]) -> Result<String> {
    let line = std::str::from_utf8(section).context("its command line is no UTF-8")?;
    let line = line.trim_end_matches('\0').trim();
    Ok(line.replace(|letter: char| letter.is_ascii_control(), " "))
}

/// Returns the initial file system that the stub makes: that of the image, then archives with what else the image has.
/// Each begins at a multiple of 4.
fn initrds(image: &Image<'_>) -> Result<Vec<u8>> {
    let mut all = image
        .section(".initrd")
        .context("it has no section .initrd")?
        .to_vec();
    if let Some(release) = image.section(".osrel") {
        all.resize(all.len().next_multiple_of(4), 0);
        let mut archive = Archive::default();
        archive.entry(".extra", 0o040_555, &[]);
        archive.entry(".extra/os-release", 0o100_444, release);
        all.extend(archive.unfinished());
        all.extend(TRAILER.as_bytes());
    }
    Ok(all)
}

//! The measured boot of a TD with UEFI firmware: every event from the reset to the start of the system, predicted from the
//! firmware's image, the disk's, and the configuration.
//!
//! The host's descriptions for the firmware come from the code that makes them: the list of memory and the devices' tables.

mod acpi;
mod firmware;
mod grub;
mod pe;
mod shim;
#[cfg(test)]
mod tests;
mod uki;
mod variables;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use config::TdConsole;
use tdvf::TdImage;

use super::event::{Event, Kind, Register};
use crate::disk::Disk;
use pe::Image;

pub use firmware::measures;

/// The program that firmware starts from a drive without a boot entry.
const FIRST: &str = "EFI/BOOT/BOOTX64.EFI";
/// The NVMe drive with the disk, the TD's only PCI function.
#[derive(Clone, Debug)]
pub struct Drive {
    /// The model, as the drive reports it, without spaces at its end.
    pub model: String,
    /// The serial number, likewise.
    pub serial: String,
}

impl Drive {
    /// Returns the drive with this model and serial number.
    pub fn new(model: &str, serial: &str) -> Self {
        Self {
            model: model.trim_end().to_owned(),
            serial: serial.trim_end().to_owned(),
        }
    }
}

/// A machine to boot.
pub struct Machine<'a> {
    pub td: &'a config::Td,
    pub drive: &'a Drive,
}

/// Returns all events of a boot from a disk.
///
/// # Errors
/// Something that the boot depends on is missing, or its measurement can't be predicted; the message names it.
pub fn events(machine: &Machine<'_>, image: &TdImage<'_>, disk: &Path) -> Result<Vec<Event>> {
    let td = machine.td;
    let has_virtual = !td.disk.is_empty()
        || !td.net.is_empty()
        || td.vsock.is_some()
        || td.console == TdConsole::Virtio;
    ensure!(
        td.pci.len() == 1 && !has_virtual,
        "TD {} must have one PCI function, an NVMe drive with the disk, and no virtual disk, network card, socket device or \
         virtio console: the boot entries and tables of others are not predicted",
        td.name
    );
    let mut events = firmware::events(machine, image)?;
    let rtmr1 = |kind, name: &str, content: &[u8]| Event::of(Register::Rtmr1, kind, name, content);
    let action = |text: &str| rtmr1(Kind::ACTION, text, text.as_bytes());
    let disk = Disk::open(disk)?;
    events.push(action("Calling EFI Application from Boot Option"));
    events.push(rtmr1(Kind::SEPARATOR, "separator", &[0; 4]));
    events.push(rtmr1(Kind::GPT, "partitions", &disk.partitions()?));
    events.extend(programs(&disk)?);
    events.push(action("Exit Boot Services Invocation"));
    events.push(action("Exit Boot Services Returned with Success"));
    Ok(events)
}

/// Returns the events from the first program to the kernel.
fn programs(disk: &Disk) -> Result<Vec<Event>> {
    let mut path = FIRST.to_owned();
    let mut events = Vec::new();
    loop {
        let content = disk.read_esp(&path)?;
        let image = Image::parse(&content).context(path.clone())?;
        events.push(start(&image, &path).context(path.clone())?);
        let within = || path.clone();
        if shim::is_one(&image) && path == FIRST {
            disk.has_none(&shim::NOT_PREDICTED)?;
            events.extend(shim::events(&image).with_context(within)?);
            path = path.replace("BOOTX64.EFI", shim::NEXT);
        } else if uki::is_one(&image) {
            disk.has_none(&uki::COMPANIONS)?;
            disk.has_none(&[&format!("{path}.extra.d")])?;
            events.extend(uki::events(&image).with_context(within)?);
            return Ok(events);
        } else if grub::is_one(&image) {
            events.extend(grub::events(&image, disk).with_context(within)?);
            return Ok(events);
        } else {
            bail!("{path} is neither a unified kernel image, nor shim, nor GRUB");
        }
    }
}

/// Returns the event of a program that the firmware or shim starts.
fn start(image: &Image<'_>, path: &str) -> Result<Event> {
    image.check_is_application()?;
    Ok(Event {
        register: Register::Rtmr1,
        kind: Kind::APPLICATION,
        digest: image.digest()?,
        name: path.to_owned(),
    })
}

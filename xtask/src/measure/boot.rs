//! The boot of a disk by a TD with UEFI firmware, and the comparison with its event log.

use std::path::Path;

use anyhow::{Context, Result, bail};
use seamark_tests::programs::UefiBoot;
use tdvf::TdImage;

use super::configuration::Config;
use super::event::{self, Event};
use super::uefi::{self, Drive, Machine};
use super::{Measured, log, measure, read};

/// The drives of `cargo xtask run`.
pub const MODEL: &str = "QEMU NVMe Ctrl";
/// See [`MODEL`].
pub const SERIAL: &str = "seamark1";

/// Returns the lines of [`super::report`] for the TD of a configuration that boots a disk by UEFI, if its event log agrees.
///
/// # Errors
/// The boot can't be predicted, or the log differs; the message says where.
pub fn of_uefi_boot(boot: &UefiBoot<'_>) -> Result<String> {
    let config = Config::read(boot.config)?;
    let td = config.uefi_td(Some(boot.td))?;
    let drive = Drive::new(MODEL, boot.serial);
    let predicted = Booted::of(&config, &Machine { td, drive: &drive }, boot.disk)?;
    if let Some(log) = boot.log {
        predicted.compare(log)?;
    }
    Ok(predicted.measured.lines())
}

/// The predicted boot of a disk.
pub struct Booted {
    pub measured: Measured,
    /// All events; none if the firmware does not measure.
    pub events: Vec<Event>,
}

impl Booted {
    /// Predicts the boot of a disk by a TD of a configuration.
    pub fn of(config: &Config, machine: &Machine<'_>, disk: &Path) -> Result<Self> {
        let td = machine.td;
        let firmware = config.firmware(td)?;
        let bytes = read(&firmware)?;
        let what = || firmware.display().to_string();
        let image = TdImage::parse(&bytes).with_context(what)?;
        let events = if uefi::measures(&bytes).with_context(what)? {
            uefi::events(machine, &image, disk)?
        } else {
            Vec::new()
        };
        let measured = Measured {
            name: td.name.clone(),
            mrtd: measure(&image),
            rtmrs: Some(event::replay(&events)),
        };
        Ok(Self { measured, events })
    }

    /// Compares the events with those of a log.
    pub fn compare(&self, log: &[u8]) -> Result<()> {
        match log::difference(&self.events, &log::parse(log)?) {
            Some(difference) => bail!("the event log differs from the prediction\n{difference}"),
            None => Ok(()),
        }
    }
}

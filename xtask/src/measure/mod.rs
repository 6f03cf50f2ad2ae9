//! `cargo xtask measure`: the measurements that a TD will have, computed without a TDX server.
//!
//! [`tdvf`] defines the pages and their order, also for the hypervisor. The computation of the MRTD from them is here
//! and is not shared: the emulated module and this check each other.

mod boot;
mod configuration;
mod event;
mod log;
mod mrtd;
mod rtmr;
mod uefi;
#[cfg(test)]
mod vectors;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mrtd::{CHUNK, Mrtd};
use seam::abi::Measurement;
use tdvf::{TdImage, chunks};

pub use boot::of_uefi_boot;
use boot::{Booted, MODEL, SERIAL};
use configuration::Config;
use uefi::{Drive, Machine};

/// The things to measure.
#[derive(clap::Args)]
pub struct Options {
    /// The firmware image, such as OVMF.fd, or a seamark.toml
    file: PathBuf,

    /// The disk image that the TD with UEFI firmware boots: its RTMRs are computed too. The TD must have one PCI function,
    /// an NVMe drive with this disk
    #[arg(long, value_name = "IMAGE")]
    disk: Option<PathBuf>,

    /// The TD, if the configuration has several with firmware
    #[arg(long, value_name = "NAME", requires = "disk")]
    td: Option<String>,

    /// The drive's model
    #[arg(long, default_value = MODEL, requires = "disk")]
    model: String,

    /// The drive's serial number
    #[arg(long, default_value = SERIAL, requires = "disk")]
    serial: String,

    /// Print each event that extends a register
    #[arg(long, requires = "disk")]
    events: bool,

    /// Compare the events with a log read inside the TD, /sys/firmware/acpi/tables/data/CCEL, and show the first entry of
    /// each register that differs
    #[arg(long, value_name = "FILE", requires = "disk")]
    log: Option<PathBuf>,
}

/// The future measurements of a TD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The TD's name in the configuration.
    pub name: String,
    /// The MRTD.
    pub mrtd: Measurement,
    /// The RTMRs when the TD's firmware enters the kernel. `None` if they are not known: the TD has no kernel, or an
    /// `image`, or UEFI firmware that measures, whose RTMRs depend on the disk.
    pub rtmrs: Option<[Measurement; 4]>,
}

/// Executes `cargo xtask measure`. Returns what it prints.
///
/// # Errors
/// As [`report`] and [`of_uefi_boot`]; or the log differs.
pub fn run(options: &Options) -> Result<String> {
    let Some(disk) = &options.disk else {
        return report(&options.file);
    };
    let config = Config::read(&options.file)?;
    let td = config.uefi_td(options.td.as_deref())?;
    let drive = Drive::new(&options.model, &options.serial);
    let boot = Booted::of(&config, &Machine { td, drive: &drive }, disk)?;
    let mut report = boot.measured.lines();
    if options.events {
        for event in &boot.events {
            writeln!(report, "{} {event}", event.register)?;
        }
    }
    if let Some(log) = &options.log {
        boot.compare(&read(log)?)
            .with_context(|| log.display().to_string())?;
        writeln!(report, "{} has the same events", log.display())?;
    }
    Ok(report)
}

impl Measured {
    /// Returns a line for each register.
    fn lines(&self) -> String {
        let name = &self.name;
        let mut lines = format!("{name}  MRTD   {}\n", hex(&self.mrtd));
        for (number, rtmr) in self.rtmrs.iter().flatten().enumerate() {
            // Writing to a string does not fail.
            let _ = writeln!(lines, "{name}  RTMR{number}  {}", hex(rtmr));
        }
        lines
    }
}

/// Returns the MRTD of a TD that is built from the TDVF image in `file`. If `file` is a configuration, returns the name
/// and the MRTD of each TD in it, and the RTMRs of those that boot with the project's firmware, or with UEFI firmware that
/// measures nothing.
///
/// # Errors
/// A file can't be read, is no configuration, or is no TDVF image that can be built; the message says what is wrong
/// with it.
pub fn report(file: &Path) -> Result<String> {
    if file.extension().is_none_or(|extension| extension != "toml") {
        return Ok(format!("{}\n", hex(&of_file(file)?)));
    }
    let mut tds = of_config(file)?;
    ensure!(!tds.is_empty(), "{} has no [[td]]", file.display());
    let width = tds.iter().map(|td| td.name.len()).max();
    let width = width.unwrap_or_default();
    let lines = tds.iter_mut().map(|td| {
        td.name = format!("{:width$}", td.name);
        td.lines()
    });
    Ok(lines.collect())
}

/// Returns the measurements of the TDs in the configuration in `file`, in its order.
///
/// # Errors
/// As [`report`].
pub fn of_config(file: &Path) -> Result<Vec<Measured>> {
    let config = Config::read(file)?;
    let measured = |td: &config::Td| {
        let firmware = config.firmware(td)?;
        let rtmrs = match &td.kernel {
            Some(kernel) if td.image_file().is_none() => {
                let initrd = td.initrd.as_deref();
                let initrd = initrd.map(|initrd| read(&config.path(initrd)?));
                let initrd = initrd.transpose()?;
                let kernel = read(&config.path(kernel)?)?;
                Some(rtmr::of_boot(&kernel, initrd.as_deref(), &td.cmdline))
            }
            // Other UEFI firmware than OVMF may measure.
            _ if td.firmware.is_some() => match uefi::measures(&read(&firmware)?) {
                Ok(false) => Some(event::replay(&[])),
                Ok(true) | Err(_) => None,
            },
            _ => None,
        };
        Ok(Measured {
            name: td.name.clone(),
            mrtd: of_file(&firmware)?,
            rtmrs,
        })
    };
    config.parsed.td.iter().map(measured).collect()
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn of_file(file: &Path) -> Result<Measurement> {
    let bytes = read(file)?;
    let image =
        TdImage::parse(&bytes).with_context(|| format!("{} is no TDVF image", file.display()))?;
    Ok(measure(&image))
}

/// Returns the MRTD of a TD that is built from `image`.
fn measure(image: &TdImage<'_>) -> Measurement {
    let mut mrtd = Mrtd::new();
    for page in image.pages() {
        mrtd.page_add(page.gpa.0);
        if page.measured {
            let content = page.content();
            for (gpa, chunk) in chunks(page.gpa).zip(content.as_chunks::<CHUNK>().0) {
                mrtd.extend(gpa.0, chunk);
            }
        }
    }
    mrtd.finalize()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use tdvf::{Entry, TAIL_BYTES, write};

    use super::*;

    /// The order is part of the result: it is the order of the calls to the module.
    #[test]
    fn pages_are_added_in_the_order_of_the_sections_and_extended_at_once() {
        let firmware: Vec<u8> = (0..0x1800u32).map(|i| (i / 7) as u8).collect();
        let file = write(
            &firmware,
            &[
                Entry {
                    data: 0..0x1800,
                    gpa: 0xffff_e000,
                    bytes: 0x2000,
                    kind: 0,
                    attributes: 1,
                },
                Entry {
                    data: 0..0,
                    gpa: 0x80_0000,
                    bytes: 0x1000,
                    kind: 3,
                    attributes: 0,
                },
                Entry {
                    data: 0..0,
                    gpa: 0x100_0000,
                    bytes: 0x20_0000,
                    kind: 4,
                    attributes: 2,
                },
            ],
            &[0; TAIL_BYTES],
        );
        let mut expected = Mrtd::new();
        let mut padded = firmware.clone();
        padded.resize(0x2000, 0);
        for page in 0..2usize {
            expected.page_add(0xffff_e000 + 0x1000 * page as u64);
            for chunk in 0..16usize {
                let at = 0x1000 * page + 0x100 * chunk;
                expected.extend(
                    0xffff_e000 + at as u64,
                    padded[at..at + 0x100].try_into().unwrap(),
                );
            }
        }
        expected.page_add(0x80_0000);
        assert_eq!(
            measure(&TdImage::parse(&file).unwrap()),
            expected.finalize()
        );
    }

    #[test]
    fn each_td_of_a_configuration_is_measured_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("seamark.toml");
        let write_config = |image: &str| {
            let td = |name| {
                format!("[[td]]\nname = \"{name}\"\nimage = \"{image}\"\nmemory = \"16M\"\n")
            };
            let file = "[[file]]\nname = \"one\"\npath = \"one.fd\"\n";
            std::fs::write(&config, [file, &td("a"), &td("b")].concat()).unwrap();
        };
        let firmware = Entry {
            data: 0..0x1000,
            gpa: 0xffff_f000,
            bytes: 0x1000,
            kind: 0,
            attributes: 1,
        };
        let image = write(&[1; 0x1000], &[firmware], &[0; TAIL_BYTES]);
        write_config("one");
        let missing = of_config(&config).unwrap_err().to_string();
        assert!(missing.contains("one.fd"), "{missing}");
        std::fs::write(folder.path().join("one.fd"), &image).unwrap();
        let expected = measure(&TdImage::parse(&image).unwrap());
        let measured = |name: &str| Measured {
            name: name.to_owned(),
            mrtd: expected,
            rtmrs: None,
        };
        assert_eq!(of_config(&config).unwrap(), [measured("a"), measured("b")]);
        write_config("two");
        let unknown = format!("{:#}", of_config(&config).unwrap_err());
        assert!(unknown.contains("seamark.toml:6:"), "{unknown}");
    }

    #[test]
    fn digests_are_printed_as_lower_case_hex() {
        assert_eq!(hex(&[0, 0x0a, 0xff]), "000aff");
    }
}

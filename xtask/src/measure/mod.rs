//! `cargo xtask measure`: the measurements that a TD will have, computed without a TDX server.
//!
//! [`tdvf`] defines the pages and their order, also for the hypervisor. The computation of the MRTD from them is here
//! and is not shared: the emulated module and this check each other.

mod mrtd;
mod rtmr;
#[cfg(test)]
mod vectors;

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Error, Result, ensure};
use mrtd::{CHUNK, Mrtd};
use seam::abi::Measurement;
use tdvf::{TdImage, chunks};

use crate::build;

/// The future measurements of a TD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The TD's name in the configuration.
    pub name: String,
    /// The MRTD.
    pub mrtd: Measurement,
    /// The RTMRs when the project's firmware enters the kernel; `None` if the TD has other firmware, or no kernel.
    pub rtmrs: Option<[Measurement; 4]>,
}

/// Returns the MRTD of a TD that is built from the TDVF image in `file`. If `file` is a configuration, returns the name
/// and the MRTD of each TD in it, and the RTMRs of those that boot with the project's firmware.
///
/// # Errors
/// A file can't be read, is no configuration, or is no TDVF image that can be built; the message says what is wrong
/// with it.
pub fn report(file: &Path) -> Result<String> {
    let mut report = String::new();
    if file.extension().is_none_or(|extension| extension != "toml") {
        writeln!(report, "{}", hex(&of_file(file)?))?;
        return Ok(report);
    }
    let tds = of_config(file)?;
    ensure!(!tds.is_empty(), "{} has no [[td]]", file.display());
    let width = tds.iter().map(|td| td.name.len()).max();
    let width = width.unwrap_or_default();
    for td in tds {
        writeln!(report, "{:width$}  MRTD   {}", td.name, hex(&td.mrtd))?;
        for (number, rtmr) in td.rtmrs.iter().flatten().enumerate() {
            writeln!(report, "{:width$}  RTMR{number}  {}", td.name, hex(rtmr))?;
        }
    }
    Ok(report)
}

/// Returns the measurements of the TDs in the configuration in `file`, in its order.
///
/// # Errors
/// As [`report`].
pub fn of_config(file: &Path) -> Result<Vec<Measured>> {
    let config = config::parse(&read(file)?)
        .map_err(Error::msg)
        .with_context(|| format!("in {}", file.display()))?;
    let home = file.parent().unwrap_or(Path::new("."));
    let path = |name: &str| {
        // The parser ensures that there is one.
        let mut files = config.file.iter().filter(|file| file.name == name);
        let file = files.next().context("no [[file]] has that name")?;
        Ok::<_, Error>(home.join(&file.path))
    };
    let measured = |td: &config::Td| {
        let firmware = match td.image_file() {
            Some(image) => path(image)?,
            None => build::td_firmware_image(),
        };
        let rtmrs = match &td.kernel {
            Some(kernel) if td.image_file().is_none() => {
                let initrd = td.initrd.as_deref().map(|initrd| read(&path(initrd)?));
                let initrd = initrd.transpose()?;
                let kernel = read(&path(kernel)?)?;
                Some(rtmr::of_boot(&kernel, initrd.as_deref(), &td.cmdline))
            }
            _ => None,
        };
        Ok(Measured {
            name: td.name.clone(),
            mrtd: of_file(&firmware)?,
            rtmrs,
        })
    };
    config.td.iter().map(measured).collect()
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

//! The disk of `cargo xtask guest debian` in a TD, with the drive and a network card of its own.

use anyhow::Result;
use seamark_tests::programs::Debian;
use seamark_tests::qemu::{Device, Forward, Machine};

use super::{Options, System};

/// The whole configuration of a machine that boots the disk directly.
pub const DIRECT_CONFIG: &str = include_str!("debian.toml");
/// The part of a configuration that boots the disk by UEFI. Capitals between percent signs stand for the addresses of
/// its devices.
const UEFI_CONFIG: &str = include_str!("uefi.toml");
/// The port of this computer that leads to ssh in that TD, if it is free.
const SSH_PORT: u16 = 2222;

/// The way in which the TD boots the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// With the kernel beside it. Its devices are the machine's first.
    Direct,
    /// By UEFI, beside the project's own guests. Its devices are the machine's last: those of other options keep their
    /// addresses.
    Uefi,
}

impl Way {
    /// Returns the way that the options ask for, if the disk is booted at all. It is booted by UEFI if it was made with
    /// its firmware.
    pub fn chosen(options: &Options, debian: &Debian) -> Option<Self> {
        if options.system == Some(System::Debian) {
            return Some(Self::Direct);
        }
        if options.config.is_some() || !debian.recipe().exists() || !debian.firmware().exists() {
            return None;
        }
        if options.no_seam || options.no_iommu {
            eprintln!(
                "Debian's disk is left out: only a machine with SEAM and VT-d can give it to a TD."
            );
            return None;
        }
        Some(Self::Uefi)
    }

    /// Adds the devices to a machine, and says how to get into the TD.
    ///
    /// # Errors
    /// No port of this computer is free.
    pub fn add_devices(self, machine: &mut Machine, debian: &Debian) -> Result<()> {
        let forward = Forward::from_port(SSH_PORT)?;
        eprintln!(
            "When it has booted: ssh -i {} -p {} {}@127.0.0.1",
            debian.key().display(),
            forward.port,
            Debian::USER
        );
        let at = match self {
            Self::Direct => 0,
            Self::Uefi => machine.devices.len(),
        };
        let drive = Device::Snapshot(debian.disk());
        let card = Device::NetWithSsh(forward);
        machine.devices.splice(at..at, [drive, card]);
        Ok(())
    }
}

/// Returns the part of the configuration that boots the disk by UEFI on a machine with `before` devices before the disk's.
/// Each device is on a bus of its own, from 1 on.
pub fn uefi_config(before: usize) -> String {
    let address = |device: usize| format!("0000:{:02x}:00.0", 1 + before + device);
    UEFI_CONFIG
        .replace("%DRIVE%", &address(0))
        .replace("%CARD%", &address(1))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;
    use seamark_tests::programs::Programs;

    use super::*;
    use crate::run::{DEFAULT_CONFIG, LINUX_CONFIG};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn directly_it_boots_as_its_disk_wants() {
        let config = config::parse(DIRECT_CONFIG.as_bytes()).unwrap();
        let td = &config.td[0];
        assert_eq!(td.cmdline, Debian::COMMAND_LINE);
        assert_eq!(td.pci.len(), 2);
    }

    #[test]
    fn made_with_its_firmware_it_is_booted_by_uefi() {
        let directory = tempfile::tempdir().unwrap();
        let debian = Programs::in_directory(directory.path()).debian();
        let way = |arguments: &[&str]| {
            let line = Line::try_parse_from([&["run"], arguments].concat()).unwrap();
            Way::chosen(&line.options, &debian)
        };
        assert_eq!(way(&[]), None);
        fs::create_dir_all(debian.directory()).unwrap();
        fs::write(debian.recipe(), "").unwrap();
        assert_eq!(way(&[]), None);
        fs::write(debian.firmware(), "").unwrap();
        assert_eq!(way(&[]), Some(Way::Uefi));
        assert_eq!(way(&["debian"]), Some(Way::Direct));
        for without in [&["--no-seam"][..], &["--no-iommu"], &["--config", "a.toml"]] {
            assert_eq!(way(without), None, "{without:?}");
        }
    }

    #[test]
    fn beside_the_other_guests_it_fits_and_has_the_last_devices() {
        let text = [DEFAULT_CONFIG, LINUX_CONFIG, &uefi_config(2)].concat();
        let config = config::parse(text.as_bytes()).unwrap();
        let td = config.td.last().unwrap();
        let at: Vec<_> = td.pci.iter().map(|pci| pci.device.to_string()).collect();
        assert_eq!(at, ["0000:03:00.0", "0000:04:00.0"]);
        let memory: u64 = config.td.iter().map(|td| td.memory).sum();
        assert!(memory < 3 << 29, "more than a machine of 2 GiB has for TDs");
    }
}

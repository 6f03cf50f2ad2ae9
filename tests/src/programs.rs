//! The programs under test, as `cargo xtask build` leaves them.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::qemu::Vtd;

/// Debian's OVMF as a guest, from the same package as QEMU's firmware.
pub const OVMF: &str = "ovmf";
/// Debian 13's OVMF as a guest, as `cargo xtask guest ovmf` leaves it.
pub const OVMF_13: &str = "ovmf-13";
const OVMF_IMAGE: &str = "/usr/share/ovmf/OVMF.fd";

/// Debian's kernel and a system for it, as `cargo xtask guest linux` leaves them.
#[derive(Clone, Debug)]
pub struct Linux {
    directory: PathBuf,
}

impl Linux {
    /// Returns their directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the kernel, as Debian ships it. If it exists, everything exists.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// Returns the initial file system.
    pub fn initrd(&self) -> PathBuf {
        self.directory.join("initrd")
    }
}

/// A disk with a whole Debian, as `cargo xtask guest debian` leaves it.
#[derive(Clone, Debug)]
pub struct Debian {
    directory: PathBuf,
}

impl Debian {
    /// The user that logs in with the key, and administers the system through sudo.
    pub const USER: &str = "debian";
    /// The root file system's partition as Linux names it on a machine's only NVMe drive.
    pub const ROOT: &str = "/dev/nvme0n1p2";
    /// The kernel's command line for a direct boot, without an initial file system.
    pub const COMMAND_LINE: &str = "root=/dev/nvme0n1p2 rootfstype=ext4 ro console=ttyS0";

    /// Returns the directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the image of the disk.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.img")
    }

    /// Returns the kernel on the disk, for a machine or TD that boots it directly.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// Returns the user's private key for ssh.
    pub fn key(&self) -> PathBuf {
        self.directory.join("key")
    }

    /// Returns the firmware that boots the disk by UEFI in a TD. It exists if `cargo xtask guest debian --uefi` has
    /// put it there.
    pub fn firmware(&self) -> PathBuf {
        self.directory.join("OVMF.fd")
    }

    /// Returns what the disk was made from, as text. If it exists, everything but the firmware exists.
    pub fn recipe(&self) -> PathBuf {
        self.directory.join("recipe")
    }
}

/// Disks whose boots are measured, as `cargo xtask test uefi-measured` makes them. Each boots a kernel of Debian's with a
/// shell, by UEFI.
#[derive(Clone, Debug)]
pub struct Measured {
    directory: PathBuf,
}

impl Measured {
    /// Returns the directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the image of a disk: `uki-1` and `uki-2` with a unified kernel image, `grub-1` and `grub-2` with shim and
    /// GRUB. The number is that of the kernel and its command line.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.img"))
    }
}

/// Initial file systems with third-party programs, for Debian's kernel. Their existence is checked when they are used.
#[derive(Clone, Debug)]
pub struct Foreign {
    directory: PathBuf,
}

impl Foreign {
    /// Returns their directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the system with Debian's stress-ng and kexec.
    pub fn programs(&self) -> PathBuf {
        self.directory.join("programs")
    }

    /// Returns a whole Debian, with systemd and PostgreSQL.
    pub fn debian(&self) -> PathBuf {
        self.directory.join("debian")
    }

    /// Returns the system with the module of LKVS's tdx-compliance.
    pub fn lkvs(&self) -> PathBuf {
        self.directory.join("compliance")
    }
}

/// Paths of the built programs, all in one directory, and the options of the SEAM stub.
#[derive(Clone, Debug)]
pub struct Programs {
    directory: PathBuf,
    stub_options: Vec<(String, String)>,
    vtd: Vtd,
    has_lkvs: bool,
    soaks: bool,
    measure: Option<Measure>,
}

/// Functions that predict measurements, as `cargo xtask measure` prints them.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// Returns the MRTD and RTMRs of the TDs in a configuration.
    pub tds: fn(&Path) -> anyhow::Result<String>,
    /// Returns the MRTD and RTMRs of a TD that boots a disk by UEFI.
    pub boot: fn(&UefiBoot<'_>) -> anyhow::Result<String>,
}

/// A boot of a disk by UEFI.
#[derive(Clone, Copy, Debug)]
pub struct UefiBoot<'a> {
    /// The configuration.
    pub config: &'a Path,
    /// The TD's name in it.
    pub td: &'a str,
    /// The image of the disk.
    pub disk: &'a Path,
    /// The serial number of QEMU's drive.
    pub serial: &'a str,
    /// The event log that the TD has, with which the prediction is compared.
    pub log: Option<&'a [u8]>,
}

impl Programs {
    /// Returns the programs in `directory`. Their existence is checked when they are used.
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            stub_options: Vec::new(),
            vtd: Vtd::Present,
            has_lkvs: false,
            soaks: false,
            measure: None,
        }
    }

    /// Sets the functions that predict the measurements of TDs.
    #[must_use]
    pub fn with_measure(mut self, measure: Measure) -> Self {
        self.measure = Some(measure);
        self
    }

    /// Predicts the measurements of the TDs in the configuration `file`: one line of name, register and value for each.
    ///
    /// # Errors
    /// A file can't be read or used; the message names it. Or [`Self::with_measure`] was not called.
    pub fn measure(&self, file: &Path) -> anyhow::Result<String> {
        (self.predicting()?.tds)(file)
    }

    /// Predicts the measurements of a TD that boots a disk by UEFI, as [`Self::measure`], and compares the event log.
    ///
    /// # Errors
    /// As [`Self::measure`]; or the boot can't be predicted, or the log differs.
    pub fn measure_boot(&self, boot: &UefiBoot<'_>) -> anyhow::Result<String> {
        (self.predicting()?.boot)(boot)
    }

    fn predicting(&self) -> anyhow::Result<Measure> {
        self.measure.context("nothing here predicts measurements")
    }

    /// Sets options of the stub (key and value), which a test's own options override.
    #[must_use]
    pub fn with_stub_options(mut self, options: &[(String, String)]) -> Self {
        self.stub_options = options.to_vec();
        self
    }

    /// Returns the stub's options.
    pub fn stub_options(&self) -> &[(String, String)] {
        &self.stub_options
    }

    /// Leaves the VT-d unit out of every machine whose test does not decide that.
    #[must_use]
    pub fn without_iommu(self) -> Self {
        Self {
            vtd: Vtd::Absent,
            ..self
        }
    }

    /// Returns the presence of a VT-d unit in machines whose test does not decide that.
    pub fn vtd(&self) -> Vtd {
        self.vtd
    }

    /// Lets scenarios repeat what can go wrong at any moment more often.
    #[must_use]
    pub fn with_soak(self) -> Self {
        Self {
            soaks: true,
            ..self
        }
    }

    /// Returns true if scenarios repeat more.
    pub fn soaks(&self) -> bool {
        self.soaks
    }

    /// Declares that the module of LKVS's tdx-compliance was built from the developer's checkout.
    #[must_use]
    pub fn with_lkvs(self) -> Self {
        Self {
            has_lkvs: true,
            ..self
        }
    }

    /// Returns true if that module was built.
    pub fn has_lkvs(&self) -> bool {
        self.has_lkvs
    }

    /// Returns the directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the hypervisor, an EFI application.
    pub fn seamark(&self) -> PathBuf {
        self.directory.join("seamark.efi")
    }

    /// Returns the SEAM stub as an option ROM.
    pub fn rom(&self) -> PathBuf {
        self.directory.join("seamstub.rom")
    }

    /// Returns the test program for the stub's instructions, an EFI application. It need not exist.
    pub fn probe(&self) -> PathBuf {
        self.directory.join("probe.efi")
    }

    /// Returns the TDVF image of the guest called `name`: one of the project's own, [`OVMF`] or [`OVMF_13`].
    pub fn guest(&self, name: &str) -> PathBuf {
        match name {
            OVMF => PathBuf::from(OVMF_IMAGE),
            OVMF_13 => self.directory.join("guest/ovmf-13/OVMF.fd"),
            own => self.directory.join(format!("{own}.fd")),
        }
    }

    /// Returns the kernel that the tests of a TD's firmware boot.
    pub fn test_kernel(&self) -> PathBuf {
        self.directory.join("test-kernel.bzimage")
    }

    /// Returns Debian's Linux as a guest. Its existence is checked when it is used.
    pub fn linux(&self) -> Linux {
        Linux {
            directory: self.directory.join("guest/linux"),
        }
    }

    /// Returns the disk with a whole Debian. Its existence is checked when it is used.
    pub fn debian(&self) -> Debian {
        Debian {
            directory: self.directory.join("guest/debian"),
        }
    }

    /// Returns the disks whose boots are measured. Their existence is checked when they are used.
    pub fn measured(&self) -> Measured {
        Measured {
            directory: self.directory.join("guest/measured"),
        }
    }

    /// Returns the third-party programs.
    pub fn foreign(&self) -> Foreign {
        Foreign {
            directory: self.directory.join("guest/foreign"),
        }
    }

    /// Returns the ELF that the EFI image called `name` was made from, with symbols and line numbers. Its addresses
    /// are those of the image.
    pub fn symbols(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.elf"))
    }
}

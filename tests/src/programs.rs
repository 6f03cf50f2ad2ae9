//! The programs under test, as `cargo xtask build` leaves them.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Debian's OVMF as a guest. The package is the one that QEMU's firmware comes from.
pub const OVMF: &str = "ovmf";
const OVMF_IMAGE: &str = "/usr/share/ovmf/OVMF.fd";

/// Debian's kernel and a system for it, as `cargo xtask guest linux` leaves them.
#[derive(Clone, Debug)]
pub struct Linux {
    directory: PathBuf,
}

impl Linux {
    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The kernel, as Debian ships it. It is there if everything is.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// The initial file system.
    pub fn initrd(&self) -> PathBuf {
        self.directory.join("initrd")
    }
}

/// Initial file systems with programs of others', for Debian's kernel; whether one is there is seen when it is used.
#[derive(Clone, Debug)]
pub struct Foreign {
    directory: PathBuf,
}

impl Foreign {
    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Debian's stress-ng and kexec.
    pub fn programs(&self) -> PathBuf {
        self.directory.join("programs")
    }

    /// A whole Debian, with systemd and PostgreSQL.
    pub fn debian(&self) -> PathBuf {
        self.directory.join("debian")
    }

    /// The module of LKVS's tdx-compliance.
    pub fn lkvs(&self) -> PathBuf {
        self.directory.join("compliance")
    }
}

/// Paths of the built programs, all in one directory, and how the SEAM stub is started.
#[derive(Clone, Debug)]
pub struct Programs {
    directory: PathBuf,
    stub_options: Vec<(String, String)>,
    has_lkvs: bool,
    measure: Option<Measure>,
}

/// Writes out the MRTD and RTMRs of the TDs in a configuration, as `cargo xtask measure` prints them.
pub type Measure = fn(&Path) -> anyhow::Result<String>;

impl Programs {
    /// The programs in `directory`; whether they are there is seen when they are used.
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            stub_options: Vec::new(),
            has_lkvs: false,
            measure: None,
        }
    }

    /// The same, whose TDs' measurements `measure` predicts.
    #[must_use]
    pub fn with_measure(mut self, measure: Measure) -> Self {
        self.measure = Some(measure);
        self
    }

    /// Predicts the measurements of the TDs in the configuration `file`: a line of name, register and value each.
    ///
    /// # Errors
    /// If a file can't be read or used; the message names it. If these programs were not given [`Self::with_measure`].
    pub fn measure(&self, file: &Path) -> anyhow::Result<String> {
        let measure = self.measure.context("nothing here predicts measurements")?;
        measure(file)
    }

    /// The same, with these options of the stub (key and value) where a test does not set them itself.
    #[must_use]
    pub fn with_stub_options(mut self, options: &[(String, String)]) -> Self {
        self.stub_options = options.to_vec();
        self
    }

    /// The stub's options.
    pub fn stub_options(&self) -> &[(String, String)] {
        &self.stub_options
    }

    /// The same with the module of LKVS's tdx-compliance, from a checkout that the developer has.
    #[must_use]
    pub fn with_lkvs(self) -> Self {
        Self {
            has_lkvs: true,
            ..self
        }
    }

    /// Whether that is there.
    pub fn has_lkvs(&self) -> bool {
        self.has_lkvs
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The hypervisor, an EFI application.
    pub fn seamark(&self) -> PathBuf {
        self.directory.join("seamark.efi")
    }

    /// The SEAM stub as an option ROM.
    pub fn rom(&self) -> PathBuf {
        self.directory.join("seamstub.rom")
    }

    /// The test program that tries the stub's instructions, an EFI application. It needs not exist.
    pub fn probe(&self) -> PathBuf {
        self.directory.join("probe.efi")
    }

    /// The TDVF image of the guest called `name`: one of our own, or [`OVMF`].
    pub fn guest(&self, name: &str) -> PathBuf {
        match name {
            OVMF => PathBuf::from(OVMF_IMAGE),
            own => self.directory.join(format!("{own}.fd")),
        }
    }

    /// The kernel that the tests of a TD's firmware boot.
    pub fn test_kernel(&self) -> PathBuf {
        self.directory.join("test-kernel.bzimage")
    }

    /// Debian's Linux as a guest; whether it is there is seen when it is used.
    pub fn linux(&self) -> Linux {
        Linux {
            directory: self.directory.join("guest/linux"),
        }
    }

    /// Programs of others'.
    pub fn foreign(&self) -> Foreign {
        Foreign {
            directory: self.directory.join("guest/foreign"),
        }
    }

    /// The ELF that the EFI image called `name` was made from, with symbols and line numbers. Its addresses are
    /// those of the image.
    pub fn symbols(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.elf"))
    }
}

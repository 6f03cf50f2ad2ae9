//! What the boot path hands over to the hypervisor.

use alloc::{string::String, vec::Vec};
use core::fmt;

use config::Config;

/// Everything that only the firmware could tell, and the memory that was taken from it.
#[derive(Debug)]
pub struct BootInfo {
    /// Where the program was loaded from.
    pub source: Source,
    /// The firmware's memory map at ExitBootServices, ascending, without overlaps.
    pub memory: Vec<Region>,
    /// Physical address of the ACPI RSDP, where the firmware has one.
    pub rsdp: Option<u64>,
    /// The configuration, or its defaults where there is none or it could not be used.
    pub config: Config,
    /// The name of the configuration file that was found.
    pub config_file: Option<String>,
    /// What is wrong with the configuration or with a file that it names: file, line and reason.
    pub config_problem: Option<String>,
    /// The files that the configuration names and that were read.
    pub files: Vec<File>,
    /// Physical address of the page below 1 MiB that is kept for [`crate::ap`], mapped there readable and
    /// executable; `None` where the firmware had none to give.
    pub trampoline: Option<u64>,
    /// Physical address of the PML4 that is loaded, below 4 GiB.
    pub page_tables: u64,
    /// First and last byte plus one of the program's image (identity-mapped).
    pub image: (u64, u64),
    /// First and last byte plus one of the image's executable part.
    pub text: (u64, u64),
}

/// Where the program was loaded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file system; the path of the file on it.
    Disk(String),
    /// A TFTP server, by PXE; its address.
    Pxe(core::net::IpAddr),
    /// Neither: a firmware shell's memory, a driver.
    Unknown,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(path) => write!(f, "disk ({path})"),
            Self::Pxe(server) => write!(f, "PXE from {server}"),
            Self::Unknown => write!(f, "an unknown place"),
        }
    }
}

/// A file that the configuration names.
#[derive(Clone, Debug)]
pub struct File {
    /// The name that the configuration gives it.
    pub name: String,
    /// Physical address of its first byte, page-aligned; whole pages are kept for it.
    pub pa: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// One region of the firmware's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First physical address.
    pub start: u64,
    /// First physical address behind it.
    pub end: u64,
    /// What it is.
    pub kind: RegionKind,
}

/// What a region of memory is, as far as the host cares (UEFI Specification 2.10, section 7.2, EFI_MEMORY_TYPE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Free memory.
    Conventional,
    /// What the program took for itself: its image, heap, page tables and files. It stays its own.
    Loader,
    /// The firmware's own while it ran boot services; free now.
    BootServices,
    /// The firmware's runtime services.
    RuntimeServices,
    /// ACPI tables, free once they have been read.
    AcpiReclaim,
    /// ACPI's own memory.
    AcpiNvs,
    /// Device registers.
    Mmio,
    /// Memory that survives a power cycle.
    Persistent,
    /// Memory with errors.
    Unusable,
    /// Anything else: not to be touched.
    Reserved,
}

impl RegionKind {
    /// Whether the region is ordinary memory, whoever uses it, so that it can be mapped write-back.
    #[must_use]
    pub fn is_ram(self) -> bool {
        matches!(
            self,
            Self::Conventional
                | Self::Loader
                | Self::BootServices
                | Self::RuntimeServices
                | Self::AcpiReclaim
                | Self::AcpiNvs
        )
    }

    /// Whether the hypervisor may use the region for anything it likes.
    #[must_use]
    pub fn is_free(self) -> bool {
        matches!(self, Self::Conventional | Self::BootServices)
    }
}

impl fmt::Display for RegionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Conventional => "conventional",
            Self::Loader => "hypervisor",
            Self::BootServices => "boot services",
            Self::RuntimeServices => "runtime services",
            Self::AcpiReclaim => "ACPI reclaim",
            Self::AcpiNvs => "ACPI NVS",
            Self::Mmio => "MMIO",
            Self::Persistent => "persistent",
            Self::Unusable => "unusable",
            Self::Reserved => "reserved",
        })
    }
}

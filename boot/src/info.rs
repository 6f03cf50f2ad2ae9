//! The information that the boot path passes to the hypervisor.

use alloc::{string::String, vec::Vec};
use core::fmt;

use config::Config;

use crate::keep::Keep;

/// Facts that only the firmware knows, and the memory that was allocated from it.
#[derive(Debug)]
pub struct BootInfo {
    /// The place from which the program was loaded.
    pub source: Source,
    /// The firmware's memory map at ExitBootServices, ascending, without overlaps.
    pub memory: Vec<Region>,
    /// Physical address of the ACPI RSDP, if the firmware has one.
    pub rsdp: Option<u64>,
    /// Physical address of the SMBIOS entry point, if the firmware has one.
    pub smbios: Option<u64>,
    /// The configuration, as far as it is there and usable.
    pub config: Config,
    /// Name of the configuration file that was found.
    pub config_file: Option<String>,
    /// Errors in the configuration or in files that it names, each with file, line and reason.
    pub config_problems: Vec<String>,
    /// True if the firmware's Secure Boot is on, so that only signed files were used.
    pub secure_boot: bool,
    /// The files that the configuration names and that could be read.
    pub files: Vec<File>,
    /// Physical address of the page below 1 MiB that is reserved for [`crate::ap`], mapped there readable and
    /// executable. `None` if the firmware had no such page free.
    pub trampoline: Option<u64>,
    /// Physical address of the PML4 that is in use, below 4 GiB.
    pub page_tables: u64,
    /// The value of CR3 for every CPU, below 4 GiB: the PML4, or with 5-level paging the PML5 above it.
    pub cr3: u64,
    /// True if the firmware had disabled the execute-disable bit on the CPUs, and every CPU must enable it.
    pub enable_xd: bool,
    /// The report that an earlier crash left, and the places that keep the next one.
    pub keep: Keep,
    /// Start and end address of the heap's first region (identity-mapped).
    pub heap: (u64, u64),
    /// Start and end address of the program's image (identity-mapped).
    pub image: (u64, u64),
    /// Start and end address of the image's executable part.
    pub text: (u64, u64),
}

/// The place from which the program was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file system, with the path of the file on it.
    Disk(String),
    /// A TFTP server, by PXE, with its address.
    Pxe(core::net::IpAddr),
    /// An HTTP server, by HTTP boot, with the URL of the program.
    Http(String),
    /// Neither, for example a firmware shell's memory or a driver.
    Unknown,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(path) => write!(f, "disk ({path})"),
            Self::Pxe(server) => write!(f, "PXE from {server}"),
            Self::Http(url) => write!(f, "HTTP from {url}"),
            Self::Unknown => write!(f, "an unknown place"),
        }
    }
}

/// A file that the configuration names.
#[derive(Clone, Debug)]
pub struct File {
    /// Name of the file in the configuration.
    pub name: String,
    /// Physical address of the first byte, page-aligned. Whole pages are reserved for the file.
    pub pa: u64,
    /// Length in bytes.
    pub len: u64,
}

/// One region of the firmware's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Physical start address.
    pub start: u64,
    /// Physical end address, exclusive.
    pub end: u64,
    /// Kind of the region.
    pub kind: RegionKind,
}

/// The kind of a memory region, as far as the host cares (UEFI Specification 2.10, section 7.2, EFI_MEMORY_TYPE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Free memory.
    Conventional,
    /// Memory that the program allocated: its image, heap, page tables and files. It stays in use.
    Loader,
    /// Memory of the firmware's boot services; free now.
    BootServices,
    /// Memory of the firmware's runtime services.
    RuntimeServices,
    /// ACPI tables, free once they have been read.
    AcpiReclaim,
    /// ACPI non-volatile memory.
    AcpiNvs,
    /// Device registers.
    Mmio,
    /// Persistent memory.
    Persistent,
    /// RAM that the firmware earmarks for a specific purpose, or that may be unplugged.
    SpecificPurpose,
    /// Memory with errors.
    Unusable,
    /// Anything else, which must not be touched.
    Reserved,
}

impl RegionKind {
    /// Returns whether the region is ordinary memory, whoever uses it, so that it can be mapped write-back.
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

    /// Returns whether the hypervisor may use the region freely.
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
            Self::SpecificPurpose => "specific purpose",
            Self::Unusable => "unusable",
            Self::Reserved => "reserved",
        })
    }
}

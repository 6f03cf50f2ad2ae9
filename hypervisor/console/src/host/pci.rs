//! PCI functions: reports of `pci`.

use alloc::{string::String, vec::Vec};

use serde::Serialize;

use super::Hex;

/// The health of a function.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PciHealth {
    /// It answers, and has reported no error.
    Good,
    /// It has reported correctable errors.
    Corrected,
    /// It has reported errors that lost data.
    Errors,
    /// It does not answer.
    Gone,
    /// It is being reset.
    Resetting,
}

impl PciHealth {
    /// Returns the word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Corrected => "corrected",
            Self::Errors => "errors",
            Self::Gone => "gone",
            Self::Resetting => "resetting",
        }
    }
}

/// One function, as `pci list` shows it.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Serialize)]
pub struct PciLine {
    /// Its address: `0000:01:00.0`.
    pub address: String,
    /// Its vendor and device: `8086:0a54`.
    pub id: String,
    /// Its kind, by its class.
    pub device: &'static str,
    /// The number of its isolation group. Functions of one group go to one owner.
    pub group: usize,
    /// Its owner: `host`, `none`, the name of a TD, `formerly` and the name of the TD whose data it may hold, or `out of
    /// use`.
    pub owner: String,
    /// Its health.
    pub health: PciHealth,
    /// The reasons why it can't be given to a TD, one sentence each.
    pub refusals: Vec<String>,
}

/// The functions of the machine.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Serialize)]
pub struct PciList {
    /// The functions, in the order of their addresses.
    pub functions: Vec<PciLine>,
}

/// A PCI function that a TD's definition names.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TdPci {
    /// The function as the definition names it: an address, or vendor and device.
    pub device: String,
    /// The function's address; `None` if the machine has none or several that are named so.
    pub address: Option<String>,
    /// Its kind, by its class.
    pub kind: Option<&'static str>,
    /// Its owner, as `pci list` shows it.
    pub owner: Option<String>,
    /// The TD's work with it in this life.
    pub counts: Option<PciCounts>,
}

/// The work of a TD with a function.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PciCounts {
    /// Accesses to configuration registers, each of which is an exit.
    pub config: u64,
    /// Accesses to memory that the host carried out, each of which is an exit.
    pub memory: u64,
    /// Interrupts that the host delivered.
    pub interrupts: u64,
    /// Interrupts of the function that the host had no vector or entry for.
    pub refused: u64,
    /// Times that an interrupt had to rest, because the TD's functions interrupted too often.
    pub rests: u64,
}

/// PCI functions that were released.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Serialize)]
pub struct PciReleased {
    /// The functions: all of a group.
    pub functions: Vec<String>,
    /// The TD that had them.
    pub td: String,
    /// The warning for the operator.
    pub warning: &'static str,
}

/// The warning of a release.
pub const NOT_ERASED: &str = "nothing was erased: a reset clears neither a drive nor a device's firmware, so the next TD \
     can read what is there and meet what was changed; erase the drive and check the firmware first if the TDs do not \
     trust each other";

/// A base address register.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PciBar {
    /// Its place in the header, 0 to 5.
    pub index: u8,
    /// The kind of its addresses: `memory`, `prefetchable-memory` or `ports`.
    pub kind: &'static str,
    /// Its first address; 0 if none was assigned.
    pub address: Hex,
    /// Size in bytes; `None` if it was not measured.
    pub size: Option<u64>,
}

/// One function, as `pci show` shows it.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Serialize)]
pub struct PciReport {
    /// The report of `pci list`.
    #[serde(flatten)]
    pub line: PciLine,
    /// Base class, subclass and programming interface: `010802`.
    pub class: String,
    /// The subsystem's vendor and device, if it has one.
    pub subsystem: Option<String>,
    /// Its role in the PCI Express fabric; `None` if it is a conventional function.
    pub port: Option<&'static str>,
    /// The bridge to its bus; `None` on a root bus.
    pub bridge: Option<String>,
    /// The physical function, if it is a virtual one.
    pub physical: Option<String>,
    /// The other functions of its group.
    pub group_members: Vec<String>,
    /// The ids that its requests carry, its own first.
    pub requesters: Vec<Hex>,
    /// Its base address registers.
    pub bars: Vec<PciBar>,
    /// The names of its capabilities; one without a known name is its number.
    pub capabilities: Vec<String>,
    /// The ways to reset it, the best first.
    pub resets: Vec<String>,
    /// The errors that it has reported since the start of the machine.
    pub errors: Vec<&'static str>,
}

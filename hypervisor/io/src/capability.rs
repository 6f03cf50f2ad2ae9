//! Lists of capabilities.

use alloc::vec::Vec;

use crate::{
    Address, Defect, Space,
    space::register::{CAPABILITIES, HAS_CAPABILITIES, STATUS},
};

/// Ids in the standard list.
pub mod standard {
    /// Power management.
    pub const POWER: u16 = 0x01;
    /// Message-signalled interrupts.
    pub const MSI: u16 = 0x05;
    /// PCI Express.
    pub const EXPRESS: u16 = 0x10;
    /// MSI-X.
    pub const MSI_X: u16 = 0x11;
    /// Advanced features of conventional devices, such as a function-level reset.
    pub const ADVANCED: u16 = 0x13;
}

/// Ids in the extended list.
pub mod extended {
    /// Advanced error reporting.
    pub const AER: u16 = 0x01;
    /// Access control services.
    pub const ACS: u16 = 0x0D;
    /// Alternative routing-id interpretation.
    pub const ARI: u16 = 0x0E;
    /// Address translation services.
    pub const ATS: u16 = 0x0F;
    /// Single-root I/O virtualization.
    pub const SR_IOV: u16 = 0x10;
}

/// One capability of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its id in its list.
    pub id: u16,
    /// Its offset in configuration space.
    pub offset: u16,
}

/// The capabilities of a function, each list in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Those below offset 0x100.
    pub standard: Vec<Capability>,
    /// Those from offset 0x100 on; only PCI Express functions have them.
    pub extended: Vec<Capability>,
}

impl Capabilities {
    /// Reads both lists. Adds what is wrong with them to `defects`; the part before it is kept.
    pub(crate) fn read(space: &impl Space, at: Address, defects: &mut Vec<Defect>) -> Self {
        let mut lists = Self::default();
        if space.read16(at, STATUS) & HAS_CAPABILITIES != 0 {
            let first = (space.read(at, CAPABILITIES) & 0xFC) as u16;
            lists.standard = list(space, at, Kind::Standard, first, defects);
        }
        if lists.standard(standard::EXPRESS).is_some() {
            lists.extended = list(space, at, Kind::Extended, FIRST_EXTENDED, defects);
        }
        lists
    }

    /// Returns the offset of the first capability with this id in the standard list.
    #[must_use]
    pub fn standard(&self, id: u16) -> Option<u16> {
        find(&self.standard, id)
    }

    /// Returns the offset of the first capability with this id in the extended list.
    #[must_use]
    pub fn extended(&self, id: u16) -> Option<u16> {
        find(&self.extended, id)
    }
}

fn find(list: &[Capability], id: u16) -> Option<u16> {
    list.iter().find(|c| c.id == id).map(|c| c.offset)
}

const FIRST_EXTENDED: u16 = 0x100;

#[derive(Clone, Copy)]
enum Kind {
    Standard,
    Extended,
}

impl Kind {
    /// Returns the capability at `offset` and the offset of the next, from the capability's first register.
    fn decode(self, offset: u16, value: u32) -> (Capability, u16) {
        let (id, next) = match self {
            Self::Standard => (value & 0xFF, value >> 8 & 0xFC),
            Self::Extended => (value & 0xFFFF, value >> 20 & 0xFFC),
        };
        let id = id as u16;
        (Capability { id, offset }, next as u16)
    }

    /// Returns the first offset at which a capability can be.
    fn start(self) -> u16 {
        match self {
            Self::Standard => 0x40,
            Self::Extended => FIRST_EXTENDED,
        }
    }
}

fn list(
    space: &impl Space,
    at: Address,
    kind: Kind,
    first: u16,
    defects: &mut Vec<Defect>,
) -> Vec<Capability> {
    let mut found: Vec<Capability> = Vec::new();
    let mut offset = first;
    // Each turn adds an offset that was not there, so the list ends.
    while offset != 0 {
        if offset < kind.start() || found.iter().any(|known| known.offset == offset) {
            defects.push(Defect::Capabilities(offset));
            break;
        }
        let value = space.read(at, offset);
        if value == u32::MAX {
            // The extended list is out of the legacy ports' reach: that is no defect.
            if offset != FIRST_EXTENDED {
                defects.push(Defect::Capabilities(offset));
            }
            break;
        }
        // An extended list without an entry begins with zero.
        if value == 0 && offset == FIRST_EXTENDED {
            break;
        }
        let (capability, next) = kind.decode(offset, value);
        found.push(capability);
        offset = next;
    }
    found
}

//! The PCI Express capability.

use crate::{Address, Capabilities, Space, standard};

/// The role of a function in the PCI Express fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// An endpoint, legacy or not.
    Endpoint,
    /// A port of the root complex.
    Root,
    /// The port of a switch towards the root complex.
    Upstream,
    /// A port of a switch away from the root complex.
    Downstream,
    /// A bridge from PCI Express to conventional PCI.
    ToPci,
    /// A bridge from conventional PCI to PCI Express.
    FromPci,
    /// An endpoint inside the root complex.
    Integrated,
    /// The root complex's event collector.
    EventCollector,
    /// A value that the specification does not define.
    Unknown(u8),
}

/// The PCI Express capability of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Express {
    /// Its offset in configuration space.
    pub offset: u16,
    /// The function's role.
    pub port: Port,
    /// True if the function offers a function-level reset.
    pub function_reset: bool,
}

impl Express {
    /// Offset of the device control register from the capability.
    pub(crate) const CONTROL: u16 = 8;
    /// Offset of the device status register from the capability.
    pub(crate) const STATUS: u16 = 10;

    pub(crate) fn read(space: &impl Space, at: Address, lists: &Capabilities) -> Option<Self> {
        const FUNCTION_RESET: u32 = 1 << 28;
        let offset = lists.standard(standard::EXPRESS)?;
        let kind = (space.read16(at, offset + 2) >> 4 & 0xF) as u8;
        Some(Self {
            offset,
            port: match kind {
                0 | 1 => Port::Endpoint,
                4 => Port::Root,
                5 => Port::Upstream,
                6 => Port::Downstream,
                7 => Port::ToPci,
                8 => Port::FromPci,
                9 => Port::Integrated,
                10 => Port::EventCollector,
                other => Port::Unknown(other),
            },
            function_reset: space.read(at, offset + 4) & FUNCTION_RESET != 0,
        })
    }
}

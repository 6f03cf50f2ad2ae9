//! The interrupt capability of a function: where it is, and its switches.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8 (MSI and MSI-X).

use alloc::{format, string::String};

use devices::pci::{Interrupts, PhysicalBar};
use io::{Address, Function, Space, standard};

/// Offset of message control in both capabilities.
const CONTROL: u16 = 2;
/// Message control of MSI: enabled; number of messages that are enabled; addresses have 64 bits; there is a mask.
const MSI_ENABLE: u16 = 1;
const MSI_MULTIPLE: u16 = 7 << 4;
const MSI_WIDE: u16 = 1 << 7;
const MSI_MASK: u16 = 1 << 8;
/// Message control of MSI-X: enabled; all entries are masked.
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;
const MSIX_SIZE: u16 = 0x7FF;
/// Bytes of an entry of the MSI-X table, and the place of its vector control.
pub const ENTRY: u64 = 16;
pub const ENTRY_CONTROL: u64 = 12;

/// The capability that a function interrupts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// It has none.
    None,
    /// MSI, of which one message is used.
    Msi {
        /// Offset of the capability.
        offset: u16,
        /// Its message control while it is off.
        control: u16,
    },
    /// MSI-X.
    Msix {
        /// Offset of the capability.
        offset: u16,
        /// Number of entries.
        vectors: u16,
        /// Base address register and offset of the table.
        table: (usize, u64),
        /// Base address register and offset of the pending bits.
        pending: (usize, u64),
    },
}

impl Capability {
    /// Reads a function's capability.
    ///
    /// # Errors
    /// A sentence: the MSI-X table is outside the function's memory.
    pub fn of(
        space: &impl Space,
        function: &Function,
        memory: &[PhysicalBar],
    ) -> Result<Self, String> {
        let at = function.address;
        if let Some(offset) = function.capabilities.standard(standard::MSI_X) {
            let vectors = (space.read16(at, offset + CONTROL) & MSIX_SIZE) + 1;
            let place = |register: u16, bytes: u64, align: u64| {
                let value = space.read(at, offset + register);
                let (bar, start) = ((value & 7) as usize, u64::from(value & !7));
                let register = memory.iter().find(|register| register.index == bar);
                let fits = register.is_some_and(|register| {
                    start + bytes <= register.range.end - register.range.start
                });
                let why =
                    || format!("the MSI-X structures of PCI function {at} are outside its memory");
                (fits && start.is_multiple_of(align))
                    .then_some((bar, start))
                    .ok_or_else(why)
            };
            let count = u64::from(vectors);
            return Ok(Self::Msix {
                offset,
                vectors,
                table: place(4, count * ENTRY, 8)?,
                pending: place(8, count.div_ceil(64) * 8, 8)?,
            });
        }
        let msi = function.capabilities.standard(standard::MSI);
        Ok(msi.map_or(Self::None, |offset| Self::Msi {
            offset,
            control: space.read16(at, offset + CONTROL) & !(MSI_ENABLE | MSI_MULTIPLE),
        }))
    }

    /// Returns the interrupts as the TD's model needs them.
    pub fn shape(self) -> Interrupts {
        match self {
            Self::None => Interrupts::None,
            Self::Msi { .. } => Interrupts::Msi(1),
            Self::Msix {
                vectors,
                table,
                pending,
                ..
            } => Interrupts::Msix {
                vectors,
                table,
                pending,
            },
        }
    }

    /// Switches the capability.
    pub fn switch(self, space: &impl Space, at: Address, is_on: bool) {
        match self {
            Self::None => {}
            Self::Msi { offset, control } => {
                let enable = if is_on { MSI_ENABLE } else { 0 };
                space.write16(at, offset + CONTROL, control | enable);
            }
            Self::Msix { offset, .. } => {
                let value = if is_on { MSIX_ENABLE } else { MSIX_MASK };
                space.write16(at, offset + CONTROL, value);
            }
        }
    }
}

/// The registers of MSI.
#[derive(Clone, Copy, Debug)]
pub struct Msi {
    /// Offset of message control.
    pub control: u16,
    /// Its value while the interrupt is on.
    pub enabled: u16,
    /// Offset of the mask register, if there is one.
    pub mask: Option<u16>,
    offset: u16,
}

impl Msi {
    /// Returns the registers of a capability at `offset`, with this message control.
    pub fn at(offset: u16, control: u16) -> Self {
        let data = if control & MSI_WIDE == 0 { 8 } else { 12 };
        Self {
            control: offset + CONTROL,
            enabled: control | MSI_ENABLE,
            mask: (control & MSI_MASK != 0).then_some(offset + data + 4),
            offset,
        }
    }

    /// Sets the message.
    pub fn set(self, space: &impl Space, at: Address, (address, data): (u64, u32)) {
        let is_wide = self.enabled & MSI_WIDE != 0;
        space.write(at, self.offset + 4, address as u32);
        if is_wide {
            space.write(at, self.offset + 8, (address >> 32) as u32);
        }
        let place = if is_wide { 12 } else { 8 };
        space.write16(at, self.offset + place, data as u16);
    }
}

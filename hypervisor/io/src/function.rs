//! A function: its identity, its header, its capabilities, and what is wrong with it.

use alloc::vec::Vec;

use crate::{
    Address, Bar, Capabilities, Defect, Express, Port, Space, bar,
    space::register::{BUS_MASTER, BUSES, CLASS, COMMAND, HEADER, ID, SUBSYSTEM},
    sriov::Virtual,
};

/// Base class, subclass and programming interface of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// The base class: 1 is mass storage, 2 network, 6 a bridge.
    pub base: u8,
    /// The subclass.
    pub sub: u8,
    /// The programming interface.
    pub interface: u8,
}

impl Class {
    /// Returns base class and subclass as one number, such as 0x0108 for non-volatile memory.
    #[must_use]
    pub const fn code(self) -> u16 {
        (self.base as u16) << 8 | self.sub as u16
    }

    /// Returns what a function of this class is, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match (self.base, self.sub) {
            (0x01, 0x04) => "RAID controller",
            (0x01, 0x06) => "SATA controller",
            (0x01, 0x07) => "SAS controller",
            (0x01, 0x08) => "NVMe drive",
            (0x01, _) => "storage controller",
            (0x02, _) => "network card",
            (0x03, _) => "display controller",
            (0x04, _) => "multimedia device",
            (0x05, 0x02) => "CXL memory device",
            (0x05, _) => "memory controller",
            (0x06, 0x00) => "host bridge",
            (0x06, 0x01) => "ISA bridge",
            (0x06, 0x04) => "PCI bridge",
            (0x06, _) => "bridge",
            (0x07, 0x00) => "serial port",
            (0x07, _) => "communication device",
            (0x08, _) => "system peripheral",
            (0x0B, _) => "processor",
            (0x0C, 0x03) => "USB controller",
            (0x0C, 0x05) => "SMBus controller",
            (0x0C, _) => "serial bus controller",
            (0x10, _) => "encryption device",
            (0x11, _) => "signal processor",
            (0x12, _) => "accelerator",
            _ => "device",
        }
    }
}

/// The identity of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The vendor. A virtual function's is its physical function's.
    pub vendor: u16,
    /// The device, by the vendor's numbers.
    pub device: u16,
    /// The revision.
    pub revision: u8,
    /// The class.
    pub class: Class,
    /// The subsystem's vendor, if the header has one.
    pub subsystem_vendor: Option<u16>,
    /// The subsystem, by that vendor's numbers.
    pub subsystem: Option<u16>,
}

/// The buses of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buses {
    /// The bus behind it.
    pub secondary: u8,
    /// The last bus behind it.
    pub subordinate: u8,
}

/// The layout of a function's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// An ordinary function.
    Endpoint,
    /// A bridge to another bus.
    Bridge(Buses),
    /// Any other layout: CardBus, or none that is specified.
    Other(u8),
}

/// The result of [`Function::stop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Bus mastering was off.
    WasOff,
    /// Bus mastering was on and is now off.
    Now,
    /// Bus mastering stays on.
    Refused,
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its address.
    pub address: Address,
    /// Its identity.
    pub identity: Identity,
    /// The layout of its header.
    pub header: Header,
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// The PCI Express capability, if it has one.
    pub express: Option<Express>,
    /// The base address registers that are in use or were measured.
    pub bars: Vec<Bar>,
    /// The physical function, if this is a virtual one.
    pub physical: Option<Address>,
    /// Its virtual functions, if it has the capability.
    pub(crate) virtuals: Option<Virtual>,
    /// The mistake.
    pub defects: Vec<Defect>,
}

impl Function {
    /// Reads the function at `at`, if there is one.
    pub(crate) fn read(space: &impl Space, at: Address) -> Option<Self> {
        let id = space.read(at, ID);
        if !is_id(id) {
            return None;
        }
        let class = space.read(at, CLASS);
        let kind = (space.read(at, HEADER) >> 16 & 0x7F) as u8;
        let mut defects = Vec::new();
        if class == u32::MAX && kind == 0x7F {
            defects.push(Defect::Vanished);
        }
        let header = match kind {
            0 => Header::Endpoint,
            1 => Header::Bridge(buses(space.read(at, BUSES), at, &mut defects)),
            other => Header::Other(other),
        };
        let mut function = Self {
            address: at,
            identity: Identity {
                vendor: id as u16,
                device: (id >> 16) as u16,
                ..identity(class)
            },
            header,
            capabilities: Capabilities::default(),
            express: None,
            bars: Vec::new(),
            physical: None,
            virtuals: None,
            defects,
        };
        function.read_further(space);
        Some(function)
    }

    /// Reads what can differ between a physical function and a virtual one with the same identity.
    pub(crate) fn read_further(&mut self, space: &impl Space) {
        let at = self.address;
        if self.defects.contains(&Defect::Vanished) {
            return;
        }
        if self.header == Header::Endpoint {
            let subsystem = space.read(at, SUBSYSTEM);
            self.identity.subsystem_vendor = Some(subsystem as u16);
            self.identity.subsystem = Some((subsystem >> 16) as u16);
        }
        self.capabilities = Capabilities::read(space, at, &mut self.defects);
        self.express = Express::read(space, at, &self.capabilities);
        if self.physical.is_none() {
            self.bars = bar::read(space, bar::Place::header(at, self.bar_places()));
        }
    }

    /// Returns the number of base address registers that the header has places for.
    pub(crate) fn bar_places(&self) -> u8 {
        match self.header {
            Header::Endpoint => 6,
            Header::Bridge(_) => 2,
            Header::Other(_) => 0,
        }
    }

    /// Returns true if the function answers.
    pub fn answers(&self, space: &impl Space) -> bool {
        // A virtual function has no id of its own, but a class.
        match self.physical {
            None => is_id(space.read(self.address, ID)),
            Some(_) => space.read(self.address, CLASS) != u32::MAX,
        }
    }

    /// Returns the buses behind the function, if it is a bridge that is set up.
    #[must_use]
    pub fn behind(&self) -> Option<Buses> {
        match self.header {
            Header::Bridge(buses) if !self.defects.contains(&Defect::Buses) => Some(buses),
            _ => None,
        }
        .filter(|buses| buses.secondary != 0)
    }

    /// Returns the function's role in the PCI Express fabric; `None` if it is a conventional one.
    #[must_use]
    pub fn port(&self) -> Option<Port> {
        self.express.map(|express| express.port)
    }

    /// Switches the function's bus mastering off: it no longer reads or writes memory, and sends no message.
    pub fn stop(&self, space: &impl Space) -> Stopped {
        let command = space.read16(self.address, COMMAND);
        if command & BUS_MASTER == 0 || command == u16::MAX {
            return Stopped::WasOff;
        }
        space.write16(self.address, COMMAND, command & !BUS_MASTER);
        match space.read16(self.address, COMMAND) {
            // A function that has vanished is stopped, too.
            u16::MAX => Stopped::Now,
            command if command & BUS_MASTER == 0 => Stopped::Now,
            _ => Stopped::Refused,
        }
    }

    /// Returns true for bridges from the host and to ISA, EISA and MicroChannel, which have no DMA of their own. In old
    /// chipsets their bus-master bit is hard-wired.
    #[must_use]
    pub fn is_harmless_bridge(&self) -> bool {
        (0x0600..=0x0603).contains(&self.identity.class.code())
    }
}

/// Returns true if `id` is what a function answers. Where none is, ones are read; zeros and a vendor of ones come from
/// broken bridges. A vendor of 1 means that the function is not ready yet, which software sees only after a reset.
fn is_id(id: u32) -> bool {
    !matches!(id as u16, 0xFFFF | 0) && id != 0xFFFF_0001
}

fn identity(class: u32) -> Identity {
    Identity {
        vendor: 0,
        device: 0,
        revision: class as u8,
        class: Class {
            base: (class >> 24) as u8,
            sub: (class >> 16) as u8,
            interface: (class >> 8) as u8,
        },
        subsystem_vendor: None,
        subsystem: None,
    }
}

/// Decodes a bridge's buses. Those behind it have higher numbers than the one that it is on.
fn buses(value: u32, at: Address, defects: &mut Vec<Defect>) -> Buses {
    let buses = Buses {
        secondary: (value >> 8) as u8,
        subordinate: (value >> 16) as u8,
    };
    let is_set_up = buses.secondary != 0;
    if is_set_up && (buses.secondary <= at.bus || buses.subordinate < buses.secondary) {
        defects.push(Defect::Buses);
    }
    buses
}

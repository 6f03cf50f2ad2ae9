//! Addresses of functions, as units see them.

use core::fmt;

/// The requester id that a request carries: bus, device and function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(pub u16);

impl Source {
    /// Creates the id of a function. `device` is below 32 and `function` below 8; higher bits are ignored.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 0x1F) << 3 | function as u16 & 7)
    }

    /// Returns the bus.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Returns device and function: the index into a context table.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.0 as u8
    }

    /// Returns the device.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.devfn() >> 3
    }

    /// Returns the function's number in its device.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.devfn() & 7
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{}",
            self.bus(),
            self.device(),
            self.function()
        )
    }
}

/// A function of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Function {
    /// The PCI segment.
    pub segment: u16,
    /// Its address there.
    pub source: Source,
}

impl Function {
    /// Creates the address of a function.
    #[must_use]
    pub const fn new(segment: u16, source: Source) -> Self {
        Self { segment, source }
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{}", self.segment, self.source)
    }
}

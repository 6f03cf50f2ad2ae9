//! The address of a function.

use core::{fmt, str::FromStr};

/// The address of a function: segment, bus, device (5 bits) and function (3 bits).
///
/// A function with alternative routing (ARI) has a function number of 8 bits, whose upper 5 bits are in `device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The segment (domain).
    pub segment: u16,
    /// The bus.
    pub bus: u8,
    /// The device on its bus, 0 to 31.
    pub device: u8,
    /// The function of its device, 0 to 7.
    pub function: u8,
}

impl Address {
    /// Returns the address of the function that a requester id names in a segment.
    #[must_use]
    pub const fn of_requester(segment: u16, id: u16) -> Self {
        Self {
            segment,
            bus: (id >> 8) as u8,
            device: (id >> 3 & 0x1F) as u8,
            function: (id & 7) as u8,
        }
    }

    /// Returns the requester id that the function's own requests carry.
    #[must_use]
    pub const fn requester(self) -> u16 {
        (self.bus as u16) << 8 | (self.device as u16 & 0x1F) << 3 | self.function as u16 & 7
    }

    /// Returns the same device's function with this number.
    #[must_use]
    pub const fn sibling(self, function: u8) -> Self {
        Self { function, ..self }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segment,
            bus,
            device,
            function,
        } = self;
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// A text is not the address of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress;

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write segment, bus, device and function in hexadecimal, such as 0000:01:00.0 or 01:00.0")
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    /// Parses `SSSS:BB:DD.F` or `BB:DD.F`, which is in segment 0.
    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let (rest, function) = text.rsplit_once('.').ok_or(BadAddress)?;
        let (rest, device) = rest.rsplit_once(':').ok_or(BadAddress)?;
        let (segment, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
        let address = Self {
            segment: hexadecimal(segment, 4)?,
            bus: hexadecimal(bus, 2)? as u8,
            device: hexadecimal(device, 2)? as u8,
            function: hexadecimal(function, 1)? as u8,
        };
        (address.device < 32 && address.function < 8)
            .then_some(address)
            .ok_or(BadAddress)
    }
}

fn hexadecimal(text: &str, digits: usize) -> Result<u16, BadAddress> {
    let only_digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if text.len() > digits || !only_digits {
        return Err(BadAddress);
    }
    u16::from_str_radix(text, 16).map_err(|_| BadAddress)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    #[test]
    fn addresses_are_written_and_read_alike() {
        let address = Address {
            segment: 0x10,
            bus: 0xAB,
            device: 31,
            function: 7,
        };
        assert_eq!(address.to_string(), "0010:ab:1f.7");
        assert_eq!("0010:ab:1f.7".parse(), Ok(address));
        assert_eq!(Address::of_requester(0x10, address.requester()), address);
        let short = "1:0.0".parse::<Address>().map(|a| a.to_string());
        assert_eq!(short, Ok("0000:01:00.0".into()));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            ":",
            ".",
            "01:00",
            "01.0",
            "01:20.0",
            "01:00.8",
            "00000:01:00.0",
            "+1:00.0",
            "0:0:1:0.0",
            "x:00.0",
        ] {
            assert_eq!(text.parse::<Address>(), Err(BadAddress), "{text}");
        }
    }
}

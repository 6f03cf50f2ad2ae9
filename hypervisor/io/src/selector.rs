//! The way an operator names the functions of a device.

use core::{fmt, str::FromStr};

use crate::{Address, Function};

/// A function, by its address or by what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The function at this address.
    Address(Address),
    /// The function with this vendor and this device, of which the machine has one.
    Identity {
        /// The vendor.
        vendor: u16,
        /// The device, by the vendor's numbers.
        device: u16,
    },
}

impl Selector {
    /// Returns true if this names the function.
    #[must_use]
    pub fn matches(&self, function: &Function) -> bool {
        match *self {
            Self::Address(at) => function.address == at,
            Self::Identity { vendor, device } => {
                (function.identity.vendor, function.identity.device) == (vendor, device)
            }
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(at) => write!(f, "{at}"),
            Self::Identity { vendor, device } => write!(f, "{vendor:04x}:{device:04x}"),
        }
    }
}

/// A text names no function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSelector;

impl fmt::Display for BadSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "write an address, such as 0000:01:00.0, or vendor and device, such as 8086:0a54",
        )
    }
}

impl core::error::Error for BadSelector {}

impl FromStr for Selector {
    type Err = BadSelector;

    /// Parses an [`Address`], or `VVVV:DDDD` with four hexadecimal digits each.
    fn from_str(text: &str) -> Result<Self, BadSelector> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (vendor, device) = text.split_once(':').ok_or(BadSelector)?;
        Ok(Self::Identity {
            vendor: four_digits(vendor)?,
            device: four_digits(device)?,
        })
    }
}

fn four_digits(text: &str) -> Result<u16, BadSelector> {
    let is_number = text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = is_number.then(|| u16::from_str_radix(text, 16).ok());
    number.flatten().ok_or(BadSelector)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    #[test]
    fn a_selector_is_an_address_or_vendor_and_device() {
        let shown = |text: &str| text.parse::<Selector>().map(|parsed| parsed.to_string());
        for (text, canonical) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("1:0.0", "0000:01:00.0"),
            ("8086:0A54", "8086:0a54"),
        ] {
            assert_eq!(shown(text), Ok(canonical.into()));
            assert_eq!(shown(canonical), Ok(canonical.into()));
        }
        for text in [
            "",
            "8086",
            "8086:",
            "8086:a54",
            "8086:00a54",
            "+086:0a54",
            "01:00",
            "01:20.0",
        ] {
            assert_eq!(shown(text), Err(BadSelector), "{text}");
        }
    }
}

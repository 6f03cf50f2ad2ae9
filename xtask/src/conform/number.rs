//! Numbers and byte strings in the recordings' format.

use std::fmt;

use anyhow::{Context, Result, ensure};
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A 64-bit number: a JSON integer, or a string in hexadecimal (`0x...`) or decimal. Negative numbers wrap around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(pub u64);

impl Number {
    /// Parses the number in `text`.
    pub fn parse(text: &str) -> Result<Self> {
        let wrapped = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text
                .parse::<u64>()
                .ok()
                .or_else(|| text.parse::<i64>().ok().map(|n| n as u64)),
        };
        wrapped
            .map(Self)
            .with_context(|| format!("`{text}` is not a 64-bit number"))
    }

    /// Returns the number if it fits into 32 bits.
    pub fn narrow(self, what: &str) -> Result<u32> {
        u32::try_from(self.0).with_context(|| format!("{what} {:#x} exceeds 32 bits", self.0))
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit number or a string that writes one")
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Number, E> {
                Ok(Number(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Number, E> {
                Ok(Number(value as u64))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Number, E> {
                Number::parse(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// Parses a string of hexadecimal digits into bytes, in the order of memory.
pub fn bytes(text: &str) -> Result<Vec<u8>> {
    ensure!(
        text.len().is_multiple_of(2) && text.bytes().all(|digit| digit.is_ascii_hexdigit()),
        "`{}` is not a string of hexadecimal bytes",
        text.chars().take(32).collect::<String>()
    );
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).context("not hexadecimal"))
        .collect()
}

/// Parses the 16 bytes of an XMM register.
pub fn xmm(text: &str) -> Result<u128> {
    let bytes = bytes(text)?;
    let bytes: [u8; 16] = bytes
        .try_into()
        .ok()
        .context("an XMM register has 16 bytes")?;
    Ok(u128::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_three_dresses() {
        let read = |json: &str| serde_json::from_str::<Number>(json).map(|n| n.0);
        assert_eq!(read("12").unwrap(), 12);
        assert_eq!(read("\"0xffffffffffffffff\"").unwrap(), u64::MAX);
        assert_eq!(read("\"-99990\"").unwrap(), (-99990i64) as u64);
        assert!(read("\"0x10000000000000000\"").is_err());
        assert!(read("\"zebra\"").is_err());
        assert!(read("1.5").is_err());
    }

    #[test]
    fn byte_strings_are_pairs_of_digits() {
        assert_eq!(bytes("00ff10").unwrap(), [0, 255, 16]);
        assert!(bytes("0").is_err());
        assert!(bytes("+1").is_err());
        assert!(bytes("é").is_err());
    }
}

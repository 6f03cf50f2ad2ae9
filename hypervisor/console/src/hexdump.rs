//! Hex dumps of memory for people and for scripts.

use alloc::{string::String, vec::Vec};
use core::fmt::{self, Write};

use serde::{Serialize, Serializer};

/// Bytes that serialise to a string of hexadecimal digits in JSON.
pub struct HexBytes(pub Vec<u8>);

impl Serialize for HexBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut digits = String::new();
        for byte in &self.0 {
            write!(digits, "{byte:02x}").map_err(serde::ser::Error::custom)?;
        }
        serializer.serialize_str(&digits)
    }
}

/// Prints rows of 16 bytes, each with its address and its text.
pub fn dump(address: u64, bytes: &[u8], out: &mut dyn Write) -> fmt::Result {
    for (row, bytes) in bytes.chunks(16).enumerate() {
        write!(out, "{:013x} ", address + 16 * row as u64)?;
        for (column, byte) in bytes.iter().enumerate() {
            let gap = if column == 8 { "  " } else { " " };
            write!(out, "{gap}{byte:02x}")?;
        }
        let show = |byte: &u8| {
            if matches!(byte, b' '..=b'~') {
                char::from(*byte)
            } else {
                '.'
            }
        };
        writeln!(out, "  {}", bytes.iter().map(show).collect::<String>())?;
    }
    Ok(())
}

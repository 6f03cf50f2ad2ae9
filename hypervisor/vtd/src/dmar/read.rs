//! The list of structures, and the fields of one.

use alloc::{format, string::String, vec::Vec};

use super::{Devices, Scope, scope};

/// One structure.
pub(super) struct Structure<'a> {
    /// Its place in the table, from 0.
    pub number: usize,
    /// Its kind.
    pub kind: u16,
    bytes: &'a [u8],
}

/// Returns the structures. A wrong length ends the list, with a sentence.
pub(super) fn structures(table: &[u8]) -> impl Iterator<Item = Result<Structure<'_>, String>> {
    let mut rest = table;
    let mut number = 0;
    core::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = rest.get(2..4).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let bytes = length
            .filter(|length| *length >= 4)
            .and_then(|length| rest.split_at_checked(length.into()));
        let Some((bytes, after)) = bytes else {
            let left = core::mem::take(&mut rest).len();
            return Some(Err(format!(
                "structure {number} of the DMAR has a wrong length: its last {left} bytes are not read"
            )));
        };
        rest = after;
        number += 1;
        Some(Ok(Structure {
            number: number - 1,
            kind: u16::from_le_bytes([bytes[0], bytes[1]]),
            bytes,
        }))
    })
}

impl Structure<'_> {
    /// Checks that the structure has at least `length` bytes.
    pub fn whole(&self, length: usize) -> Result<(), String> {
        let has = self.bytes.len();
        if has < length {
            return Err(format!("has {has} bytes instead of {length}"));
        }
        Ok(())
    }

    /// Returns the byte at `at`, or 0 behind the end.
    pub fn u8(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// Returns two bytes, as [`Self::u8`].
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.u8(at), self.u8(at + 1)])
    }

    /// Returns four bytes, as [`Self::u8`].
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(core::array::from_fn(|i| self.u8(at + i)))
    }

    /// Returns eight bytes, as [`Self::u8`].
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(core::array::from_fn(|i| self.u8(at + i)))
    }

    /// Returns the printable ASCII from `at` on, up to a zero.
    pub fn text(&self, at: usize) -> String {
        let bytes = self.bytes.get(at..).unwrap_or(&[]).iter();
        bytes
            .take_while(|byte| **byte != 0)
            .filter(|byte| byte.is_ascii_graphic())
            .map(|byte| char::from(*byte))
            .collect()
    }

    /// Returns the scopes from `at` to the end.
    pub fn scopes(&self, at: usize) -> Result<Vec<Scope>, String> {
        scope::parse(self.bytes.get(at..).unwrap_or(&[]))
    }

    /// Returns the content of a structure that consists of flags, a segment and scopes.
    pub fn devices(&self) -> Result<Devices, String> {
        self.whole(8)?;
        Ok(Devices {
            segment: self.u16(6),
            flags: self.u8(4),
            scopes: self.scopes(8)?,
        })
    }
}

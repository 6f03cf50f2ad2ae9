//! The checksum of the internet's protocols.
//!
//! Source: RFC 1071.

/// A sum of words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes. All but the last that are added are an even number.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        let (words, last) = bytes.as_chunks::<2>();
        let words = words
            .iter()
            .map(|word| u64::from(u16::from_be_bytes(*word)));
        let last = last.first().map_or(0, |byte| u64::from(*byte) << 8);
        Self(self.0 + words.sum::<u64>() + last)
    }

    /// Returns the sum, with its carries added.
    #[must_use]
    pub const fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        sum as u16
    }

    /// Returns the checksum for a field. Zero would mean that there is none.
    #[must_use]
    pub const fn checksum(self) -> u16 {
        match !self.folded() {
            0 => 0xFFFF,
            value => value,
        }
    }
}

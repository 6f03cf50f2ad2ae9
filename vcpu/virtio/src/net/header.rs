//! The header before a frame, and the frame's own: read once, checked, and written anew for the receiver.

use core::fmt;

use virtio_spec::net::HdrF;

/// Bytes of the header before a frame, and of an Ethernet header.
pub const HEADER: usize = 12;
pub const ETHERNET: usize = 14;
/// Bytes of a frame's addresses.
pub const ADDRESSES: usize = 12;
/// Bytes that are read before the rest of a frame is copied: whole words, so that the rest begins with one.
pub const START: usize = HEADER + ADDRESSES;
/// Largest length of a frame: 1,500 bytes, an Ethernet header and a VLAN tag.
pub const LONGEST: usize = 1500 + ETHERNET + 4;

/// Offsets of the header's fields.
const FLAGS: usize = 0;
const SEGMENTATION: usize = 1;
const CHECKSUM_START: usize = 6;
const CHECKSUM_OFFSET: usize = 8;
const BUFFERS: usize = 10;

/// A MAC address, in the low 48 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub u64);

impl Mac {
    fn read(bytes: &[u8]) -> Self {
        let mut raw = [0; 8];
        raw[2..].copy_from_slice(bytes);
        Self(u64::from_be_bytes(raw))
    }

    /// Returns the bytes, as on the wire.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        let [_, _, bytes @ ..] = self.0.to_be_bytes();
        bytes
    }

    /// Returns the address with these bytes, as on the wire.
    #[must_use]
    pub const fn of([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    /// Returns whether frames to this address are for a group, or for all.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0 >> 40 & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.bytes();
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// A checksum that the receiver or the host has to complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// The first byte that it covers, to the frame's end.
    pub start: usize,
    /// The place of the checksum in the frame.
    pub at: usize,
}

/// The state of a frame after its start was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Destination and source.
    pub to: Mac,
    /// See `to`.
    pub from: Mac,
    /// The checksum to complete, if there is one.
    pub checksum: Option<Checksum>,
}

impl Start {
    /// Decodes the start of a frame of `bytes` bytes. Returns `None` if the header claims what no such frame has, or what
    /// was not negotiated: segmentation, checksums without `has_checksums`.
    #[must_use]
    pub fn read(raw: &[u8; START], bytes: usize, has_checksums: bool) -> Option<Self> {
        let field = |at: usize| usize::from(u16::from_le_bytes([raw[at], raw[at + 1]]));
        let flags = HdrF::from_bits(raw[FLAGS])?;
        if raw[SEGMENTATION] != 0 || !HdrF::NEEDS_CSUM.contains(flags) {
            return None;
        }
        let checksum = match (flags.contains(HdrF::NEEDS_CSUM), has_checksums) {
            (false, _) => None,
            (true, false) => return None,
            (true, true) => {
                let start = field(CHECKSUM_START);
                let at = start + field(CHECKSUM_OFFSET);
                // The checksum is of a protocol within the frame.
                if start < ETHERNET || at + 2 > bytes {
                    return None;
                }
                Some(Checksum { start, at })
            }
        };
        let frame = &raw[HEADER..];
        Some(Self {
            to: Mac::read(&frame[..6]),
            from: Mac::read(&frame[6..]),
            checksum,
        })
    }

    /// Returns the start for a receiver, with the checksum to complete if it does that.
    #[must_use]
    pub fn written(&self, completes: bool) -> [u8; START] {
        let mut raw = [0; START];
        if let Some(Checksum { start, at }) = self.checksum.filter(|_| completes) {
            raw[FLAGS] = HdrF::NEEDS_CSUM.bits();
            let offset = (at - start) as u16;
            raw[CHECKSUM_START..][..2].copy_from_slice(&(start as u16).to_le_bytes());
            raw[CHECKSUM_OFFSET..][..2].copy_from_slice(&offset.to_le_bytes());
        }
        raw[BUFFERS] = 1;
        raw[HEADER..][..6].copy_from_slice(&self.to.bytes());
        raw[HEADER + 6..].copy_from_slice(&self.from.bytes());
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(flags: u8, segmentation: u8, start: u16, offset: u16) -> [u8; START] {
        let mut raw = [0x55; START];
        (raw[0], raw[1]) = (flags, segmentation);
        raw[6..8].copy_from_slice(&start.to_le_bytes());
        raw[8..10].copy_from_slice(&offset.to_le_bytes());
        raw
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        for (flags, segmentation, start, offset, fits) in [
            (0, 0, 0xFFFF, 0xFFFF, true),
            (1, 0, 34, 16, true),
            (1, 0, 34, 64, true),
            (1, 0, 34, 65, false),
            (1, 0, 13, 16, false),
            (1, 0, 0xFFFF, 0xFFFF, false),
            (0, 1, 34, 16, false),
            (2, 0, 34, 16, false),
            (0x80, 0, 34, 16, false),
        ] {
            let raw = raw(flags, segmentation, start, offset);
            let read = Start::read(&raw, 100, true);
            assert_eq!(
                read.is_some(),
                fits,
                "{flags} {segmentation} {start} {offset}"
            );
            let without = Start::read(&raw, 100, false);
            assert_eq!(without.is_some(), fits && flags == 0);
        }
    }

    proptest! {
        #[test]
        fn what_a_receiver_sees_is_within_the_frame_and_says_nothing_else(
            bytes in proptest::array::uniform24(any::<u8>()), length in 14usize..1600, completes: bool,
        ) {
            if let Some(start) = Start::read(&bytes, length, true) {
                let written = start.written(completes);
                prop_assert_eq!(&written[HEADER..], &bytes[HEADER..]);
                prop_assert_eq!((written[1], &written[2..6], &written[10..12]), (0, &[0; 4][..], &[1, 0][..]));
                let again = Start::read(&written, length, true).unwrap();
                prop_assert_eq!(again.checksum, start.checksum.filter(|_| completes));
            }
        }
    }
}

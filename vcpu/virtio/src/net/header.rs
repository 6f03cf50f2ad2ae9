//! The header before a frame, and the frame's own: read once, checked, and written anew for the receiver.

use core::fmt;

use virtio_spec::net::{F, HdrF, HdrGso};

/// Bytes of the header before a frame, and of an Ethernet header.
pub const HEADER: usize = 12;
pub const ETHERNET: usize = 14;
/// Bytes of a frame's addresses.
pub const ADDRESSES: usize = 12;
/// Bytes that are read before the rest of a frame is copied: whole words, so that the rest begins with one.
pub const START: usize = HEADER + ADDRESSES;
/// Bytes of a VLAN tag.
pub const TAG: usize = 4;
/// Largest number of bytes behind a frame's Ethernet header, and behind that of one that others cut into segments.
pub const MTU: usize = 1500;
pub const LARGEST: usize = 0xFFFF;

/// Offsets of the header's fields.
const FLAGS: usize = 0;
const SEGMENTATION: usize = 1;
const HEADERS: usize = 2;
const SEGMENT: usize = 4;
const CHECKSUM_START: usize = 6;
const CHECKSUM_OFFSET: usize = 8;
pub const BUFFERS: usize = 10;

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

/// The protocols of a frame that others cut into segments: TCP over IP of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V4,
    V6,
}

/// The wish that others cut a frame into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// The frame's protocols.
    pub version: Version,
    /// Largest number of bytes of TCP's data in a segment.
    pub size: u16,
    /// Bytes of the headers before TCP's data. A sender's number counts for nothing.
    pub headers: u16,
}

/// The work that a driver leaves to others, or does for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums.
    pub checksums: bool,
    /// Segmentation of TCP over IPv4. It goes with checksums only.
    pub v4: bool,
    /// The same over IPv6.
    pub v6: bool,
}

impl Offloads {
    /// Returns the work that a driver leaves to others, of the features that it accepted.
    #[must_use]
    pub const fn sent(features: u64) -> Self {
        Self {
            checksums: has(features, F::CSUM),
            v4: has(features, F::HOST_TSO4),
            v6: has(features, F::HOST_TSO6),
        }
    }

    /// Returns the work that a driver does for others.
    #[must_use]
    pub const fn received(features: u64) -> Self {
        Self {
            checksums: has(features, F::GUEST_CSUM),
            v4: has(features, F::GUEST_TSO4),
            v6: has(features, F::GUEST_TSO6),
        }
    }

    /// Returns whether segmentation is included.
    #[must_use]
    pub const fn has(self, version: Version) -> bool {
        self.checksums
            && match version {
                Version::V4 => self.v4,
                Version::V6 => self.v6,
            }
    }
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
    /// The segmentation to do, if the frame is not to be sent whole. [`super::large`] checks it.
    pub segmentation: Option<Segmentation>,
}

/// Returns whether a feature is among those that a driver accepted.
pub const fn has(features: u64, feature: F) -> bool {
    features & feature.bits().to_ne() as u64 != 0
}

impl Start {
    /// Decodes the start of a frame of `bytes` bytes. Returns `None` if the header claims what no such frame has, or what
    /// was not negotiated.
    #[must_use]
    pub fn read(raw: &[u8; START], bytes: usize, offloads: Offloads) -> Option<Self> {
        let field = |at: usize| usize::from(u16::from_le_bytes([raw[at], raw[at + 1]]));
        let flags = HdrF::from_bits(raw[FLAGS])?;
        if !HdrF::NEEDS_CSUM.contains(flags) {
            return None;
        }
        let checksum = match (flags.contains(HdrF::NEEDS_CSUM), offloads.checksums) {
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
        let segmentation = match raw[SEGMENTATION] {
            0 => None,
            kind => Some(segmentation(kind, field(SEGMENT), offloads)?),
        };
        let frame = &raw[HEADER..];
        Some(Self {
            to: Mac::read(&frame[..6]),
            from: Mac::read(&frame[6..]),
            checksum,
            segmentation,
        })
    }

    /// Returns the start for a receiver, with the checksum to complete if it does that.
    #[must_use]
    pub fn written(&self, completes: bool) -> [u8; START] {
        let mut raw = [0; START];
        let mut set = |at: usize, value: u16| raw[at..at + 2].copy_from_slice(&value.to_le_bytes());
        if let Some(Checksum { start, at }) = self.checksum.filter(|_| completes) {
            set(FLAGS, HdrF::NEEDS_CSUM.bits().into());
            set(CHECKSUM_START, start as u16);
            set(CHECKSUM_OFFSET, (at - start) as u16);
        }
        if let Some(segmentation) = self.segmentation {
            set(HEADERS, segmentation.headers);
            set(SEGMENT, segmentation.size);
            raw[SEGMENTATION] = match segmentation.version {
                Version::V4 => HdrGso::Tcpv4.into(),
                Version::V6 => HdrGso::Tcpv6.into(),
            };
        }
        raw[BUFFERS] = 1;
        raw[HEADER..][..6].copy_from_slice(&self.to.bytes());
        raw[HEADER + 6..].copy_from_slice(&self.from.bytes());
        raw
    }
}

#[cold]
fn segmentation(kind: u8, size: usize, offloads: Offloads) -> Option<Segmentation> {
    let version = match HdrGso::try_from(kind) {
        Ok(HdrGso::Tcpv4) => Version::V4,
        Ok(HdrGso::Tcpv6) => Version::V6,
        _ => return None,
    };
    offloads.has(version).then_some(Segmentation {
        version,
        size: size as u16,
        headers: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Offloads = Offloads {
        checksums: true,
        v4: true,
        v6: true,
    };
    const CHECKSUMS: Offloads = Offloads {
        v4: false,
        v6: false,
        ..ALL
    };

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
            (1, 1, 34, 16, true),
            (1, 4, 34, 16, true),
            (1, 3, 34, 16, false),
            (1, 5, 34, 16, false),
            (1, 0x81, 34, 16, false),
            (2, 0, 34, 16, false),
            (0x80, 0, 34, 16, false),
        ] {
            let raw = raw(flags, segmentation, start, offset);
            let read = Start::read(&raw, 100, ALL);
            assert_eq!(
                read.is_some(),
                fits,
                "{flags} {segmentation} {start} {offset}"
            );
            let without = Start::read(&raw, 100, Offloads::default());
            assert_eq!(without.is_some(), fits && flags == 0);
            let checksums = Start::read(&raw, 100, CHECKSUMS);
            assert_eq!(checksums.is_some(), fits && segmentation == 0);
        }
    }

    proptest! {
        #[test]
        fn what_a_receiver_sees_is_within_the_frame_and_says_nothing_else(
            bytes in proptest::array::uniform24(any::<u8>()), length in 14usize..1600, completes: bool,
        ) {
            if let Some(start) = Start::read(&bytes, length, CHECKSUMS) {
                let written = start.written(completes);
                prop_assert_eq!(&written[HEADER..], &bytes[HEADER..]);
                prop_assert_eq!((written[1], &written[2..6], &written[10..12]), (0, &[0; 4][..], &[1, 0][..]));
                let again = Start::read(&written, length, CHECKSUMS).unwrap();
                prop_assert_eq!(again.checksum, start.checksum.filter(|_| completes));
            }
        }
    }
}

//! A frame that is larger than its network's, of TCP's data that others cut into segments: the check of its headers, and
//! the cut for a receiver that does not do it itself.
//!
//! The headers are read once, into private memory. The copy is checked, and is what a receiver gets: what they claim is
//! true of the frame, so that no driver trusts a number of another guest's.
//!
//! Sources: VIRTIO 1.2, section 5.1.6.2; RFC 791, 8200 and 9293.

use devices::Memory;

use super::header::{
    ADDRESSES, Checksum, ETHERNET, LARGEST, MTU, START, Segmentation, Start, TAG, Version,
};
use super::sum::Sum;
use crate::chain::Cursor;
use crate::queue::Fault;

/// Largest number of bytes of all headers: Ethernet's with a tag, and IP's and TCP's with their options; 74 of those for
/// IPv6's extensions.
pub const MOST: usize = 192;
/// Largest number of segments: enough for 64 KiB in the smallest ones that TCP uses by itself (RFC 9293: 536 bytes).
pub const SEGMENTS: usize = 128;

/// Ethernet's types.
const TYPE_TAG: u16 = 0x8100;
const TYPE_V4: u16 = 0x0800;
const TYPE_V6: u16 = 0x86DD;

/// IPv4's header: its smallest length; the fields' offsets.
mod v4 {
    pub const LENGTH: usize = 20;
    pub const TOTAL: usize = 2;
    pub const ID: usize = 4;
    pub const FRAGMENT: usize = 6;
    pub const PROTOCOL: usize = 9;
    pub const CHECKSUM: usize = 10;
    pub const ADDRESSES: core::ops::Range<usize> = 12..20;
    /// The flag *more fragments*, and the offset of a fragment.
    pub const IS_FRAGMENT: u16 = 0x3FFF;
}

/// IPv6's header: its length; the fields' offsets; the extensions that may stand before TCP.
mod v6 {
    pub const LENGTH: usize = 40;
    pub const PAYLOAD: usize = 4;
    pub const NEXT: usize = 6;
    pub const ADDRESSES: core::ops::Range<usize> = 8..40;
    /// Hop-by-hop options, routing, and options for the destination: all of them say how long they are.
    pub const EXTENSIONS: [u8; 3] = [0, 43, 60];
}

/// TCP's header: its smallest length; the fields' offsets; its number.
mod tcp {
    pub const LENGTH: usize = 20;
    pub const SEQUENCE: usize = 4;
    pub const OFFSET: usize = 12;
    pub const FLAGS: usize = 13;
    pub const CHECKSUM: usize = 16;
    pub const NUMBER: u8 = 6;
    /// The flags that belong to the last segment alone, and to the first.
    pub const FIN: u8 = 1 << 0;
    pub const PSH: u8 = 1 << 3;
    pub const CWR: u8 = 1 << 7;
}

/// The headers of a frame that others cut: private, and checked.
#[derive(Clone, Debug)]
pub struct Large {
    bytes: [u8; MOST],
    version: Version,
    /// Offsets of IP's and TCP's headers, and of TCP's data.
    ip: usize,
    tcp: usize,
    data: usize,
    /// Bytes of TCP's data, and the largest number in a segment.
    total: usize,
    size: usize,
}

/// A segment of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its place in the frame's data, and its length.
    pub offset: usize,
    pub bytes: usize,
    number: usize,
    is_last: bool,
}

impl Large {
    /// Reads the headers of a frame of `bytes` bytes, and moves `payload`, which is in this memory and begins behind the
    /// addresses, behind them. `start` was read from `raw`. Returns `None` if the headers are not what it claims.
    ///
    /// # Errors
    /// [`Fault::NotShared`].
    #[cold]
    pub fn read(
        raw: &[u8; START],
        start: &Start,
        bytes: usize,
        memory: &dyn Memory,
        payload: &mut Cursor<'_>,
    ) -> Result<Option<Self>, Fault> {
        let Start {
            to,
            segmentation: Some(wanted),
            checksum: Some(checksum),
            ..
        } = *start
        else {
            return Ok(None);
        };
        // TCP has no groups. To cut a frame for every port of a network is too much for a part of the work.
        if to.is_group() {
            return Ok(None);
        }
        let mut headers = [0; MOST];
        headers[..ADDRESSES].copy_from_slice(&raw[START - ADDRESSES..]);
        let mut from = payload.clone();
        let read = from.read(memory, &mut headers[ADDRESSES..])?;
        let large = Self::check(headers, ADDRESSES + read, bytes, (wanted, checksum));
        if let Some(large) = &large {
            payload.skip((large.data - ADDRESSES) as u64);
        }
        Ok(large)
    }

    /// Checks headers, of which there are `known` bytes.
    fn check(
        headers: [u8; MOST],
        known: usize,
        bytes: usize,
        (wanted, checksum): (Segmentation, Checksum),
    ) -> Option<Self> {
        let known = &headers[..known];
        let (kind, ip) = match word(known, ADDRESSES)? {
            TYPE_TAG => (word(known, ETHERNET + 2)?, ETHERNET + TAG),
            kind => (kind, ETHERNET),
        };
        let packet = bytes.checked_sub(ip)?;
        let tcp = match wanted.version {
            Version::V4 if kind == TYPE_V4 => tcp_in_v4(known, ip, packet)?,
            Version::V6 if kind == TYPE_V6 => tcp_in_v6(known, ip, packet)?,
            _ => return None,
        };
        let length = usize::from(*known.get(tcp + tcp::OFFSET)? >> 4) * 4;
        let data = tcp + length;
        let place = Checksum {
            start: tcp,
            at: tcp + tcp::CHECKSUM,
        };
        let (total, size) = (bytes.checked_sub(data)?, usize::from(wanted.size));
        let is_whole = length >= tcp::LENGTH && data <= known.len() && checksum == place;
        let is_cut = total > 0 && size > 0 && total.div_ceil(size) <= SEGMENTS;
        let fits = packet <= LARGEST && data - ip + size <= MTU;
        (is_whole && is_cut && fits).then_some(Self {
            bytes: headers,
            version: wanted.version,
            ip,
            tcp,
            data,
            total,
            size,
        })
    }

    /// Returns the segmentation that a receiver does itself.
    #[must_use]
    pub const fn segmentation(&self) -> Segmentation {
        Segmentation {
            version: self.version,
            size: self.size as u16,
            headers: self.data as u16,
        }
    }

    /// Returns the place of the checksum, in the frame and in each segment.
    #[must_use]
    pub const fn checksum(&self) -> Checksum {
        Checksum {
            start: self.tcp,
            at: self.tcp + tcp::CHECKSUM,
        }
    }

    /// Returns the headers behind the addresses.
    #[must_use]
    pub fn behind_addresses(&self) -> &[u8] {
        &self.bytes[ADDRESSES..self.data]
    }

    /// Returns the headers, from the Ethernet header on.
    #[must_use]
    pub fn headers(&self) -> &[u8] {
        &self.bytes[..self.data]
    }

    /// Returns the segments.
    pub fn segments(&self) -> impl Iterator<Item = Segment> {
        let (total, size) = (self.total, self.size);
        (0..total.div_ceil(size)).map(move |number| {
            let offset = number * size;
            let bytes = size.min(total - offset);
            Segment {
                offset,
                bytes,
                number,
                is_last: offset + bytes == total,
            }
        })
    }

    /// Turns `headers`, which are a copy of [`Self::headers`], into those of a segment. TCP's checksum is the sum of the
    /// pseudo-header, to be completed.
    pub fn describe(&self, segment: Segment, headers: &mut [u8]) {
        let Self { ip, tcp, .. } = *self;
        let rest = (self.data - tcp + segment.bytes) as u16;
        let before = &self.bytes;
        let mut set =
            |at: usize, value: u16| headers[at..at + 2].copy_from_slice(&value.to_be_bytes());
        let addresses = match self.version {
            Version::V4 => {
                let id = field(before, ip + v4::ID).wrapping_add(segment.number as u16);
                set(ip + v4::TOTAL, (tcp - ip) as u16 + rest);
                set(ip + v4::ID, id);
                set(ip + v4::CHECKSUM, 0);
                let sum = Sum::default().with(&headers[ip..tcp]).folded();
                headers[ip + v4::CHECKSUM..][..2].copy_from_slice(&(!sum).to_be_bytes());
                v4::ADDRESSES
            }
            Version::V6 => {
                set(ip + v6::PAYLOAD, (tcp - ip - v6::LENGTH) as u16 + rest);
                v6::ADDRESSES
            }
        };
        let at = tcp + tcp::SEQUENCE;
        let sequence =
            u32::from_be_bytes([before[at], before[at + 1], before[at + 2], before[at + 3]]);
        let sequence = sequence.wrapping_add(segment.offset as u32);
        headers[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
        let mut flags = before[tcp + tcp::FLAGS];
        if !segment.is_last {
            flags &= !(tcp::FIN | tcp::PSH);
        }
        if segment.number > 0 {
            flags &= !tcp::CWR;
        }
        headers[tcp + tcp::FLAGS] = flags;
        let pseudo = Sum::default().with(&before[ip..][addresses]);
        let pseudo = pseudo.with(&[0, tcp::NUMBER]).with(&rest.to_be_bytes());
        headers[tcp + tcp::CHECKSUM..][..2].copy_from_slice(&pseudo.folded().to_be_bytes());
    }
}

/// Returns the place of TCP's header behind IPv4's, which says that the packet has `bytes` bytes.
fn tcp_in_v4(known: &[u8], ip: usize, bytes: usize) -> Option<usize> {
    let length = usize::from(known.get(ip)? & 0xF) * 4;
    let is_v4 = known[ip] >> 4 == 4 && length >= v4::LENGTH;
    let is_whole = word(known, ip + v4::FRAGMENT)? & v4::IS_FRAGMENT == 0;
    let is_tcp = *known.get(ip + v4::PROTOCOL)? == tcp::NUMBER;
    let is_all = usize::from(word(known, ip + v4::TOTAL)?) == bytes;
    (is_v4 && is_whole && is_tcp && is_all).then_some(ip + length)
}

/// Returns the place of TCP's header behind IPv6's and its extensions. See [`tcp_in_v4`].
fn tcp_in_v6(known: &[u8], ip: usize, bytes: usize) -> Option<usize> {
    let is_v6 = known.get(ip)? >> 4 == 6;
    let is_all = usize::from(word(known, ip + v6::PAYLOAD)?) + v6::LENGTH == bytes;
    if !is_v6 || !is_all {
        return None;
    }
    let (mut next, mut at) = (*known.get(ip + v6::NEXT)?, ip + v6::LENGTH);
    while v6::EXTENSIONS.contains(&next) {
        next = *known.get(at)?;
        at += 8 + 8 * usize::from(*known.get(at + 1)?);
    }
    (next == tcp::NUMBER).then_some(at)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([word[0], word[1]]))
}

fn field(bytes: &[u8; MOST], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

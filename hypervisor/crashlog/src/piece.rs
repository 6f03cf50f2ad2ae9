//! The pieces of a report, as they lie in a store: a header and a part of the text.

/// "SEAMLAST", in memory order.
const MAGIC: u64 = u64::from_le_bytes(*b"SEAMLAST");
/// The version of the layout.
const VERSION: u16 = 1;
/// Size of a piece's header in bytes.
pub const HEADER: usize = 48;
/// Maximum number of pieces of one report.
pub const MAX_PIECES: u16 = 64;
/// The place of the checksum in the header.
const SUM: core::ops::Range<usize> = 44..48;

/// The facts about a report that each of its pieces repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Number of crashes since the operator dropped the last report, this one included.
    pub crashes: u32,
    /// The time of the crash in seconds since 1970-01-01 00:00 UTC; 0 if it was not known.
    pub unix: u64,
    /// A number that two reports hardly share.
    pub id: u64,
    /// Size of the whole text in bytes.
    pub total: u32,
}

/// One piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The report that it belongs to.
    pub of: Identity,
    /// The place of its part in the text.
    pub offset: u32,
    /// Its part of the text.
    pub part: &'a [u8],
}

impl<'a> Piece<'a> {
    /// Encodes the piece into the start of `out`. Returns its size, or `None` if it does not fit.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let size = HEADER + self.part.len();
        let out = out.get_mut(..size)?;
        out[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].fill(0);
        out[12..16].copy_from_slice(&self.of.crashes.to_le_bytes());
        out[16..24].copy_from_slice(&self.of.id.to_le_bytes());
        out[24..32].copy_from_slice(&self.of.unix.to_le_bytes());
        out[32..36].copy_from_slice(&self.of.total.to_le_bytes());
        out[36..40].copy_from_slice(&self.offset.to_le_bytes());
        out[40..44].copy_from_slice(&u32::try_from(self.part.len()).ok()?.to_le_bytes());
        out[SUM].fill(0);
        out[HEADER..].copy_from_slice(self.part);
        let sum = checksum(out);
        out[SUM].copy_from_slice(&sum.to_le_bytes());
        Some(size)
    }

    /// Decodes the piece at the start of `bytes`, which may be longer. Returns `None` if there is none, or it is
    /// damaged.
    #[must_use]
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        if long(header, 0)? != MAGIC || header[8..10] != VERSION.to_le_bytes() {
            return None;
        }
        let (total, offset, len) = (word(header, 32)?, word(header, 36)?, word(header, 40)?);
        let part = bytes.get(HEADER..)?.get(..len as usize)?;
        let mut plain = [0; HEADER];
        plain.copy_from_slice(header);
        plain[SUM].fill(0);
        let sum = finish(feed(feed(START, &plain), part));
        let fits = len > 0 && offset.checked_add(len)? <= total;
        (sum == word(header, SUM.start)? && fits).then_some(Self {
            of: Identity {
                crashes: word(header, 12)?,
                id: long(header, 16)?,
                unix: long(header, 24)?,
                total,
            },
            offset,
            part,
        })
    }
}

/// Cuts a text into pieces of at most `size` bytes each, header included. A text that needs more than [`MAX_PIECES`] is
/// cut off; its pieces say how long it was.
pub fn pieces(of: Identity, text: &[u8], size: usize) -> impl Iterator<Item = Piece<'_>> {
    let step = size.saturating_sub(HEADER).max(1);
    let parts = text.chunks(step).take(MAX_PIECES.into()).enumerate();
    parts.map(move |(index, part)| Piece {
        of,
        offset: (index * step) as u32,
        part,
    })
}

/// CRC-32 as in IEEE 802.3.
fn checksum(bytes: &[u8]) -> u32 {
    finish(feed(START, bytes))
}

const START: u32 = u32::MAX;

fn feed(sum: u32, bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xEDB8_8320;
    bytes.iter().fold(sum, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            sum >> 1 ^ POLYNOMIAL & (sum & 1).wrapping_neg()
        })
    })
}

fn finish(sum: u32) -> u32 {
    !sum
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_is_crc_32() {
        assert_eq!(super::checksum(b"123456789"), 0xCBF4_3926);
    }
}

//! A piece as a Common Platform Error Record, which is what ERST stores.
//!
//! Source: UEFI Specification 2.10, appendix N.2 (record header, section descriptor).

/// Size in bytes of a record around its piece: its header and the descriptor of its only section.
pub const OVERHEAD: usize = HEADER + DESCRIPTOR;
const HEADER: usize = 128;
const DESCRIPTOR: usize = 72;

const SIGNATURE: &[u8; 4] = b"CPER";
const REVISION: u16 = 0x101;
const FATAL: u32 = 1;
/// The place of the record's identifier.
const ID: usize = 96;

/// The creator of the records, and the type of their section: this program's own, a random number.
pub const CREATOR: [u8; 16] = [
    0x6E, 0x2C, 0x91, 0x5B, 0x0D, 0x4A, 0xE7, 0x4F, 0xA3, 0x58, 0xC4, 0x1B, 0x77, 0x9E, 0x02, 0xD6,
];
/// The notification type of records that the operating system makes when it boots (BOOT): none of the hardware's.
const NOTIFICATION: [u8; 16] = [
    0x66, 0x90, 0xE6, 0x3D, 0x54, 0x35, 0x30, 0x48, 0xBD, 0x4A, 0x91, 0x51, 0x07, 0x26, 0x2F, 0x19,
];

/// Encodes a record with identifier `id` into the start of `out`, around the piece that `piece` writes there. Returns
/// the record's size, or `None` if it does not fit.
pub fn encode(
    id: u64,
    out: &mut [u8],
    piece: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> Option<usize> {
    let (head, body) = out.split_at_mut_checked(OVERHEAD)?;
    let bytes = piece(body)?;
    let size = OVERHEAD + bytes;
    head.fill(0);
    head[..4].copy_from_slice(SIGNATURE);
    head[4..6].copy_from_slice(&REVISION.to_le_bytes());
    head[6..10].fill(0xFF);
    head[10..12].copy_from_slice(&1u16.to_le_bytes());
    head[12..16].copy_from_slice(&FATAL.to_le_bytes());
    head[20..24].copy_from_slice(&u32::try_from(size).ok()?.to_le_bytes());
    head[64..80].copy_from_slice(&CREATOR);
    head[80..96].copy_from_slice(&NOTIFICATION);
    head[ID..ID + 8].copy_from_slice(&id.to_le_bytes());
    let section = &mut head[HEADER..];
    section[..4].copy_from_slice(&(OVERHEAD as u32).to_le_bytes());
    section[4..8].copy_from_slice(&u32::try_from(bytes).ok()?.to_le_bytes());
    section[8..10].copy_from_slice(&REVISION.to_le_bytes());
    section[16..32].copy_from_slice(&CREATOR);
    section[48..52].copy_from_slice(&FATAL.to_le_bytes());
    Some(size)
}

/// Returns the piece in a record with identifier `id`, or `None` if the record is not this program's.
#[must_use]
pub fn decode(id: u64, record: &[u8]) -> Option<&[u8]> {
    let is_ours = record.get(..4)? == SIGNATURE
        && record.get(64..80)? == CREATOR
        && record.get(ID..ID + 8)? == id.to_le_bytes();
    let size = u32::from_le_bytes(record.get(20..24)?.try_into().ok()?) as usize;
    is_ours.then(|| record.get(OVERHEAD..size)).flatten()
}

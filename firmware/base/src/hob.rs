//! The hand-off blocks (HOBs) with which the host describes the TD's memory.
//!
//! Source: Platform Initialization Specification 1.7, volume 3, "HOB code definitions"; Intel TDX Virtual Firmware
//! Design Guide, section 4.2.

use core::ops::Range;

/// EFI_HOB_TYPE_HANDOFF, the first block of a list.
pub const HANDOFF: u16 = 0x0001;
/// EFI_HOB_TYPE_RESOURCE_DESCRIPTOR.
pub const RESOURCE_DESCRIPTOR: u16 = 0x0003;
/// EFI_HOB_TYPE_GUID_EXTENSION.
pub const GUID_EXTENSION: u16 = 0x0004;
/// EFI_HOB_TYPE_END_OF_HOB_LIST.
pub const END_OF_HOB_LIST: u16 = 0xFFFF;
/// Size in bytes of a block's header.
pub const HEADER_BYTES: usize = 8;
/// Size in bytes of a resource descriptor, header included.
pub const RESOURCE_DESCRIPTOR_BYTES: usize = 0x30;
/// EFI_RESOURCE_SYSTEM_MEMORY.
pub const SYSTEM_MEMORY: u32 = 0;
/// EFI_RESOURCE_MEMORY_UNACCEPTED.
pub const MEMORY_UNACCEPTED: u32 = 7;

/// The kind of a range of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The memory is present when the TD starts.
    Present,
    /// The memory must be accepted before it is used.
    Unaccepted,
}

/// The defect of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The list does not begin with the hand-off block.
    NoHandoff,
    /// The block at this offset is shorter than its type demands, or extends beyond the list.
    Block(usize),
}

/// Returns the memory that `list` describes, in its order, up to `N` ranges.
///
/// # Errors
/// [`Malformed`].
pub fn memory<const N: usize>(
    list: &[u8],
) -> Result<arrayvec::ArrayVec<(Range<u64>, Kind), N>, Malformed> {
    let mut ranges = arrayvec::ArrayVec::new();
    for block in blocks(list) {
        if let (RESOURCE_DESCRIPTOR, block) = block?
            && let Some(range) = range(block)
        {
            // Ranges beyond `N` are ignored.
            let _ = ranges.try_push(range);
        }
    }
    Ok(ranges)
}

/// Returns the content of the first block named `guid`, including padding.
///
/// # Errors
/// [`Malformed`].
pub fn named<'a>(list: &'a [u8], guid: &[u8; 16]) -> Result<Option<&'a [u8]>, Malformed> {
    for block in blocks(list) {
        if let (GUID_EXTENSION, block) = block?
            && let Some(data) = block[HEADER_BYTES..].strip_prefix(guid)
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Iterates over the blocks of `list`, header included, with their type. The end block is left out.
fn blocks(list: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Malformed>> {
    let mut at = Some(0);
    core::iter::from_fn(move || {
        let here = at?;
        let next = block_at(list, here);
        at = match next {
            Ok(Some((_, block))) => Some(here + block.len()),
            _ => None,
        };
        next.transpose()
    })
}

/// Returns the block at an offset, or `None` for the end block.
fn block_at(list: &[u8], at: usize) -> Result<Option<(u16, &[u8])>, Malformed> {
    let malformed = Malformed::Block(at);
    let block = list.get(at..).ok_or(malformed)?;
    let [t0, t1, l0, l1, ..] = *block else {
        return Err(malformed);
    };
    let kind = u16::from_le_bytes([t0, t1]);
    let length = usize::from(u16::from_le_bytes([l0, l1]));
    if at == 0 && kind != HANDOFF {
        return Err(Malformed::NoHandoff);
    }
    if kind == END_OF_HOB_LIST {
        return Ok(None);
    }
    let least = match kind {
        RESOURCE_DESCRIPTOR => RESOURCE_DESCRIPTOR_BYTES,
        _ => HEADER_BYTES,
    };
    match block.get(..length) {
        Some(block) if length >= least => Ok(Some((kind, block))),
        _ => Err(malformed),
    }
}

/// Returns the range of a resource descriptor if it describes memory.
fn range(block: &[u8]) -> Option<(Range<u64>, Kind)> {
    let long = |at: usize| Some(u64::from_le_bytes(*block.get(at..)?.first_chunk()?));
    let kind = match long(24)? as u32 {
        SYSTEM_MEMORY => Kind::Present,
        MEMORY_UNACCEPTED => Kind::Unaccepted,
        _ => return None,
    };
    let (start, length) = (long(32)?, long(40)?);
    Some((start..start.checked_add(length)?, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(kind: u16, length: u16, rest: &[u64]) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend([0; 4]);
        for word in rest {
            bytes.extend(word.to_le_bytes());
        }
        bytes.resize(bytes.len().max(usize::from(length)), 0);
        bytes
    }

    fn handoff() -> Vec<u8> {
        block(HANDOFF, 0x38, &[9])
    }

    fn resource(kind: u64, start: u64, length: u64) -> Vec<u8> {
        block(
            RESOURCE_DESCRIPTOR,
            0x30,
            &[0, 0, kind | 7 << 32, start, length],
        )
    }

    fn end() -> Vec<u8> {
        block(END_OF_HOB_LIST, 8, &[])
    }

    #[test]
    fn memory_is_told_with_its_kind_and_in_order() {
        let list = [
            handoff(),
            resource(7, 0, 0x80_0000),
            resource(1, 0xfec0_0000, 0x1000),
            resource(0, 0x80_0000, 0x1000),
            end(),
        ]
        .concat();
        let ranges = memory::<4>(&list).unwrap();
        assert_eq!(
            ranges.as_slice(),
            [
                (0..0x80_0000, Kind::Unaccepted),
                (0x80_0000..0x80_1000, Kind::Present)
            ]
        );
    }

    #[test]
    fn a_named_block_is_found_behind_others() {
        let named_block = |name: u64| block(GUID_EXTENSION, 0x20, &[name, 0, name]);
        let list = [
            handoff(),
            named_block(1),
            resource(7, 0, 0x1000),
            named_block(2),
            end(),
        ]
        .concat();
        let guid = |name: u64| u128::from(name).to_le_bytes();
        assert_eq!(named(&list, &guid(2)), Ok(Some(&2u64.to_le_bytes()[..])));
        assert_eq!(named(&list, &guid(3)), Ok(None));
        let short = [handoff(), block(GUID_EXTENSION, 8, &[]), end()].concat();
        assert_eq!(named(&short, &guid(1)), Ok(None));
    }

    #[test]
    fn a_broken_list_is_refused() {
        assert_eq!(memory::<4>(&end()), Err(Malformed::NoHandoff));
        assert_eq!(memory::<4>(&handoff()), Err(Malformed::Block(0x38)));
        let short = [handoff(), block(RESOURCE_DESCRIPTOR, 0x28, &[]), end()].concat();
        assert_eq!(memory::<4>(&short), Err(Malformed::Block(0x38)));
        let endless = [handoff(), block(0x1234, 0, &[])].concat();
        assert_eq!(memory::<4>(&endless), Err(Malformed::Block(0x38)));
    }
}

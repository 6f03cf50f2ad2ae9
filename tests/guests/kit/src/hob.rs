//! The hand-off blocks by which the host tells what memory there is.
//!
//! Source: Platform Initialization Specification 1.7, volume 3, "HOB code definitions"; Intel TDX Virtual Firmware Design
//! Guide, section 4.2.

use core::ops::Range;

const HANDOFF: u16 = 0x0001;
const RESOURCE_DESCRIPTOR: u16 = 0x0003;
const END_OF_HOB_LIST: u16 = 0xFFFF;
const HEADER_BYTES: usize = 8;
const RESOURCE_DESCRIPTOR_BYTES: usize = 0x30;

/// What a range of memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was there when the TD started.
    Present,
    /// It has to be accepted before it is used.
    Unaccepted,
}

/// What is wrong with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It does not begin with the hand-off block.
    NoHandoff,
    /// A block is shorter than its type demands, or leads out of the list; at this offset.
    Block(usize),
}

/// The memory that `list` describes, in its order, up to `N` ranges.
///
/// # Errors
/// [`Malformed`].
pub fn memory<const N: usize>(
    list: &[u8],
) -> Result<arrayvec::ArrayVec<(Range<u64>, Kind), N>, Malformed> {
    let mut ranges = arrayvec::ArrayVec::new();
    let mut at = 0;
    loop {
        let block = list.get(at..).ok_or(Malformed::Block(at))?;
        let [t0, t1, l0, l1, ..] = *block else {
            return Err(Malformed::Block(at));
        };
        let kind = u16::from_le_bytes([t0, t1]);
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        if at == 0 && kind != HANDOFF {
            return Err(Malformed::NoHandoff);
        }
        if kind == END_OF_HOB_LIST {
            return Ok(ranges);
        }
        let block = block.get(..length).ok_or(Malformed::Block(at))?;
        if length < HEADER_BYTES
            || kind == RESOURCE_DESCRIPTOR && length < RESOURCE_DESCRIPTOR_BYTES
        {
            return Err(Malformed::Block(at));
        }
        if let Some(range) = (kind == RESOURCE_DESCRIPTOR)
            .then(|| range(block))
            .flatten()
        {
            // More ranges than anybody asked for are left alone.
            let _ = ranges.try_push(range);
        }
        at += length;
    }
}

/// The memory of a resource descriptor, if it is memory.
fn range(block: &[u8]) -> Option<(Range<u64>, Kind)> {
    let long = |at: usize| Some(u64::from_le_bytes(*block.get(at..)?.first_chunk()?));
    let kind = match long(24)? as u32 {
        0 => Kind::Present,
        7 => Kind::Unaccepted,
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
    fn a_broken_list_is_refused() {
        assert_eq!(memory::<4>(&end()), Err(Malformed::NoHandoff));
        assert_eq!(memory::<4>(&handoff()), Err(Malformed::Block(0x38)));
        let short = [handoff(), block(RESOURCE_DESCRIPTOR, 0x28, &[]), end()].concat();
        assert_eq!(memory::<4>(&short), Err(Malformed::Block(0x38)));
        let endless = [handoff(), block(0x1234, 0, &[])].concat();
        assert_eq!(memory::<4>(&endless), Err(Malformed::Block(0x38)));
    }
}

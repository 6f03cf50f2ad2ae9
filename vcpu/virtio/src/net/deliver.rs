//! The copy of a frame into a receiver's buffers.

use alloc::boxed::Box;
use core::fmt;

use devices::{Memory, Other, Unshared};

use super::header::{ADDRESSES, Checksum, HEADER, START, Start};
use crate::access::{CopyError, copy};
use crate::chain::{Chain, Cursor};
use crate::queue::{Fault, Queue};

/// Bytes that are summed up at a time.
const AT_ONCE: usize = 256;

/// The receiving side of a port while its driver is ready.
pub struct Receiver {
    /// The guest.
    pub guest: Other,
    /// Its queue.
    pub queue: Queue,
    /// Room for a chain.
    pub chain: Box<Chain>,
    /// It completes checksums.
    pub has_checksums: bool,
    /// The rule that its driver broke.
    pub fault: Option<Fault>,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("queue", &self.queue)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

/// A frame on its way.
pub struct Frame<'f> {
    /// The sender's memory.
    pub memory: &'f dyn Memory,
    /// Its start, which was read and checked.
    pub start: Start,
    /// The rest, in the sender's memory.
    pub payload: Cursor<'f>,
    /// Length of the frame in bytes.
    pub bytes: usize,
}

/// Reason why a frame was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The receiver has no buffer for it, or its memory is being converted.
    Full,
    /// The receiver's driver broke a rule.
    Receiver(Fault),
    /// The sender's driver broke a rule.
    Sender(Fault),
}

/// Copies a frame into the receiver's next buffers.
pub fn put(receiver: &mut Receiver, frame: &Frame<'_>) -> Result<(), Lost> {
    let Receiver {
        guest,
        queue,
        chain,
        has_checksums,
        ..
    } = receiver;
    let mut result = Err(Lost::Full);
    frame.memory.with_other(guest, &mut |memory| {
        result = put_into(queue, chain, memory, (*has_checksums, frame));
    });
    result
}

fn put_into(
    queue: &mut Queue,
    chain: &mut Chain,
    memory: &dyn Memory,
    (completes, frame): (bool, &Frame<'_>),
) -> Result<(), Lost> {
    let at_receiver = |fault: Fault| Lost::Receiver(fault);
    if !queue.take(memory, chain).map_err(at_receiver)? {
        return Err(Lost::Full);
    }
    let bytes = HEADER + frame.bytes;
    if chain.writable().left() < bytes as u64 {
        queue.put_back();
        return Err(Lost::Full);
    }
    let filled = fill(&mut chain.writable(), memory, completes, frame);
    let filled = filled.and_then(|()| match frame.start.checksum.filter(|_| !completes) {
        Some(checksum) => complete(chain, memory, checksum, frame),
        None => Ok(()),
    });
    if let Err(lost) = filled {
        queue.put_back();
        return Err(lost);
    }
    queue
        .complete(memory, chain.head, bytes as u32)
        .map_err(at_receiver)
}

/// Writes header and frame.
fn fill(
    into: &mut Cursor<'_>,
    memory: &dyn Memory,
    completes: bool,
    frame: &Frame<'_>,
) -> Result<(), Lost> {
    let start: [u8; START] = frame.start.written(completes);
    into.write(memory, &start).map_err(of_receiver)?;
    let mut from = frame.payload.clone();
    let mut left = frame.bytes - ADDRESSES;
    while left > 0 {
        let Some((source_gpa, most)) = from.next_part(left) else {
            break;
        };
        let Some((gpa, bytes)) = into.next_part(most) else {
            break;
        };
        from.put_back(most - bytes);
        copy(frame.memory, source_gpa, (memory, gpa), bytes).map_err(|error| match error {
            CopyError::From(error) => Lost::Sender(error.into()),
            CopyError::Into(error) => of_receiver(error),
        })?;
        left -= bytes;
    }
    Ok(())
}

fn of_receiver(error: Unshared) -> Lost {
    Lost::Receiver(error.into())
}

/// Completes the checksum for a receiver that does not do it itself.
///
/// Source: RFC 1071.
fn complete(
    chain: &Chain,
    memory: &dyn Memory,
    checksum: Checksum,
    frame: &Frame<'_>,
) -> Result<(), Lost> {
    let mut from = frame.payload.clone();
    from.skip((checksum.start - ADDRESSES) as u64);
    let mut left = frame.bytes - checksum.start;
    let mut sum = 0;
    let mut bytes = [0; AT_ONCE];
    while left > 0 {
        let part = left.min(AT_ONCE);
        let count = from.read(frame.memory, &mut bytes[..part]);
        let count = count.map_err(|error| Lost::Sender(error.into()))?;
        if count == 0 {
            break;
        }
        bytes[count..].fill(0);
        let words = bytes.as_chunks::<2>().0.iter();
        sum += words
            .map(|word| u64::from(u16::from_be_bytes(*word)))
            .sum::<u64>();
        left -= count;
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    // Zero means that there is none.
    let value = match !(sum as u16) {
        0 => 0xFFFF,
        value => value,
    };
    let mut place = chain.writable();
    place.skip((HEADER + checksum.at) as u64);
    let written = place.write(memory, &value.to_be_bytes());
    written.map(drop).map_err(of_receiver)
}

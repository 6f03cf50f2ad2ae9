//! The buffers of a receiver, and what can go wrong with a copy into them.

use devices::{Memory, Unshared};

use super::frame::Frame;
use super::header::{ADDRESSES, Checksum};
use super::large::SEGMENTS;
use super::receiver::Takes;
use super::sum::Sum;
use crate::access::{CopyError, copy};
use crate::chain::Chain;
use crate::queue::{Fault, Queue};

/// Largest number of descriptors that a receiver's buffers for a frame may have: four for each segment. Beyond that the
/// receiver would make the sender work for nothing.
pub const DESCRIPTORS: usize = 4 * SEGMENTS;
/// Bytes that are summed up at a time.
const AT_ONCE: usize = 256;

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

/// A receiver's queue, with its memory.
pub struct Buffers<'r> {
    pub queue: &'r mut Queue,
    pub chain: &'r mut Chain,
    pub memory: &'r dyn Memory,
    pub takes: Takes,
    /// Number of descriptors that may still be read.
    pub left: usize,
}

impl Buffers<'_> {
    /// Takes the next chain.
    pub fn take(&mut self, frame: &Frame<'_>) -> Result<(), Lost> {
        match self.queue.take(self.memory, self.chain) {
            Ok(true) => {}
            Ok(false) => return Err(Lost::Full),
            Err(fault) => return Err(Lost::Receiver(fault)),
        }
        let count = self.chain.segments.len();
        frame.read.set(frame.read.get() + count);
        self.left = self.left.checked_sub(count).ok_or(Lost::Full)?;
        Ok(())
    }
}

/// Copies bytes from the sender to the receiver.
pub fn across(
    from: &dyn Memory,
    source: u64,
    into: (&dyn Memory, u64),
    bytes: usize,
) -> Result<(), Lost> {
    copy(from, source, into, bytes).map_err(|error| match error {
        CopyError::From(error) => Lost::Sender(error.into()),
        CopyError::Into(error) => of_receiver(error),
    })
}

pub fn of_receiver(error: Unshared) -> Lost {
    Lost::Receiver(error.into())
}

/// Returns the checksum for a receiver that does not complete it itself.
pub fn complete(checksum: Checksum, frame: &Frame<'_>) -> Result<u16, Lost> {
    let private = frame.headers.get(checksum.start - ADDRESSES..);
    let mut sum = Sum::default().with(private.unwrap_or_default());
    let behind = (checksum.start - ADDRESSES).saturating_sub(frame.headers.len());
    let mut from = frame.payload.clone();
    from.skip(behind as u64);
    let mut left = frame.rest() - behind;
    let mut bytes = [0; AT_ONCE];
    while left > 0 {
        let part = left.min(AT_ONCE);
        let count = from.read(frame.memory, &mut bytes[..part]);
        let count = count.map_err(|error| Lost::Sender(error.into()))?;
        if count == 0 {
            break;
        }
        sum = sum.with(&bytes[..count]);
        left -= count;
    }
    Ok(sum.checksum())
}

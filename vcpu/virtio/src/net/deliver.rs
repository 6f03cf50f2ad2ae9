//! The copy of a frame into a receiver's buffers.

use alloc::boxed::Box;
use core::cell::{Cell, OnceCell};
use core::fmt;

use devices::{Memory, Other, Unshared};

use super::flow;
use super::header::{ADDRESSES, Checksum, HEADER, Offloads, START, Start};
use super::large::{Large, MOST, SEGMENTS};
use super::port::{Count, Port};
use super::spread::spread;
use super::sum::Sum;
use crate::access::{CopyError, copy};
use crate::chain::{Chain, Cursor};
use crate::queue::{Fault, Queue};

/// Largest number of descriptors that a receiver's buffers for a frame may have: four for each segment. Beyond that the
/// receiver would make the sender work for nothing.
const DESCRIPTORS: usize = 4 * SEGMENTS;
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
    /// The work that its driver does.
    pub takes: Takes,
    /// The rule that its driver broke.
    pub fault: Option<Fault>,
}

/// The kinds of frames that a driver takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Takes {
    /// Those that leave work to it.
    pub offloads: Offloads,
    /// Those that are spread over several chains.
    pub spread: bool,
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
#[derive(Clone)]
pub struct Frame<'f> {
    /// The sender's memory.
    pub memory: &'f dyn Memory,
    /// Its start, which was read and checked.
    pub start: Start,
    /// Headers behind the start, which were read and checked: those of a frame that others cut.
    pub headers: &'f [u8],
    /// The rest, in the sender's memory.
    pub payload: Cursor<'f>,
    /// Length of the frame in bytes.
    pub bytes: usize,
    /// The frame is to be cut.
    pub large: Option<&'f Large>,
    /// Number of the receivers' descriptors that were read for it.
    pub read: &'f Cell<usize>,
    /// Its flow, once someone wants to know it.
    pub flow: &'f OnceCell<u8>,
}

impl Frame<'_> {
    /// Returns the number of bytes in the sender's memory.
    pub const fn rest(&self) -> usize {
        self.bytes - ADDRESSES - self.headers.len()
    }

    /// Returns its flow.
    pub fn flow(&self) -> u8 {
        *self.flow.get_or_init(|| flow::of(self))
    }
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

/// Copies a frame into the next buffers of a port's receiver.
pub fn put(port: &Port, receiver: &mut Receiver, frame: &Frame<'_>) -> Result<(), Lost> {
    let Receiver {
        guest,
        queue,
        chain,
        takes,
        ..
    } = receiver;
    let mut result = Err(Lost::Full);
    frame.memory.with_other(guest, &mut |memory| {
        let mut into = Into {
            port,
            queue,
            chain,
            memory,
            takes: *takes,
            left: DESCRIPTORS,
        };
        result = match frame.large {
            Some(large) if !takes.offloads.has(large.segmentation().version) => {
                into.put_cut(frame, large)
            }
            _ => into.put(frame),
        };
    });
    result
}

/// A receiver's queue, with its memory.
pub struct Into<'r> {
    port: &'r Port,
    pub queue: &'r mut Queue,
    pub chain: &'r mut Chain,
    pub memory: &'r dyn Memory,
    pub takes: Takes,
    /// Number of descriptors that may still be read.
    left: usize,
}

impl Into<'_> {
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

    fn put(&mut self, frame: &Frame<'_>) -> Result<(), Lost> {
        let mark = self.queue.mark();
        let result = self.try_put(frame);
        match result {
            Ok(()) => {
                self.port.add(Count::Received, 1);
                self.port.add(Count::ReceivedBytes, frame.bytes as u64);
            }
            Err(_) => self.queue.go_back(mark),
        }
        result
    }

    fn try_put(&mut self, frame: &Frame<'_>) -> Result<(), Lost> {
        self.take(frame)?;
        let completes = self.takes.offloads.checksums;
        let checksum = frame.start.checksum.filter(|_| !completes);
        let bytes = HEADER + frame.bytes;
        let room = self.chain.writable();
        if room.left() < bytes as u64 {
            return match self.takes.spread {
                true => spread(self, frame, checksum),
                false => Err(Lost::Full),
            };
        }
        self.fill(room, frame)?;
        if let Some(checksum) = checksum {
            let value = complete(checksum, frame)?;
            let mut place = self.chain.writable();
            place.skip((HEADER + checksum.at) as u64);
            place
                .write(self.memory, &value.to_be_bytes())
                .map_err(of_receiver)?;
        }
        let done = self
            .queue
            .complete(self.memory, self.chain.head, bytes as u32);
        done.map_err(Lost::Receiver)
    }

    /// Writes header and frame into one chain.
    fn fill(&self, mut into: Cursor<'_>, frame: &Frame<'_>) -> Result<(), Lost> {
        let start: [u8; START] = frame.start.written(self.takes.offloads.checksums);
        into.write(self.memory, &start).map_err(of_receiver)?;
        if !frame.headers.is_empty() {
            into.write(self.memory, frame.headers)
                .map_err(of_receiver)?;
        }
        let mut from = frame.payload.clone();
        let mut left = frame.rest();
        while left > 0 {
            let Some((source_gpa, most)) = from.next_part(left) else {
                break;
            };
            let Some((gpa, bytes)) = into.next_part(most) else {
                break;
            };
            from.put_back(most - bytes);
            across(frame.memory, source_gpa, (self.memory, gpa), bytes)?;
            left -= bytes;
        }
        Ok(())
    }

    /// Cuts a frame for a receiver that does not do it itself. The first segment without a buffer is the last: those behind
    /// it would come after a gap.
    #[cold]
    fn put_cut(&mut self, frame: &Frame<'_>, large: &Large) -> Result<(), Lost> {
        let mut room = [0; MOST];
        let headers = &mut room[..large.headers().len()];
        headers.copy_from_slice(large.headers());
        let mut payload = frame.payload.clone();
        for segment in large.segments() {
            large.describe(segment, headers);
            let part = Frame {
                start: Start {
                    segmentation: None,
                    ..frame.start
                },
                headers: &headers[ADDRESSES..],
                payload: payload.clone(),
                bytes: headers.len() + segment.bytes,
                large: None,
                ..*frame
            };
            match self.put(&part) {
                Ok(()) => {}
                Err(Lost::Full) if segment.offset > 0 => {
                    self.port.add(Count::Full, 1);
                    break;
                }
                Err(lost) => return Err(lost),
            }
            payload.skip(segment.bytes as u64);
        }
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

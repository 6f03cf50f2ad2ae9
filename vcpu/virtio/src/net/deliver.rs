//! The copy of a frame into a receiver's buffers.

use super::buffers::{Buffers, DESCRIPTORS, Lost, across, complete, of_receiver};
use super::frame::Frame;
use super::header::{ADDRESSES, HEADER, START, Start};
use super::large::{Large, MOST};
use super::port::{Count, Port};
use super::receiver::Receiver;
use super::spread::spread;
use crate::chain::Cursor;

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
        let mut into = Buffers {
            queue,
            chain,
            memory,
            takes: *takes,
            left: DESCRIPTORS,
        };
        result = match frame.large {
            Some(large) if !takes.offloads.has(large.segmentation().version) => {
                into.put_cut(port, frame, large)
            }
            _ => into.put(port, frame),
        };
    });
    result
}

impl Buffers<'_> {
    fn put(&mut self, port: &Port, frame: &Frame<'_>) -> Result<(), Lost> {
        let mark = self.queue.mark();
        let result = self.try_put(frame);
        match result {
            Ok(()) => {
                port.add(Count::Received, 1);
                port.add(Count::ReceivedBytes, frame.bytes as u64);
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
    fn put_cut(&mut self, port: &Port, frame: &Frame<'_>, large: &Large) -> Result<(), Lost> {
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
            match self.put(port, &part) {
                Ok(()) => {}
                Err(Lost::Full) if segment.offset > 0 => {
                    port.add(Count::Full, 1);
                    break;
                }
                Err(lost) => return Err(lost),
            }
            payload.skip(segment.bytes as u64);
        }
        Ok(())
    }
}

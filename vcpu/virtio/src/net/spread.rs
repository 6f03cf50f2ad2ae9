//! The copy of a frame into several chains of a receiver.

use super::buffers::{Buffers, Lost, across, complete, of_receiver};
use super::frame::Frame;
use super::header::{BUFFERS, Checksum, HEADER, START};
use crate::access;
use crate::chain::Cursor;

/// The places of bytes that are known at the end only: the number of chains, and the checksum.
const LATE: usize = 4;

/// The bytes of a frame, in order: private ones, then those in the sender's memory.
struct Source<'f> {
    start: &'f [u8],
    headers: &'f [u8],
    payload: Cursor<'f>,
    left: usize,
}

/// A byte that is written at the end, and its address once it is known.
#[derive(Clone, Copy, Debug)]
struct Late {
    at: usize,
    gpa: u64,
}

/// Spreads a frame over the chain that was taken and the next ones.
#[cold]
pub fn spread(
    into: &mut Buffers<'_>,
    frame: &Frame<'_>,
    checksum: Option<Checksum>,
) -> Result<(), Lost> {
    let start: [u8; START] = frame.start.written(into.takes.offloads.checksums);
    let mut source = Source {
        start: &start,
        headers: frame.headers,
        payload: frame.payload.clone(),
        left: frame.rest(),
    };
    let sum_at = checksum.map_or(0, |checksum| HEADER + checksum.at);
    let mut late = [BUFFERS, BUFFERS + 1, sum_at, sum_at + 1].map(|at| Late { at, gpa: 0 });
    let (mut at, mut chains) = (0, 1u16);
    loop {
        let before = at;
        at = fill(into, frame, &mut source, at, &mut late)?;
        // A header never crosses two chains, and each chain moves the frame on.
        if at < HEADER || at == before {
            return Err(Lost::Full);
        }
        let done = into
            .queue
            .complete(into.memory, into.chain.head, (at - before) as u32);
        done.map_err(Lost::Receiver)?;
        if source.is_empty() {
            break;
        }
        into.take(frame)?;
        chains += 1;
    }
    let [buffers @ .., high, low] = late;
    write(into, buffers, chains.to_le_bytes())?;
    match checksum {
        Some(checksum) => write(into, [high, low], complete(checksum, frame)?.to_be_bytes()),
        None => Ok(()),
    }
}

/// Fills the chain that was taken last, from byte `at` of the frame on, header included. Returns the end.
fn fill(
    into: &Buffers<'_>,
    frame: &Frame<'_>,
    source: &mut Source<'_>,
    mut at: usize,
    late: &mut [Late; LATE],
) -> Result<usize, Lost> {
    let mut room = into.chain.writable();
    while !source.is_empty() {
        let Some((gpa, most)) = room.next_part(source.most()) else {
            break;
        };
        let bytes = source.put(frame, into, gpa, most)?;
        room.put_back(most - bytes);
        for late in late
            .iter_mut()
            .filter(|late| (at..at + bytes).contains(&late.at))
        {
            late.gpa = gpa + (late.at - at) as u64;
        }
        at += bytes;
    }
    Ok(at)
}

fn write(into: &Buffers<'_>, places: [Late; 2], bytes: [u8; 2]) -> Result<(), Lost> {
    for (late, byte) in places.iter().zip(bytes) {
        access::write(into.memory, late.gpa, &[byte]).map_err(of_receiver)?;
    }
    Ok(())
}

impl Source<'_> {
    const fn is_empty(&self) -> bool {
        self.start.is_empty() && self.headers.is_empty() && self.left == 0
    }

    /// Returns the largest number of bytes that one place can give.
    const fn most(&self) -> usize {
        let private = if self.start.is_empty() {
            self.headers
        } else {
            self.start
        };
        if private.is_empty() {
            self.left
        } else {
            private.len()
        }
    }

    /// Writes the next bytes, at most `most`. Returns their number.
    fn put(
        &mut self,
        frame: &Frame<'_>,
        into: &Buffers<'_>,
        gpa: u64,
        most: usize,
    ) -> Result<usize, Lost> {
        let private = match self.start.is_empty() {
            true => &mut self.headers,
            false => &mut self.start,
        };
        if !private.is_empty() {
            let (first, rest) = private.split_at(most);
            access::write(into.memory, gpa, first).map_err(of_receiver)?;
            *private = rest;
            return Ok(most);
        }
        let Some((source, bytes)) = self.payload.next_part(most) else {
            // The chain was measured: it does not end before the frame.
            self.left = 0;
            return Ok(0);
        };
        across(frame.memory, source, (into.memory, gpa), bytes)?;
        self.left -= bytes;
        Ok(bytes)
    }
}

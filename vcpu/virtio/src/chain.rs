//! A chain of buffers: descriptors of the guest, read and checked.

use arrayvec::ArrayVec;
use devices::{Memory, Unshared};

use crate::access;

/// Largest number of descriptors in a chain, which is the largest size of a queue.
pub const LONGEST: usize = 256;

/// A buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub bytes: u32,
}

/// A chain of buffers: first those that the device reads, then those that it writes.
#[derive(Debug, Default)]
pub struct Chain {
    /// Index of the first descriptor, by which the chain is given back.
    pub(crate) head: u16,
    pub(crate) segments: ArrayVec<Segment, LONGEST>,
    /// Number of buffers that the device reads, and of bytes in them.
    pub(crate) readable: usize,
    pub(crate) readable_bytes: u64,
    /// Number of bytes in all buffers.
    pub(crate) bytes: u64,
}

impl Chain {
    /// Returns the buffers that the device reads.
    #[must_use]
    pub fn readable(&self) -> Cursor<'_> {
        Cursor::over(&self.segments[..self.readable], self.readable_bytes)
    }

    /// Returns the buffers that the device writes.
    #[must_use]
    pub fn writable(&self) -> Cursor<'_> {
        let bytes = self.bytes - self.readable_bytes;
        Cursor::over(&self.segments[self.readable..], bytes)
    }
}

/// A place in some buffers of a chain.
#[derive(Clone, Debug)]
pub struct Cursor<'c> {
    segments: &'c [Segment],
    /// Bytes of the first segment that are done.
    done: u32,
    left: u64,
}

impl<'c> Cursor<'c> {
    const fn over(segments: &'c [Segment], bytes: u64) -> Self {
        Self {
            segments,
            done: 0,
            left: bytes,
        }
    }

    /// Returns the number of bytes that are left.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// Returns address and length of the next contiguous bytes, at most `most`, and steps over them. Returns `None` at
    /// the end.
    pub fn next_part(&mut self, most: usize) -> Option<(u64, usize)> {
        while let Some((first, rest)) = self.segments.split_first() {
            let here = first.bytes - self.done;
            if here == 0 {
                (self.segments, self.done) = (rest, 0);
                continue;
            }
            let bytes = most.min(here as usize);
            let gpa = first.gpa + u64::from(self.done);
            self.done += bytes as u32;
            self.left -= bytes as u64;
            return Some((gpa, bytes));
        }
        None
    }

    /// Steps back by the last `bytes` bytes of the part that [`Self::next_part`] returned last.
    pub const fn put_back(&mut self, bytes: usize) {
        self.done -= bytes as u32;
        self.left += bytes as u64;
    }

    /// Steps over `bytes` bytes, or to the end.
    pub fn skip(&mut self, bytes: u64) {
        let mut left = bytes;
        while left > 0
            && let Some((_, stepped)) = self.next_part(left.min(u32::MAX.into()) as usize)
        {
            left -= stepped as u64;
        }
    }

    /// Reads bytes until `into` is full or the buffers end. Returns the number of bytes.
    ///
    /// # Errors
    /// [`Unshared`].
    pub fn read(&mut self, memory: &dyn Memory, into: &mut [u8]) -> Result<usize, Unshared> {
        let mut done = 0;
        while done < into.len()
            && let Some((gpa, bytes)) = self.next_part(into.len() - done)
        {
            access::read(memory, gpa, &mut into[done..done + bytes])?;
            done += bytes;
        }
        Ok(done)
    }

    /// Writes bytes until all are written or the buffers end. Returns the number of bytes.
    ///
    /// # Errors
    /// [`Unshared`].
    pub fn write(&mut self, memory: &dyn Memory, from: &[u8]) -> Result<usize, Unshared> {
        let mut done = 0;
        while done < from.len()
            && let Some((gpa, bytes)) = self.next_part(from.len() - done)
        {
            access::write(memory, gpa, &from[done..done + bytes])?;
            done += bytes;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Ram;

    #[test]
    fn a_cursor_goes_over_all_buffers_and_no_further() {
        let ram = Ram::new(2);
        let segments = [(0x10, 3), (0x200, 0), (0x100, 5)];
        let chain = Chain {
            head: 0,
            segments: segments
                .iter()
                .map(|(gpa, bytes)| Segment {
                    gpa: *gpa,
                    bytes: *bytes,
                })
                .collect(),
            readable: 0,
            readable_bytes: 0,
            bytes: 8,
        };
        assert_eq!(chain.readable().left(), 0);
        let mut cursor = chain.writable();
        assert_eq!(cursor.left(), 8);
        assert_eq!(cursor.write(&ram, b"abcdef"), Ok(6));
        assert_eq!((cursor.left(), cursor.write(&ram, b"ghij")), (2, Ok(2)));
        assert_eq!(cursor.next_part(1), None);
        let mut all = [0; 16];
        let mut cursor = chain.writable();
        cursor.skip(2);
        assert_eq!(cursor.read(&ram, &mut all), Ok(6));
        assert_eq!(&all[..6], b"cdefgh");
        cursor.skip(u64::MAX);
        assert_eq!(cursor.left(), 0);
    }
}

//! A connection between two sides: a bounded buffer for each direction, and the state of both sides.
//!
//! A side is a guest's device or a service of the host. Each holds an [`End`]; what one side does is there for the other
//! at once. A link's memory is taken when the TD of the side that connects starts, and used for one connection after the
//! other. Its lock is held for one copy of at most [`CAPACITY`] bytes.

use alloc::{boxed::Box, sync::Arc, vec};

use devices::{Memory, Unshared};
use sync::Mutex;

use super::header::Shut;
use crate::chain::Cursor;

/// Bytes that a direction holds.
pub const CAPACITY: usize = 8 << 10;

/// A connection.
#[derive(Debug)]
pub struct Link(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// The bytes that each side has written.
    pipes: [Pipe; 2],
    shut: [Shut; 2],
    is_gone: [bool; 2],
    is_open: bool,
}

/// A ring of bytes.
#[derive(Debug)]
struct Pipe {
    ring: Box<[u8]>,
    start: usize,
    held: usize,
    /// Number of bytes that were taken, modulo 2^32.
    taken: u32,
}

/// One side of a connection. The other side finds it gone once this is dropped.
#[derive(Debug)]
pub struct End {
    link: Arc<Link>,
    side: usize,
}

/// The state of a connection, as one side sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The side that was asked has accepted.
    pub is_open: bool,
    /// The other side is gone.
    pub is_gone: bool,
    /// The directions that the other side has shut.
    pub shut: Shut,
    /// Number of bytes to take.
    pub readable: usize,
    /// Number of bytes that can be put.
    pub room: usize,
    /// Number of bytes that the other side has taken, modulo 2^32.
    pub taken: u32,
}

impl Link {
    /// Creates a link without a connection.
    pub fn new() -> Arc<Self> {
        let pipe = || Pipe {
            ring: vec![0; CAPACITY].into_boxed_slice(),
            start: 0,
            held: 0,
            taken: 0,
        };
        Arc::new(Self(Mutex::new(Inner {
            pipes: [pipe(), pipe()],
            shut: [Shut::default(); 2],
            is_gone: [true; 2],
            is_open: false,
        })))
    }

    /// Returns whether either side of a connection is there.
    pub fn is_used(&self) -> bool {
        self.0.lock().is_gone != [true; 2]
    }

    /// Begins a connection: the ends of the side that asks, and of the one that is asked. Returns `None` while either side
    /// of an earlier one is there.
    pub fn begin(self: &Arc<Self>) -> Option<[End; 2]> {
        let mut inner = self.0.lock();
        if inner.is_gone != [true; 2] {
            return None;
        }
        inner.pipes.iter_mut().for_each(Pipe::clear);
        inner.shut = [Shut::default(); 2];
        (inner.is_gone, inner.is_open) = ([false; 2], false);
        Some([0, 1].map(|side| End {
            link: self.clone(),
            side,
        }))
    }
}

impl End {
    /// Accepts the connection.
    pub fn open(&self) {
        self.link.0.lock().is_open = true;
    }

    /// Returns the connection's state.
    #[must_use]
    pub fn see(&self) -> Seen {
        let inner = self.link.0.lock();
        let [own, other] = [self.side, 1 - self.side];
        Seen {
            is_open: inner.is_open,
            is_gone: inner.is_gone[other],
            shut: inner.shut[other],
            readable: inner.pipes[other].held,
            room: inner.room(own),
            taken: inner.pipes[own].taken,
        }
    }

    /// Shuts directions.
    pub fn shut(&self, more: Shut) {
        self.link.0.lock().shut[self.side].add(more);
    }

    /// Puts bytes. Returns their number, which is less if there is no room.
    pub fn put(&self, bytes: &[u8]) -> usize {
        let mut inner = self.link.0.lock();
        let count = bytes.len().min(inner.room(self.side));
        let pipe = &mut inner.pipes[self.side];
        let [first, second] = pipe.places(count);
        let (start, rest) = bytes[..count].split_at(first.len());
        first.copy_from_slice(start);
        second.copy_from_slice(rest);
        pipe.held += count;
        count
    }

    /// Takes bytes until `into` is full or there are no more. Returns their number.
    pub fn take(&self, into: &mut [u8]) -> usize {
        let mut inner = self.link.0.lock();
        let pipe = &mut inner.pipes[1 - self.side];
        let count = into.len().min(pipe.held);
        let [first, second] = pipe.parts(count);
        let (start, rest) = into[..count].split_at_mut(first.len());
        start.copy_from_slice(first);
        rest.copy_from_slice(second);
        pipe.remove(count);
        count
    }

    /// Puts `count` bytes of a guest's buffers. Returns `false` if there is no room for all: none is put.
    ///
    /// # Errors
    /// [`Unshared`]; none is put.
    pub fn fill(
        &self,
        memory: &dyn Memory,
        from: &mut Cursor<'_>,
        count: usize,
    ) -> Result<bool, Unshared> {
        let mut inner = self.link.0.lock();
        if count > inner.room(self.side) {
            return Ok(false);
        }
        let pipe = &mut inner.pipes[self.side];
        for part in pipe.places(count) {
            from.read(memory, part)?;
        }
        pipe.held += count;
        Ok(true)
    }

    /// Takes `count` bytes, which are there, into a guest's buffers.
    ///
    /// # Errors
    /// [`Unshared`]; none is taken.
    pub fn drain(
        &self,
        memory: &dyn Memory,
        into: &mut Cursor<'_>,
        count: usize,
    ) -> Result<(), Unshared> {
        let mut inner = self.link.0.lock();
        let pipe = &mut inner.pipes[1 - self.side];
        for part in pipe.parts(count) {
            into.write(memory, part)?;
        }
        pipe.remove(count);
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.link.0.lock().is_gone[self.side] = true;
    }
}

impl Inner {
    /// Returns the number of bytes that a side can put.
    fn room(&self, side: usize) -> usize {
        CAPACITY - self.pipes[side].held
    }
}

impl Pipe {
    const fn clear(&mut self) {
        (self.start, self.held, self.taken) = (0, 0, 0);
    }

    /// Returns the places of the next `count` bytes, for which there is room.
    fn places(&mut self, count: usize) -> [&mut [u8]; 2] {
        let at = (self.start + self.held) % CAPACITY;
        let (before, after) = self.ring.split_at_mut(at);
        let first = count.min(after.len());
        [&mut after[..first], &mut before[..count - first]]
    }

    /// Returns the first `count` bytes, which are there.
    fn parts(&self, count: usize) -> [&[u8]; 2] {
        let (before, after) = self.ring.split_at(self.start);
        let first = count.min(after.len());
        [&after[..first], &before[..count - first]]
    }

    const fn remove(&mut self, count: usize) {
        self.start = (self.start + count) % CAPACITY;
        self.held -= count;
        self.taken = self.taken.wrapping_add(count as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{collections::VecDeque, vec::Vec};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_once_and_in_order_in_both_directions(
            steps in proptest::collection::vec((0usize..2, any::<bool>(), 0usize..6000), 1..60),
        ) {
            let link = Link::new();
            let ends = link.begin().unwrap();
            let mut models = [VecDeque::new(), VecDeque::new()];
            let mut taken = [0usize; 2];
            let mut number = 0u8;
            for (side, is_put, count) in steps {
                if is_put {
                    let bytes: Vec<_> = (0..count).map(|_| { number = number.wrapping_add(1); number }).collect();
                    let done = ends[side].put(&bytes);
                    prop_assert_eq!(done, count.min(CAPACITY - models[side].len()));
                    models[side].extend(&bytes[..done]);
                } else {
                    let mut bytes = vec![0; count];
                    let done = ends[side].take(&mut bytes);
                    let expected: Vec<_> = models[1 - side].drain(..done).collect();
                    prop_assert_eq!(&bytes[..done], &expected);
                    taken[1 - side] += done;
                }
                for side in 0..2 {
                    let seen = ends[side].see();
                    prop_assert_eq!(seen.readable, models[1 - side].len());
                    prop_assert_eq!(seen.room, CAPACITY - models[side].len());
                    prop_assert_eq!(seen.taken as usize, taken[side]);
                }
            }
        }
    }

    #[test]
    fn a_link_is_used_again_once_both_sides_are_gone() {
        let link = Link::new();
        let [asking, asked] = link.begin().unwrap();
        asked.open();
        asking.put(b"old");
        asking.shut(Shut::ALL);
        assert!(asking.see().is_open && asked.see().shut == Shut::ALL);
        drop(asking);
        assert!(asked.see().is_gone && link.begin().is_none());
        assert_eq!(asked.take(&mut [0; 8]), 3);
        drop(asked);
        let [asking, asked] = link.begin().unwrap();
        let fresh = Seen {
            is_open: false,
            is_gone: false,
            shut: Shut::default(),
            readable: 0,
            room: CAPACITY,
            taken: 0,
        };
        assert_eq!([asking.see(), asked.see()], [fresh; 2]);
    }
}

//! The device's side of a split queue: rings and descriptors in the guest's shared memory.
//!
//! Source: VIRTIO 1.2, section 2.7.

use core::fmt;

use devices::{Memory, Unshared};
use virtio_spec::virtq::{AvailF, DescF};

use crate::access::{field, pair, probe, set_field, set_fields};
use crate::chain::{Chain, LONGEST, Segment};

/// Bytes of a descriptor, of an element of the used ring, and of a ring's flags and index.
const DESCRIPTOR: u64 = 16;
const USED: u64 = 8;
const HEAD: u64 = 4;

/// The size of a queue and the places of its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Number of descriptors: a power of two, at most [`LONGEST`].
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring, which the driver writes.
    pub available: u64,
    /// Guest-physical address of the used ring, which the device writes.
    pub used: u64,
}

impl Place {
    /// Checks that all parts are in shared memory.
    ///
    /// # Errors
    /// [`Unshared`].
    pub fn probe(&self, memory: &dyn Memory) -> Result<(), Unshared> {
        let size = u64::from(self.size);
        probe(memory, self.descriptors, size * DESCRIPTOR)?;
        probe(memory, self.available, HEAD + size * 2 + 2)?;
        probe(memory, self.used, HEAD + size * USED + 2)
    }
}

/// The rule that a guest broke. Its device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A ring, a descriptor or a buffer is not in shared memory.
    NotShared(u64),
    /// The size of a queue is not a power of two within its limit, or a part of it is not aligned or has no address.
    Place(Place),
    /// The available index is more than the queue's size ahead.
    Index(u16),
    /// A descriptor has this index, beyond the table.
    Descriptor(u16),
    /// A descriptor has these flags, which do not exist or were not negotiated.
    Flags(u16),
    /// A chain has more descriptors than the queue, or than the device takes, or loops.
    Endless,
    /// A buffer that the device reads follows one that it writes.
    Order,
    /// A chain is no request of the device: its header or the place of its status is missing.
    Request,
    /// A buffer ends beyond the last address, or a chain has more bytes than a request of the device can have.
    Bytes(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotShared(gpa) => Unshared(*gpa).fmt(f),
            Self::Place(place) => write!(f, "a queue can't be used: {place:x?}"),
            Self::Index(index) => write!(f, "the available index {index} is too far ahead"),
            Self::Descriptor(index) => write!(f, "there is no descriptor {index}"),
            Self::Flags(flags) => write!(f, "a descriptor has the flags {flags:#x}"),
            Self::Endless => {
                f.write_str("a chain is longer than its queue, or than the device takes")
            }
            Self::Order => f.write_str("a chain has a readable buffer behind a writable one"),
            Self::Request => f.write_str("a chain has no room for a request's header and status"),
            Self::Bytes(bytes) => write!(f, "a chain has {bytes} bytes or more"),
        }
    }
}

impl core::error::Error for Fault {}

impl From<Unshared> for Fault {
    fn from(Unshared(gpa): Unshared) -> Self {
        Self::NotShared(gpa)
    }
}

/// The largest chains that a device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Number of bytes.
    pub bytes: u64,
    /// Number of buffers.
    pub segments: usize,
}

/// A queue that the driver has enabled.
#[derive(Debug)]
pub struct Queue {
    place: Place,
    /// EVENT_IDX was negotiated.
    has_events: bool,
    limits: Limits,
    /// Index of the next element of the available ring to take, and the driver's index when it was read last.
    next: u16,
    seen: u16,
    /// Index of the next element of the used ring to write, and the index that the driver was told last.
    used: u16,
    told: u16,
}

/// A state of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    next: u16,
    used: u16,
}

impl Queue {
    /// Creates a queue whose chains are within `limits`.
    ///
    /// # Errors
    /// [`Fault::Place`].
    pub fn new(place: Place, has_events: bool, limits: Limits) -> Result<Self, Fault> {
        let Place {
            size,
            descriptors,
            available,
            used,
        } = place;
        let is_sized = size.is_power_of_two() && usize::from(size) <= LONGEST;
        let is_aligned = descriptors.is_multiple_of(DESCRIPTOR)
            && available.is_multiple_of(2)
            && used.is_multiple_of(4);
        // No part wraps around.
        let ends = [descriptors, available, used].map(|gpa| gpa.checked_add(1 << 16));
        if !is_sized || !is_aligned || ends.contains(&None) {
            return Err(Fault::Place(place));
        }
        Ok(Self {
            place,
            has_events,
            limits: Limits {
                segments: limits.segments.min(size.into()),
                ..limits
            },
            next: 0,
            seen: 0,
            used: 0,
            told: 0,
        })
    }

    /// Takes the next chain. Returns `false` if the driver has made none available.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn take(&mut self, memory: &dyn Memory, chain: &mut Chain) -> Result<bool, Fault> {
        if self.next == self.seen {
            self.look(memory)?;
        }
        if self.next == self.seen {
            return Ok(false);
        }
        let slot = self.slot(self.next);
        let head = field(memory, self.place.available + HEAD + 2 * slot, 2)? as u16;
        self.read_chain(memory, head, chain)?;
        self.next = self.next.wrapping_add(1);
        Ok(true)
    }

    /// Returns the present state, for [`Self::go_back`].
    #[must_use]
    pub const fn mark(&self) -> Mark {
        Mark {
            next: self.next,
            used: self.used,
        }
    }

    /// Undoes what was taken and returned since `mark`, of which the driver was not told ([`Self::publish`]): the chains will
    /// be taken again.
    pub const fn go_back(&mut self, mark: Mark) {
        (self.next, self.used) = (mark.next, mark.used);
    }

    /// Returns a chain to the driver, which [`Self::publish`] tells of it. The device has written `bytes` bytes.
    ///
    /// # Errors
    /// [`Fault::NotShared`].
    pub fn complete(&mut self, memory: &dyn Memory, head: u16, bytes: u32) -> Result<(), Fault> {
        let slot = self.slot(self.used);
        let at = self.place.used + HEAD + USED * slot;
        // The elements of the ring are aligned to four bytes. Those around this one are the device's, too, and so is the
        // index before the first. The event index behind the last has a neighbour.
        let is_last = slot + 1 == u64::from(self.place.size);
        set_fields(memory, at, [head.into(), bytes], is_last)?;
        self.used = self.used.wrapping_add(1);
        Ok(())
    }

    /// Tells the driver of all chains that were returned. Returns whether it wants an interrupt for them.
    ///
    /// # Errors
    /// [`Fault::NotShared`].
    pub fn publish(&mut self, memory: &dyn Memory) -> Result<bool, Fault> {
        let before = core::mem::replace(&mut self.told, self.used);
        if before == self.used {
            return Ok(false);
        }
        set_field(memory, self.place.used + 2, 2, self.used.into())?;
        if !self.has_events {
            let flags = field(memory, self.place.available, 2)? as u16;
            return Ok(flags & AvailF::NO_INTERRUPT.bits().to_ne() == 0);
        }
        let size = u64::from(self.place.size);
        let event = field(memory, self.place.available + HEAD + 2 * size, 2)? as u16;
        Ok(is_passed(event, before, self.used))
    }

    /// Requests a notification of the next chain that the driver makes available. Returns whether there is one already,
    /// for which no notification may come.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn request_notification(&mut self, memory: &dyn Memory) -> Result<bool, Fault> {
        if self.has_events {
            let size = u64::from(self.place.size);
            let at = self.place.used + HEAD + USED * size;
            set_field(memory, at, 2, self.next.into())?;
        }
        self.look(memory)?;
        Ok(self.next != self.seen)
    }

    /// Returns the element of a ring for an index. The size is a power of two.
    const fn slot(&self, index: u16) -> u64 {
        (index & (self.place.size - 1)) as u64
    }

    /// Reads the available index.
    fn look(&mut self, memory: &dyn Memory) -> Result<(), Fault> {
        let index = field(memory, self.place.available + 2, 2)? as u16;
        if index.wrapping_sub(self.next) > self.place.size {
            return Err(Fault::Index(index));
        }
        self.seen = index;
        Ok(())
    }

    fn read_chain(&self, memory: &dyn Memory, head: u16, chain: &mut Chain) -> Result<(), Fault> {
        chain.head = head;
        chain.segments.clear();
        (chain.readable, chain.readable_bytes, chain.bytes) = (0, 0, 0);
        let mut next = Some(head);
        while let Some(index) = next {
            if chain.segments.len() == self.limits.segments {
                return Err(Fault::Endless);
            }
            let (segment, flags, link) = self.descriptor(memory, index)?;
            let is_writable = flags.contains(DescF::WRITE);
            if !is_writable && chain.readable < chain.segments.len() {
                return Err(Fault::Order);
            }
            chain.bytes += u64::from(segment.bytes);
            if chain.bytes > self.limits.bytes {
                return Err(Fault::Bytes(chain.bytes));
            }
            chain.segments.push(segment);
            if !is_writable {
                (chain.readable, chain.readable_bytes) = (chain.segments.len(), chain.bytes);
            }
            next = flags.contains(DescF::NEXT).then_some(link);
        }
        Ok(())
    }

    /// Reads a descriptor: its buffer, its flags, and the index of the next one.
    fn descriptor(&self, memory: &dyn Memory, index: u16) -> Result<(Segment, DescF, u16), Fault> {
        if index >= self.place.size {
            return Err(Fault::Descriptor(index));
        }
        let at = self.place.descriptors + DESCRIPTOR * u64::from(index);
        let [gpa, more] = pair(memory, at)?;
        let (bytes, flags) = (more as u32, (more >> 32) as u16);
        let known = DescF::NEXT | DescF::WRITE;
        if flags & !known.bits().to_ne() != 0 {
            return Err(Fault::Flags(flags));
        }
        if gpa.checked_add(bytes.into()).is_none() {
            return Err(Fault::Bytes(bytes.into()));
        }
        let flags = DescF::from_bits_truncate(flags.into());
        Ok((Segment { gpa, bytes }, flags, (more >> 48) as u16))
    }
}

/// Returns whether the index `event` was passed on the way from `before` to `after`.
const fn is_passed(event: u16, before: u16, after: u16) -> bool {
    after.wrapping_sub(event).wrapping_sub(1) < after.wrapping_sub(before)
}

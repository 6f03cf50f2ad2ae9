//! The invalidation queue of one unit. Every submission waits for its end, so the queue is empty between two.
//!
//! Source: VT-d specification, section 6.5.2 (Queued Invalidation Interface).

use super::descriptor::{Descriptor, wait};
use crate::{Error, Platform, table::Memory};

/// Number of descriptors in a page.
const LENGTH: u64 = 256;
const DESCRIPTOR_BYTES: u64 = 16;
/// Queue and status: two pages.
const ORDER: u32 = 1;

/// The queue.
#[derive(Debug)]
pub(super) struct Queue<P> {
    memory: Memory<P>,
    pa: u64,
    /// Index of the next descriptor.
    tail: u64,
    /// The status that the last submission ends with.
    status: u32,
}

impl<P: Platform> Queue<P> {
    pub fn new(memory: Memory<P>) -> Result<Self, Error> {
        let pa = memory.take(ORDER).ok_or(Error::NoMemory)?;
        Ok(Self {
            memory,
            pa,
            tail: 0,
            status: 0,
        })
    }

    /// Frees the queue's memory. The unit has never been told of it.
    pub fn free(self) {
        self.memory.platform.give(self.pa, ORDER);
    }

    /// Returns the value of IQA_REG: the address, 128-bit descriptors, one page.
    pub fn address(&self) -> u64 {
        self.pa
    }

    /// Empties the queue. The unit does not read it now.
    pub fn restart(&mut self) {
        self.tail = 0;
    }

    /// Adds descriptors and one that waits for them. Returns the value of IQT_REG.
    ///
    /// At most 16 descriptors are added at once, to an empty queue.
    pub fn add(&mut self, descriptors: &[Descriptor]) -> u64 {
        debug_assert!(descriptors.len() <= 16);
        // A submission that timed out must not be taken for this one's.
        self.status = self.status.wrapping_add(1);
        let end = wait(self.status_at(), self.status);
        for [low, high] in descriptors.iter().chain([&end]) {
            let at = self.pa + self.tail * DESCRIPTOR_BYTES;
            self.memory.store(at, *low);
            self.memory.store(at + 8, *high);
            self.tail = (self.tail + 1) % LENGTH;
        }
        self.tail * DESCRIPTOR_BYTES
    }

    /// Returns true if the unit is done with the last submission.
    pub fn is_done(&self) -> bool {
        self.memory.load(self.status_at()) as u32 == self.status
    }

    fn status_at(&self) -> u64 {
        self.pa + LENGTH * DESCRIPTOR_BYTES
    }
}

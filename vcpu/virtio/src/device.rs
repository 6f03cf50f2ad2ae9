//! A virtio device: its kind, its work at the queues, and the means of that.

use alloc::boxed::Box;
use core::fmt;

use devices::{Memory, Now};
use virtio_spec::Id;

use crate::queue::{Fault, Limits, Queue};

/// The kind of a device.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The device type.
    pub id: Id,
    /// PCI class, subclass and programming interface.
    pub class: u32,
    /// The device's features.
    pub features: u64,
    /// Largest sizes of the queues: powers of two, at most [`crate::LONGEST`].
    pub queues: &'static [u16],
    /// Largest number of bytes in a chain.
    pub most_bytes: u64,
    /// Largest number of buffers in a chain, at most [`crate::LONGEST`].
    pub most_segments: usize,
}

impl Kind {
    /// Returns the largest chains that it takes.
    pub(crate) const fn limits(&self) -> Limits {
        Limits {
            bytes: self.most_bytes,
            segments: self.most_segments,
        }
    }
}

/// A virtio device behind its transport.
pub trait Device: fmt::Debug + Send {
    /// Returns the device's kind, which does not change.
    fn kind(&self) -> Kind;

    /// Returns the device's configuration space.
    fn config(&self) -> &[u8];

    /// Takes the queues that the driver has enabled, by index, with the features that it accepted. The driver is ready.
    fn start(&mut self, features: u64, queues: Box<[Option<Queue>]>);

    /// Forgets the queues.
    fn reset(&mut self);

    /// Notes whether the guest lets the function access memory, after [`Self::start`] and when it changes that. If it does
    /// not, the queues rest when this returns. A device that only [`Self::serve`] lets access memory need not know.
    fn set_master(&mut self, is_on: bool) {
        let _ = is_on;
    }

    /// Does a bounded part of the work at the queues. Returns whether there is more.
    ///
    /// # Errors
    /// [`Fault`]: the driver has broken a rule, and must reset the device.
    fn serve(&mut self, work: &mut Work<'_>) -> Result<bool, Fault>;

    /// Tells others what the guest did, while the device may not serve it: the driver has reset it, or has not got ready.
    fn rest(&mut self, memory: &dyn Memory, now: Now) {
        let _ = (memory, now);
    }

    /// Takes the news that others left for the guest, on a CPU that works for another guest. Neither waits for a lock that is
    /// held for long nor accesses the guest's memory.
    ///
    /// # Errors
    /// [`Fault`]: the driver has broken a rule, and must reset the device.
    fn news(&mut self) -> Result<News, Fault> {
        Ok(News::default())
    }

    /// Returns what went through the device.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    /// Frees what the device holds for the guest, at the TD's end.
    fn retire(&mut self) {
        self.reset();
    }
}

/// The outcome of [`Device::news`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Queues of which the driver wants to hear, by a bit for each.
    pub raised: u64,
    /// There is work with the guest's memory.
    pub has_more: bool,
}

/// The bytes that went through a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that the device wrote for the guest.
    pub to_guest: u64,
    /// Bytes that it took from the guest.
    pub from_guest: u64,
    /// Number of dropped frames, or of requests that failed.
    pub dropped: u64,
}

/// The means of [`Device::serve`], and its outcome.
pub struct Work<'w> {
    /// The guest's memory.
    pub memory: &'w dyn Memory,
    /// The time.
    pub now: Now,
    /// The TD's console has new output.
    pub has_output: bool,
    /// Queues of which the driver wants to hear, and those that it notified the device of, by a bit for each.
    pub(crate) raised: u64,
    notified: u64,
}

impl<'w> Work<'w> {
    pub(crate) const fn new(memory: &'w dyn Memory, now: Now, notified: u64) -> Self {
        Self {
            memory,
            now,
            has_output: false,
            raised: 0,
            notified,
        }
    }

    /// Returns whether the driver has notified the device of this queue, or more work was left at the device.
    #[must_use]
    pub const fn is_notified(&self, index: usize) -> bool {
        self.notified >> index & 1 != 0
    }

    /// Interrupts the driver because of this queue.
    pub const fn raise(&mut self, index: usize) {
        self.raised |= 1 << index;
    }

    /// Interrupts the driver because of queues, by a bit for each.
    pub const fn raise_all(&mut self, queues: u64) {
        self.raised |= queues;
    }

    /// Tells the driver of the chains returned to this queue, with an interrupt if it wants one.
    ///
    /// # Errors
    /// As [`Queue::publish`].
    pub fn publish(&mut self, index: usize, queue: &mut Queue) -> Result<(), Fault> {
        if queue.publish(self.memory)? {
            self.raise(index);
        }
        Ok(())
    }
}

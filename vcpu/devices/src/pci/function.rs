//! A function of the bus.

use alloc::{string::String, vec::Vec};
use core::fmt;
use core::ops::Range;

use super::{Config, Direct, Doorbells};
use crate::{Effect, Memory, Message, Now, Place, open_bus};

/// A function of the bus.
pub trait Function: fmt::Debug + Send {
    /// Returns the configuration space.
    fn config(&mut self) -> &mut Config;

    /// Reads configuration registers: 1, 2 or 4 of them.
    fn read(&mut self, at: usize, size: usize) -> u64 {
        self.config().read(at, size)
    }

    /// Writes configuration registers: 1, 2 or 4 of them.
    fn write(&mut self, at: usize, size: usize, value: u64) {
        self.config().write(at, size, value);
    }

    /// Returns the memory that the guest may access without the host, where the function answers. It does not change.
    fn direct(&self) -> Vec<Direct> {
        Vec::new()
    }

    /// Notes that the guest accesses no memory of the function without the host ([`super::Bus::settle`]).
    fn settled(&mut self) {}

    /// Acts on a write of the guest to the configuration registers `written`.
    fn configured(&mut self, written: Range<usize>) -> Effect {
        let _ = written;
        Effect::None
    }

    /// Reads memory of a base address register. The access lies within it.
    fn load(&mut self, bar: usize, place: Place, now: Now) -> u64 {
        let _ = (bar, now);
        open_bus(place.size)
    }

    /// Writes memory of a base address register. The access lies within it.
    fn store(&mut self, bar: usize, place: Place, value: u64, now: Now) -> Effect {
        let _ = (bar, place, value, now);
        Effect::None
    }

    /// Returns the registers that the guest writes to tell of work. The bus notes such a write without the function, as
    /// [`Effect::Work`]. They do not change.
    fn doorbells(&self) -> Option<Doorbells> {
        None
    }

    /// Takes the next interrupt to send.
    fn take_message(&mut self) -> Option<Message> {
        None
    }

    /// Does a bounded part of the work with the guest's memory that there is: after [`Effect::Work`], or after
    /// [`super::Bus::rouse`].
    fn serve(&mut self, memory: &dyn Memory, now: Now) -> Served {
        let _ = (memory, now);
        Served::default()
    }

    /// Takes the news that others left for the guest, at the call of a CPU that works for another guest
    /// ([`super::Bus::tell`]). Neither waits for a lock nor accesses the guest's memory: work that needs it is left
    /// ([`Served::has_more`]).
    fn news(&mut self) -> Served {
        Served::default()
    }

    /// Returns how the guest uses a virtual function; `None` for others.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// Frees what the function holds for the guest, at the TD's end. The guest does not run any more.
    fn retire(&mut self) {}
}

/// The outcome of [`Function::serve`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// There are interrupts to send, as with [`Effect::Signal`].
    pub has_messages: bool,
    /// There is more work.
    pub has_more: bool,
    /// The TD's console has new output.
    pub has_output: bool,
}

/// A guest's use of a virtual function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The driver is ready.
    pub is_running: bool,
    /// Number of queues that the driver has enabled.
    pub queues: usize,
    /// Number of notifications by the driver, and of interrupts to it.
    pub notifications: u64,
    /// See `notifications`.
    pub interrupts: u64,
    /// Bytes that the device wrote for the guest, and that it read from it.
    pub to_guest: u64,
    /// See `to_guest`.
    pub from_guest: u64,
    /// Number of dropped frames, or of requests that failed.
    pub dropped: u64,
    /// The rule that the driver broke, if the device waits for a reset.
    pub fault: Option<String>,
}

//! The requests for quotes of one TD.
//!
//! A request is a place in the guest's shared memory. The report is copied from there when the guest asks, and the quote
//! is written there by the CPU that runs the guest, before it enters it again.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use devices::{Memory, Unshared, pci::Bus};
use sync::Mutex;
use sync::atomic::{AtomicBool, Ordering::SeqCst};
use virtio::access::{field, read, set_field, write};

use super::qgs::REPORT;

/// Largest number of requests of a TD that wait or are being served.
pub const MOST: usize = 8;
/// Largest size of a service's answer in bytes, with its length.
pub const ANSWER: usize = 16 << 10;

/// A guest's buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Buffer {
    /// Guest-physical address, a multiple of 4 KiB.
    pub gpa: u64,
    /// Size in bytes, a multiple of 4 KiB.
    pub bytes: u64,
}

/// The only version of the buffer.
const VERSION: u64 = 1;

/// Offsets in the guest's buffer.
///
/// Source: GHCI 1.5, TDG.VP.VMCALL, GetQuote.
mod offset {
    pub const VERSION: u64 = 0;
    pub const STATUS: u64 = 8;
    pub const INPUT: u64 = 16;
    pub const OUTPUT: u64 = 20;
    pub const DATA: u64 = 24;
}

/// The status in the guest's buffer.
///
/// Source: GHCI 1.5, TDG.VP.VMCALL, GetQuote.
mod status {
    pub const SUCCESS: u64 = 0;
    pub const IN_FLIGHT: u64 = u64::MAX;
    pub const ERROR: u64 = 1 << 63;
    pub const UNAVAILABLE: u64 = 1 << 63 | 1;
}

/// Reason why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// The buffer is not shared, or has no report in the only version that there is.
    Invalid,
    /// Eight requests are there.
    Full,
    /// No service is connected.
    NoService,
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The quote is in this part of the answer.
    Quote { start: usize, end: usize },
    /// The service could not make one.
    Failed,
    /// The service is gone.
    NoService,
}

/// The requests of a TD in one life.
#[derive(Debug, Default)]
pub struct Requests {
    list: Mutex<List>,
    has_work: AtomicBool,
}

#[derive(Debug, Default)]
struct List {
    /// The TD has ended.
    is_closed: bool,
    /// Taken with the first request.
    memory: Option<RequestMemory>,
    /// The requests, from the `first` on.
    first: usize,
    count: usize,
    /// The end of the first one, if it has come.
    outcome: Option<Outcome>,
}

struct RequestMemory {
    slots: Box<[Slot]>,
    /// The answer to the first request.
    answer: Box<[u8]>,
    /// The TD's bus, by which its vCPUs find that there is work.
    bus: Arc<Bus>,
}

impl core::fmt::Debug for RequestMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RequestMemory").finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Slot {
    buffer: Buffer,
    report: [u8; REPORT],
}

impl Requests {
    /// Takes a request with this buffer. The TD's vCPUs find work at its `bus` then.
    ///
    /// # Errors
    /// [`NotTaken::Invalid`] and [`NotTaken::Full`].
    pub fn take(
        &self,
        memory: &dyn Memory,
        buffer: Buffer,
        bus: &Arc<Bus>,
    ) -> Result<(), NotTaken> {
        let mut list = self.list.lock();
        if list.is_closed || list.count == MOST || !list.has_memory(bus) {
            return Err(NotTaken::Full);
        }
        let at = (list.first + list.count) % MOST;
        if let Some(own) = &mut list.memory {
            own.slots[at].fill(memory, buffer)?;
        }
        list.count += 1;
        drop(list);
        self.has_work.store(true, SeqCst);
        bus.nudge();
        Ok(())
    }

    /// Returns whether there is something to do for a CPU between two entries, and takes it on.
    #[inline]
    pub fn take_work(&self) -> bool {
        self.has_work.load(SeqCst) && self.has_work.swap(false, SeqCst)
    }

    /// Writes the outcome of the first request to the guest's buffer, if there is one. Returns whether another waits.
    pub fn deliver(&self, memory: &dyn Memory) -> bool {
        let mut list = self.list.lock();
        list.deliver(memory);
        list.count > 0
    }

    /// Ends all requests with the TD. Its memory is not touched any more.
    pub fn close(&self) {
        let mut list = self.list.lock();
        let memory = list.memory.take();
        *list = List {
            is_closed: true,
            ..List::default()
        };
        // Not freed with the lock held.
        drop(list);
        drop(memory);
    }

    /// Returns the report of the first request, if it waits for a service.
    pub fn first_report(&self) -> Option<[u8; REPORT]> {
        let list = self.list.lock();
        let is_waiting = list.count > 0 && list.outcome.is_none();
        let memory = list.memory.as_ref().filter(|_| is_waiting)?;
        Some(memory.slots[list.first].report)
    }

    /// Takes the outcome of the first request, and the answer in exchange for another buffer.
    pub fn finish(&self, outcome: Outcome, answer: Option<&mut Box<[u8]>>) {
        let mut list = self.list.lock();
        if list.count == 0 {
            return;
        }
        list.outcome = Some(outcome);
        let Some(memory) = &mut list.memory else {
            return;
        };
        if let Some(answer) = answer {
            core::mem::swap(&mut memory.answer, answer);
        }
        self.has_work.store(true, SeqCst);
        memory.bus.nudge();
    }
}

impl List {
    /// Takes memory for requests, if there is none yet. Returns whether there is.
    fn has_memory(&mut self, bus: &Arc<Bus>) -> bool {
        if self.memory.is_none() {
            let slot = Slot {
                buffer: Buffer::default(),
                report: [0; REPORT],
            };
            self.memory = filled(MOST, slot)
                .zip(filled(ANSWER, 0))
                .map(|(slots, answer)| RequestMemory {
                    slots,
                    answer,
                    bus: bus.clone(),
                });
        }
        self.memory.is_some()
    }

    /// Writes the outcome of the first request to the guest's buffer, if there is one. If the guest has taken the buffer
    /// back, it is lost.
    fn deliver(&mut self, memory: &dyn Memory) {
        let (Some(outcome), Some(own)) = (self.outcome.take(), &self.memory) else {
            return;
        };
        let slot = &own.slots[self.first];
        let status = match outcome {
            Outcome::Quote { start, end } => slot.answer(memory, &own.answer[start..end]),
            Outcome::Failed => status::ERROR,
            Outcome::NoService => status::UNAVAILABLE,
        };
        _ = set_field(memory, slot.buffer.gpa + offset::STATUS, 8, status);
        self.first = (self.first + 1) % MOST;
        self.count -= 1;
    }
}

impl Slot {
    /// Reads a request, and tells the guest that it was taken.
    fn fill(&mut self, memory: &dyn Memory, buffer: Buffer) -> Result<(), NotTaken> {
        let invalid = |Unshared(_)| NotTaken::Invalid;
        let gpa = buffer.gpa;
        let version = field(memory, gpa + offset::VERSION, 8).map_err(invalid)?;
        let input = field(memory, gpa + offset::INPUT, 4).map_err(invalid)?;
        if version != VERSION || input != REPORT as u64 {
            return Err(NotTaken::Invalid);
        }
        self.buffer = buffer;
        read(memory, gpa + offset::DATA, &mut self.report).map_err(invalid)?;
        set_field(memory, gpa + offset::OUTPUT, 4, 0).map_err(invalid)?;
        set_field(memory, gpa + offset::STATUS, 8, status::IN_FLIGHT).map_err(invalid)
    }

    /// Writes a quote to the buffer. Returns the request's status.
    fn answer(&self, memory: &dyn Memory, quote: &[u8]) -> u64 {
        let Buffer { gpa, bytes } = self.buffer;
        if quote.len() as u64 > bytes - offset::DATA {
            return status::ERROR;
        }
        let written = write(memory, gpa + offset::DATA, quote)
            .and_then(|()| set_field(memory, gpa + offset::OUTPUT, 4, quote.len() as u64));
        match written {
            Ok(()) => status::SUCCESS,
            Err(Unshared(_)) => status::ERROR,
        }
    }
}

/// Returns a list of `count` times a value; `None` if there is no memory for it.
pub fn filled<T: Clone>(count: usize, value: T) -> Option<Box<[T]>> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).ok()?;
    list.resize(count, value);
    Some(list.into_boxed_slice())
}

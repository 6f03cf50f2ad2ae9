//! A guest with physical functions: their interrupts, their errors, their counts, and their return.

use alloc::{string::String, sync::Arc, vec::Vec};
use core::sync::atomic::Ordering::Relaxed;

use devices::Message;
use vcpu::{End, Executor, Waker};

use super::{Scheduler, guest::Guest};
use crate::{functions::Sink, platform::Running, td::Td};

/// Milliseconds between two looks at the functions' errors.
const PERIOD_MS: u64 = 100;

/// Delivers the functions' interrupts to a guest. It refers to the guest until the functions are given back.
#[derive(Debug)]
struct Delivery(Arc<Guest>);

impl Sink for Delivery {
    fn deliver(&self, function: usize, message: Message, executor: &dyn Executor) {
        let Self(guest) = self;
        if let Some(counts) = guest.counts.get(function) {
            counts.note_message();
        }
        vcpu::deliver(Waker::new(guest.vm(), executor), message);
    }
}

/// The work of a TD with a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionCounts {
    /// Accesses to configuration registers.
    pub config: u64,
    /// Accesses to memory that the host carried out.
    pub memory: u64,
    /// Interrupts that the host delivered.
    pub interrupts: u64,
    /// Vectors for which the host had no interrupt left.
    pub refused: u64,
    /// Times that an interrupt had to rest, because the TD's functions interrupted too often.
    pub rests: u64,
}

impl<P: Running> Scheduler<'_, P> {
    /// Returns what a TD has done with its functions in this life, in the order of the configuration.
    #[must_use]
    pub fn function_counts(&self, id: u32) -> Vec<FunctionCounts> {
        let guest = self.guest(id);
        guest.map_or_else(Vec::new, |guest| guest.function_counts())
    }

    /// Ends the TDs one of whose functions has had a serious error. Looks now and then.
    pub(super) fn check_functions(&self) {
        if !self.has_functions.load(Relaxed) {
            return;
        }
        let (now, due) = (self.platform.tsc(), self.functions_due.load(Relaxed));
        let next = now + PERIOD_MS * self.platform.tsc_hz() / 1000;
        let exchanged = self
            .functions_due
            .compare_exchange(due, next, Relaxed, Relaxed);
        if now < due || exchanged.is_err() {
            return;
        }
        let mut after = None;
        while let Some(guest) = self.next_with_functions(after) {
            after = Some(guest.id());
            if guest.vm().end().is_none()
                && let Some(why) = guest.problem()
            {
                guest.vm().end_with(End::Device(why));
                self.note_output(&guest);
                self.note_ended();
            }
        }
    }

    fn next_with_functions(&self, after: Option<u32>) -> Option<Arc<Guest>> {
        let from = after.map_or(0, |id| id + 1);
        self.with_queue(|scheduled| {
            let mut guests = scheduled.guests.range(from..);
            let found = guests.find(|(_, guest)| guest.has_functions());
            found.map(|(_, guest)| Arc::clone(guest))
        })
    }
}

impl Guest {
    /// Connects the interrupts of its functions, if it has any.
    pub(super) fn connect_functions(self: &Arc<Self>) {
        if let Some(functions) = &*self.functions.lock() {
            functions
                .taken
                .connect(Arc::new(Delivery(Arc::clone(self))));
        }
    }

    /// Gives the functions back for good. If that fails, they and the TD's life are kept.
    ///
    /// # Errors
    /// A sentence: functions may still reach the TD's shared memory.
    pub(super) fn give_functions_back(&self, td: Option<Arc<Td>>) -> Result<(), String> {
        let mut functions = self.functions.lock().take();
        let Some(taken) = &mut functions else {
            return Ok(());
        };
        let given = taken.give_back();
        if given.is_err() {
            taken.kept = td;
            *self.functions.lock() = functions;
        }
        given
    }

    fn has_functions(&self) -> bool {
        self.functions.lock().is_some()
    }

    /// Returns why the TD must end, if one of its functions has had a serious error.
    fn problem(&self) -> Option<String> {
        let taken = {
            let functions = self.functions.lock();
            Arc::clone(&functions.as_ref()?.taken)
        };
        taken.problem()
    }

    fn function_counts(&self) -> Vec<FunctionCounts> {
        let taken = {
            let functions = self.functions.lock();
            functions.as_ref().map(|all| Arc::clone(&all.taken))
        };
        let rests = |function| taken.as_ref().map_or(0, |taken| taken.rests(function));
        let all = self.counts.iter().enumerate();
        all.map(|(function, counts)| FunctionCounts {
            config: counts.config(),
            memory: counts.memory(),
            interrupts: counts.messages(),
            refused: counts.refused(),
            rests: rests(function),
        })
        .collect()
    }
}

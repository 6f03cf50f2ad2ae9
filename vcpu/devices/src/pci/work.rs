//! The work of functions with the guest's memory, their interrupts, and the news that others have for them.

use sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use super::slot::Slot;
use super::{Bus, Function, Served, Usage};
use crate::{Memory, Message, Now};

/// Number of times that a teller lets a function take news that came meanwhile.
const ROUNDS: usize = 4;

impl Bus {
    /// Notes that the function of this device has interrupts to send.
    pub fn signal(&self, device: u8) {
        if let Some(slot) = self.slots.iter().find(|slot| slot.at == device << 3) {
            slot.is_signalled.store(true, Release);
        }
    }

    /// Takes the next interrupt that a function sends.
    pub fn take_message(&self) -> Option<Message> {
        for slot in &self.slots {
            if !slot.is_signalled.swap(false, Acquire) {
                continue;
            }
            if let Some(message) = self.with(slot, |function| function.take_message()) {
                // There may be more.
                slot.is_signalled.store(true, Release);
                return Some(message);
            }
        }
        None
    }

    /// Returns whether a function may have work with the guest's memory that is left to the CPUs that run the guest: no other
    /// CPU does it ([`Self::begin_help`]).
    #[inline]
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.pending.is_guests()
    }

    /// Returns whether a function may have work, whoever does it.
    #[must_use]
    pub fn has_any_work(&self) -> bool {
        self.pending.is_any()
    }

    /// Returns whether a CPU that does not run the guest does the work.
    #[must_use]
    pub fn is_helped(&self) -> bool {
        self.pending.is_helped()
    }

    /// Makes the work that of the calling CPU, which does not run the guest, until [`Self::end_help`]. The CPUs that run the
    /// guest leave it meanwhile. Returns `false` if another CPU helps.
    #[must_use]
    pub fn begin_help(&self) -> bool {
        self.pending.begin_help()
    }

    /// Leaves the work to the CPUs that run the guest again. Returns whether there is any: the caller sees to it that one of
    /// them looks.
    #[must_use]
    pub fn end_help(&self) -> bool {
        self.pending.end_help()
    }

    /// Lets every function look for work: something outside the guest happened, such as input.
    pub fn rouse(&self) {
        for slot in &self.slots {
            slot.has_work.store(true, SeqCst);
        }
        self.pending.add();
    }

    /// Makes a CPU that enters the guest next look for work, beside that of the functions.
    pub fn nudge(&self) {
        self.pending.add();
    }

    /// Notes that a function may have work.
    pub(super) fn add_work(&self, slot: &Slot) {
        slot.has_work.store(true, SeqCst);
        self.pending.add();
    }

    /// Lets one function do a bounded part of its work, each in its turn. [`Self::has_any_work`] tells if there is more.
    /// Returns `None` if another CPU has the function: its work is left.
    pub fn serve(&self, memory: &dyn Memory, now: Now) -> Option<Served> {
        // Work that comes from now on is added again.
        self.pending.take();
        let count = self.slots.len();
        let first = self.turn.load(Relaxed);
        let mut turns = (first..first + count).map(|turn| turn % count);
        let with_work = |at: &usize| self.slots[*at].has_work.swap(false, SeqCst);
        let Some(at) = turns.find(with_work) else {
            return Some(Served::default());
        };
        self.turn.store((at + 1) % count, Relaxed);
        let slot = &self.slots[at];
        let served = slot.function.try_lock();
        let served = served.map(|mut function| function.serve(memory, now));
        self.look_for_news(slot);
        if served.is_some_and(|served| served.has_messages) {
            slot.is_signalled.store(true, Release);
        }
        if served.is_none_or(|served| served.has_more) {
            slot.has_work.store(true, SeqCst);
        }
        if self.slots.iter().any(|slot| slot.has_work.load(SeqCst)) {
            self.pending.add();
        }
        served
    }

    /// Lets the function of a device take its news ([`Function::news`]), and delivers its interrupts. The calling CPU
    /// works for another guest: if the function is in use, it does not wait, and the CPU that uses the function finds
    /// the news. If news keep coming, it leaves the rest. Returns whether there is work for a CPU that runs the guest.
    ///
    /// # Memory ordering
    ///
    /// A teller sets the flag `has_news`, then tries the function's lock. A CPU that has the function releases the lock,
    /// then looks at the flag. Both accesses to the flag are read-modify-writes, so one of them comes first. If it is the
    /// teller's, the holder sees the flag set. If it is the holder's, the teller finds the lock as that CPU released it,
    /// or taken by a later holder, for whom the same holds. No news is left behind.
    pub fn tell(&self, device: u8, deliver: &mut dyn FnMut(Message)) -> bool {
        let Some(slot) = self.slots.iter().find(|slot| slot.at == device << 3) else {
            return false;
        };
        slot.has_news.swap(true, SeqCst);
        let mut has_more = false;
        let mut rounds = 0;
        // A read-modify-write that changes nothing: see above.
        while slot.has_news.fetch_or(false, SeqCst) {
            // The news become work, as those do that come while the function is in use.
            if rounds == ROUNDS {
                slot.has_news.swap(false, SeqCst);
                has_more = true;
                break;
            }
            rounds += 1;
            let Some(mut function) = slot.function.try_lock() else {
                break;
            };
            slot.has_news.swap(false, SeqCst);
            has_more |= function.news().has_more;
            while let Some(message) = function.take_message() {
                deliver(message);
            }
        }
        if has_more {
            self.add_work(slot);
        }
        has_more
    }

    /// Returns how the guest uses the function of a device. Waits for CPUs that use the function. There may be work
    /// afterwards ([`Self::has_work`]).
    #[must_use]
    pub fn usage(&self, device: u8) -> Option<Usage> {
        let slot = self.slots.iter().find(|slot| slot.at == device << 3)?;
        self.with(slot, |function| function.usage())
    }

    /// Runs `work` with a function. Every use of the lock that can wait goes through here. A caller on a CPU that does not
    /// run the guest looks at [`Self::has_work`] afterwards.
    pub(super) fn with<R>(&self, slot: &Slot, work: impl FnOnce(&mut dyn Function) -> R) -> R {
        let result = work(&mut *slot.function.lock());
        self.look_for_news(slot);
        result
    }

    /// Makes work of news that came while a function was in use: see [`Self::tell`].
    fn look_for_news(&self, slot: &Slot) {
        if slot.has_news.swap(false, SeqCst) {
            self.add_work(slot);
        }
    }
}

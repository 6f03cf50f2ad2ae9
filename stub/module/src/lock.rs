//! Try-only locks: a SEAMCALL that finds one held returns BUSY.
//!
//! A lock is 16 bits of a 64-bit word: bit 0 exclusive, bit 1 host priority, bits 15:2 the number of shared holders.
//! PAMT entries and control structures keep their lock in donated memory, beside the fields that it guards.

use core::hint::cold_path;
use core::sync::atomic::{AtomicU64, Ordering};

const EXCLUSIVE: u64 = 1 << 0;
const HOST_PRIORITY: u64 = 1 << 1;
const READER: u64 = 1 << 2;
const READERS: u64 = 0xfffc;
const LOCK: u64 = 0xffff;

/// The mode of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Shared with other holders.
    Shared,
    /// Exclusive.
    Exclusive,
}

/// The reason why a lock was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// It is held in a conflicting mode.
    Held,
    /// The host failed to take it earlier, so the guest must yield.
    HostPriority,
}

/// The location of a lock.
#[derive(Clone, Copy, Debug)]
pub struct Lock<'a> {
    word: &'a AtomicU64,
    shift: u32,
    host_priority: bool,
}

impl<'a> Lock<'a> {
    /// Returns a lock at bits `shift + 15 : shift` of `word`.
    pub const fn new(word: &'a AtomicU64, shift: u32) -> Self {
        Self {
            word,
            shift,
            host_priority: false,
        }
    }

    /// Returns a lock at bits `shift + 15 : shift` of `word` with host priority: after the host has failed to take it,
    /// it refuses the guest until the host has held it.
    pub const fn with_host_priority(word: &'a AtomicU64, shift: u32) -> Self {
        Self {
            word,
            shift,
            host_priority: true,
        }
    }

    /// Returns whether the lock is held exclusively at this moment.
    pub fn is_exclusive(self) -> bool {
        self.word.load(Ordering::SeqCst) >> self.shift & EXCLUSIVE != 0
    }

    /// Takes the lock for the host.
    ///
    /// # Errors
    /// [`Busy`] if it is held in a mode that conflicts with `mode`.
    #[inline(always)]
    pub fn acquire(self, mode: Mode) -> Result<Guard<'a>, Busy> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let state = word >> self.shift & LOCK;
            let next = match mode {
                Mode::Shared if state & EXCLUSIVE == 0 => (state & !HOST_PRIORITY) + READER,
                Mode::Exclusive if state & (EXCLUSIVE | READERS) == 0 => EXCLUSIVE,
                _ => break,
            };
            let taken = word & !(LOCK << self.shift) | next << self.shift;
            match self
                .word
                .compare_exchange_weak(word, taken, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return Ok(Guard { lock: self, mode }),
                Err(now) => word = now,
            }
        }
        cold_path();
        if self.host_priority {
            self.word
                .fetch_or(HOST_PRIORITY << self.shift, Ordering::Relaxed);
        }
        Err(Busy::Held)
    }

    /// Takes the lock shared for a guest.
    ///
    /// # Errors
    /// [`Busy::HostPriority`] if the host has priority, [`Busy::Held`] if it is held exclusively.
    pub fn acquire_for_guest(self, mode: Mode) -> Result<Guard<'a>, Busy> {
        let mut reason = Busy::Held;
        let taken = self.update(|state| {
            reason = if state & HOST_PRIORITY != 0 {
                Busy::HostPriority
            } else {
                Busy::Held
            };
            match mode {
                Mode::Shared if state & (EXCLUSIVE | HOST_PRIORITY) == 0 => Some(state + READER),
                Mode::Exclusive if state == 0 => Some(EXCLUSIVE),
                _ => None,
            }
        });
        if taken {
            Ok(Guard { lock: self, mode })
        } else {
            Err(reason)
        }
    }

    /// Replaces the lock's 16 bits by the result of `next`. Returns false if it declines.
    fn update(self, mut next: impl FnMut(u64) -> Option<u64>) -> bool {
        self.word
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| {
                let state = next(word >> self.shift & LOCK)?;
                Some(word & !(LOCK << self.shift) | state << self.shift)
            })
            .is_ok()
    }
}

/// A held lock. Dropping it releases the lock.
#[derive(Debug)]
#[must_use = "dropping the guard releases the lock"]
pub struct Guard<'a> {
    lock: Lock<'a>,
    mode: Mode,
}

impl Guard<'_> {
    /// Releases the lock as dropping it does, inlined into the caller.
    #[inline(always)]
    pub fn release(self) {
        self.let_go();
        core::mem::forget(self);
    }

    #[inline(always)]
    fn let_go(&self) {
        let held = match self.mode {
            Mode::Shared => READER,
            Mode::Exclusive => EXCLUSIVE,
        };
        self.lock
            .word
            .fetch_sub(held << self.lock.shift, Ordering::Release);
    }

    /// Promotes a shared hold to an exclusive one.
    ///
    /// # Errors
    /// [`Busy`] if there is another holder. The lock is still held shared then.
    pub fn promote(&mut self) -> Result<(), Busy> {
        let alone = self
            .lock
            .update(|state| (state & (EXCLUSIVE | READERS) == READER).then_some(EXCLUSIVE));
        if alone {
            self.mode = Mode::Exclusive;
            return Ok(());
        }
        if self.lock.host_priority {
            self.lock
                .word
                .fetch_or(HOST_PRIORITY << self.lock.shift, Ordering::Relaxed);
        }
        Err(Busy::Held)
    }
}

impl Drop for Guard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.let_go();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_holders_exclude_an_exclusive_one_and_the_other_way_round() {
        let word = AtomicU64::new(0xdead_0000);
        let lock = Lock::new(&word, 0);
        let first = lock.acquire(Mode::Shared).unwrap();
        let second = lock.acquire(Mode::Shared).unwrap();
        assert_eq!(lock.acquire(Mode::Exclusive).err(), Some(Busy::Held));
        drop((first, second));
        let alone = lock.acquire(Mode::Exclusive).unwrap();
        assert_eq!(lock.acquire(Mode::Shared).err(), Some(Busy::Held));
        assert_eq!(lock.acquire(Mode::Exclusive).err(), Some(Busy::Held));
        drop(alone);
        assert_eq!(word.into_inner(), 0xdead_0000);
    }

    #[test]
    fn only_the_sole_holder_can_promote() {
        let word = AtomicU64::new(0);
        let lock = Lock::new(&word, 16);
        let mut one = lock.acquire(Mode::Shared).unwrap();
        let other = lock.acquire(Mode::Shared).unwrap();
        assert!(one.promote().is_err());
        drop(other);
        assert!(one.promote().is_ok());
        assert!(lock.acquire(Mode::Shared).is_err());
    }

    #[test]
    fn a_guest_stands_back_until_the_host_has_had_the_lock() {
        let word = AtomicU64::new(0);
        let lock = Lock::with_host_priority(&word, 32);
        let guest = lock.acquire_for_guest(Mode::Shared).unwrap();
        assert!(lock.acquire(Mode::Exclusive).is_err());
        drop(guest);
        assert_eq!(
            lock.acquire_for_guest(Mode::Shared).err(),
            Some(Busy::HostPriority)
        );
        drop(lock.acquire(Mode::Exclusive).unwrap());
        assert!(lock.acquire_for_guest(Mode::Shared).is_ok());
    }
}

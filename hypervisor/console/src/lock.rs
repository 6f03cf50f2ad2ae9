//! The lock of the console: what a wrong password costs.
//!
//! While the console is locked, the commands of class *read* work. `unlock` takes a password, which the host compares
//! with `host.console_lock` of the configuration. A few wrong ones cost nothing. Then each costs a delay, which doubles
//! up to [`LONGEST_US`]: passwords that come before it is over are refused unread, and do not prolong it. So whoever
//! guesses tries two passwords a minute, and the owner waits half a minute at most.

/// Number of wrong passwords that cost nothing.
pub const FREE: u32 = 3;
/// The delay after the wrong password that follows these, in microseconds. It doubles with each.
pub const FIRST_US: u64 = 1_000_000;
/// The longest delay in microseconds.
pub const LONGEST_US: u64 = 30_000_000;
/// Microseconds without a key after which the console locks itself.
pub const IDLE_US: u64 = 600_000_000;

/// The lock of one console.
#[derive(Debug, Default)]
pub struct Lock {
    open: bool,
    /// Number of wrong passwords since the last right one.
    wrong: u32,
    /// The time at which the next password is read, in microseconds since the host's start.
    next_us: u64,
    /// The time of the last key.
    key_us: u64,
}

impl Lock {
    /// Returns true if the right password was given.
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// Notes a key. Returns true if the console was open for so long without one that it is locked now.
    pub fn key(&mut self, now_us: u64) -> bool {
        let idle = now_us.saturating_sub(self.key_us) >= IDLE_US;
        self.key_us = now_us;
        let locks = self.open && idle;
        if locks {
            self.open = false;
        }
        locks
    }

    /// Returns the microseconds until a password is read; 0 if one is read now.
    pub const fn delay_us(&self, now_us: u64) -> u64 {
        self.next_us.saturating_sub(now_us)
    }

    /// Locks the console.
    pub const fn close(&mut self) {
        self.open = false;
    }

    /// Notes the right password.
    pub const fn right(&mut self) {
        self.open = true;
        self.wrong = 0;
        self.next_us = 0;
    }

    /// Notes a wrong password, read at `now_us`. The delay begins now.
    pub fn wrong_at(&mut self, now_us: u64) {
        self.wrong = self.wrong.saturating_add(1);
        let Some(doubled) = self.wrong.checked_sub(FREE + 1) else {
            return;
        };
        let delay = FIRST_US << doubled.min(20);
        self.next_us = now_us.saturating_add(delay.min(LONGEST_US));
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::{FIRST_US, FREE, IDLE_US, LONGEST_US, Lock};

    #[test]
    fn the_delay_doubles_to_half_a_minute_and_no_further() {
        let mut lock = Lock::default();
        let mut now = 5;
        let delays: Vec<u64> = (0..12)
            .map(|_| {
                lock.wrong_at(now);
                let delay = lock.delay_us(now);
                now += delay;
                assert_eq!(lock.delay_us(now), 0);
                delay / FIRST_US
            })
            .collect();
        assert_eq!(delays, [0, 0, 0, 1, 2, 4, 8, 16, 30, 30, 30, 30]);
        assert_eq!(FREE, 3);
        let mut many = Lock {
            wrong: u32::MAX,
            ..Lock::default()
        };
        many.wrong_at(0);
        assert_eq!(many.delay_us(0), LONGEST_US);
    }

    #[test]
    fn the_right_password_ends_the_delays() {
        let mut lock = Lock::default();
        (0..9).for_each(|_| lock.wrong_at(0));
        lock.right();
        assert!(lock.is_open());
        assert_eq!((lock.wrong, lock.delay_us(0)), (0, 0));
        lock.close();
        assert!(!lock.is_open());
    }

    #[test]
    fn a_console_without_a_key_locks_itself() {
        let mut lock = Lock::default();
        assert!(!lock.key(IDLE_US * 3), "it is locked");
        lock.right();
        assert!(!lock.key(IDLE_US * 4 - 1));
        assert!(lock.key(IDLE_US * 5 - 1));
        assert!(!lock.is_open());
    }
}

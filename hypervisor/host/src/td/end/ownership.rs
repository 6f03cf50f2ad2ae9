//! Ownership of a termination: one CPU alone carries it out.

use sync::atomic::{AtomicU8, Ordering::SeqCst};

use crate::td::life::State;

/// Ownership of a TD's termination. The CPU that moves this to [`Owner::UnderWay`] alone carries out the termination.
#[derive(Debug, Default)]
pub struct Ownership(AtomicU8);

/// The states of [`Ownership`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Owner {
    /// No owner: the TD is alive or under construction.
    Nobody,
    /// No owner yet: the termination was requested while the TD was paused.
    AskedPaused,
    /// No owner yet: the termination was requested while the TD was runnable.
    AskedRunnable,
    /// A CPU carries out the termination.
    UnderWay,
    /// No owner any more: the termination got stuck after the point of no return.
    Stuck,
}

impl Ownership {
    /// Returns whether the termination got stuck.
    pub fn is_stuck(&self) -> bool {
        self.0.load(SeqCst) == Owner::Stuck as u8
    }

    /// Moves to `to`.
    pub fn set(&self, to: Owner) {
        self.0.store(to as u8, SeqCst);
    }

    /// Moves from `from` to [`Owner::UnderWay`]. Returns whether the state was `from`.
    pub fn take(&self, from: Owner) -> bool {
        let under_way = Owner::UnderWay as u8;
        let taken = self
            .0
            .compare_exchange(from as u8, under_way, SeqCst, SeqCst);
        taken.is_ok()
    }

    /// Takes ownership of a requested termination. Returns the TD's state at the time of the request.
    pub fn take_asked(&self) -> Option<State> {
        [
            (Owner::AskedPaused, State::Paused),
            (Owner::AskedRunnable, State::Runnable),
        ]
        .into_iter()
        .find_map(|(asked, was)| self.take(asked).then_some(was))
    }
}

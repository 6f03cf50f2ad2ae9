//! The states of a TD's life, and the transitions between them.

pub use seam::abi::hypercall::TdState as State;
use sync::atomic::{AtomicU8, Ordering::SeqCst};

/// Returns whether a TD may go from one state to the next.
const fn leads_to(from: State, to: State) -> bool {
    use State::{Building, Created, Paused, Reclaimed, Runnable, Teardown, Terminating};
    matches!(
        (from, to),
        (Created | Reclaimed, Building)
            | (Building, Paused | Terminating)
            | (Paused, Runnable | Terminating)
            | (Runnable, Paused | Terminating)
            // A CPU did not answer before the point of no return: back to the previous state.
            | (Terminating, Runnable | Paused)
            | (Terminating, Teardown)
            | (Teardown, Reclaimed)
    )
}

/// The state of a TD. It may be read at any time. The holder of a lock reads it after taking the lock.
#[derive(Debug)]
pub struct Life(AtomicU8);

impl Life {
    /// Creates a life in its first state.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU8::new(State::Created as u8))
    }

    /// Returns the current state.
    pub fn state(&self) -> State {
        State::ALL[usize::from(self.0.load(SeqCst))]
    }

    /// Moves from `from` to `to` atomically.
    ///
    /// # Errors
    /// The current state, if it is not `from` or if `to` does not follow it. Nothing has changed.
    pub fn advance(&self, from: State, to: State) -> Result<(), State> {
        if !leads_to(from, to) {
            return Err(self.state());
        }
        self.0
            .compare_exchange(from as u8, to as u8, SeqCst, SeqCst)
            .map(drop)
            .map_err(|now| State::ALL[usize::from(now)])
    }

    /// Moves to `to` from any state that it may follow. Returns that state.
    ///
    /// # Errors
    /// The current state, if `to` does not follow it. Nothing has changed.
    pub fn enter(&self, to: State) -> Result<State, State> {
        self.0
            .fetch_update(SeqCst, SeqCst, |now| {
                leads_to(State::ALL[usize::from(now)], to).then_some(to as u8)
            })
            .map(|was| State::ALL[usize::from(was)])
            .map_err(|now| State::ALL[usize::from(now)])
    }
}

impl Default for Life {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_goes_from_created_to_reclaimed() {
        let life = Life::new();
        for (from, to) in [
            (State::Created, State::Building),
            (State::Building, State::Paused),
            (State::Paused, State::Runnable),
            (State::Runnable, State::Terminating),
            (State::Terminating, State::Teardown),
            (State::Teardown, State::Reclaimed),
            (State::Reclaimed, State::Building),
        ] {
            assert_eq!(life.advance(from, to), Ok(()));
            assert_eq!(life.state(), to);
        }
    }

    #[test]
    fn terminating_is_entered_once_and_from_every_state_in_which_the_td_has_its_key() {
        for from in State::ALL {
            let life = Life(AtomicU8::new(from as u8));
            let may = matches!(from, State::Building | State::Runnable | State::Paused);
            assert_eq!(
                life.enter(State::Terminating),
                if may { Ok(from) } else { Err(from) }
            );
            if may {
                let again = life.enter(State::Terminating);
                assert_eq!(again, Err(State::Terminating));
            }
        }
    }

    #[test]
    fn a_transition_that_is_not_allowed_changes_nothing() {
        let life = Life::new();
        assert_eq!(
            life.advance(State::Created, State::Runnable),
            Err(State::Created)
        );
        assert_eq!(
            life.advance(State::Paused, State::Runnable),
            Err(State::Created)
        );
        assert_eq!(life.state(), State::Created);
    }

    #[test]
    fn nothing_leads_back_from_the_point_of_no_return() {
        for to in State::ALL {
            assert_eq!(leads_to(State::Teardown, to), to == State::Reclaimed);
        }
    }
}

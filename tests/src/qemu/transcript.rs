//! The output of a serial port so far, as text: without carriage returns and terminal control sequences.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use anstream::adapter::StripBytes;

/// A text that grows while other threads wait for further output.
#[derive(Default)]
pub struct Transcript {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    text: Vec<u8>,
    strip: StripBytes,
    trouble: Option<String>,
    ended: bool,
}

/// The end of a wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waited<T> {
    /// The search succeeded.
    Found(T),
    /// Waiting on is useless, for this reason.
    Troubled(String),
    /// The serial port was closed first.
    Ended,
    /// The time limit was reached first.
    TimedOut,
}

impl Transcript {
    /// Adds output of the port.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let state = &mut *state;
        for run in state.strip.strip_next(bytes) {
            state.text.extend(run.iter().filter(|&&b| b != b'\r'));
        }
        self.changed.notify_all();
    }

    /// Records the reason why waiting is useless. The first reason counts.
    pub fn trouble(&self, why: String) {
        self.lock().trouble.get_or_insert(why);
        self.changed.notify_all();
    }

    /// Returns the reason why waiting is useless, if there is one.
    pub fn troubled(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Waits until no more output will come, or waiting is useless. Returns the reason in the latter case.
    pub fn wait_for_end(&self) -> Option<String> {
        let mut state = self.lock();
        while !state.ended && state.trouble.is_none() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.trouble.clone()
    }

    /// Marks the end of the output.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Returns everything from byte `start` on.
    pub fn since(&self, start: usize) -> String {
        let state = self.lock();
        String::from_utf8_lossy(state.text.get(start..).unwrap_or_default()).into_owned()
    }

    /// Waits until `find` finds something in the bytes from `start` on.
    pub fn wait<T>(
        &self,
        start: usize,
        deadline: Instant,
        mut find: impl FnMut(&[u8]) -> Option<T>,
    ) -> Waited<T> {
        let mut state = self.lock();
        loop {
            if let Some(found) = find(state.text.get(start..).unwrap_or_default()) {
                return Waited::Found(found);
            }
            if let Some(why) = &state.trouble {
                return Waited::Troubled(why.clone());
            }
            if state.ended {
                return Waited::Ended;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::TimedOut;
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change leaves the state consistent, so a panic elsewhere does not matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the end of `pattern` in `text`.
pub fn end_of(text: &[u8], pattern: &str) -> Option<usize> {
    let pattern = pattern.as_bytes();
    let start = text.windows(pattern.len()).position(|w| w == pattern)?;
    Some(start + pattern.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn control_sequences_are_removed_across_chunks() {
        let transcript = Transcript::default();
        transcript.push(b"one\r\n\x1b[2");
        transcript.push(b"Jtwo");
        assert_eq!(transcript.since(0), "one\ntwo");
    }

    #[test]
    fn a_wait_ends_when_the_pattern_is_there() {
        let transcript = Transcript::default();
        transcript.push(b"booting\nseamark> ");
        let waited = transcript.wait(3, soon(), |text| end_of(text, "seamark> "));
        assert_eq!(waited, Waited::Found(14));
    }

    #[test]
    fn trouble_ends_a_wait_unless_the_pattern_is_already_there() {
        let transcript = Transcript::default();
        transcript.push(b"x");
        transcript.trouble("a panic".to_owned());
        transcript.trouble("another".to_owned());
        let far = Instant::now() + Duration::from_secs(3600);
        let wait = |what: &str| transcript.wait(0, far, |text| end_of(text, what));
        assert_eq!(wait("x"), Waited::Found(1));
        assert_eq!(wait("y"), Waited::Troubled("a panic".to_owned()));
        assert_eq!(transcript.wait_for_end().as_deref(), Some("a panic"));
    }

    #[test]
    fn a_wait_distinguishes_the_end_from_the_time_limit() {
        let transcript = Transcript::default();
        let wait = || transcript.wait(0, soon(), |text| end_of(text, "x"));
        assert_eq!(wait(), Waited::TimedOut);
        transcript.end();
        assert_eq!(wait(), Waited::Ended);
    }
}

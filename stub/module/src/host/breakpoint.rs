//! Breakpoints inside a SEAMCALL: a test holds a call there, and other logical processors act meanwhile.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::Point;

/// The longest time that a held SEAMCALL waits for its release, and a test for the call to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// A SEAMCALL on one logical processor that is held at a point, now or later. Dropping it resumes the call.
pub struct Held {
    arrived: Receiver<()>,
    _go: Sender<()>,
}

impl Held {
    /// Waits until the SEAMCALL reaches the point. Returns `false` if it ended first, or did not arrive within a
    /// minute.
    pub fn wait(&self) -> bool {
        match self.arrived.recv_timeout(PATIENCE) {
            Ok(()) => true,
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => false,
        }
    }
}

struct Armed {
    point: Point,
    left: u32,
    arrived: Sender<()>,
    go: Receiver<()>,
}

/// Returns how many instructions of that kind the module reports at once. It clears, copies and flushes whole pages,
/// and holds the same locks from the first line to the last.
const fn times(point: Point) -> u32 {
    match point {
        Point::Movdir64b | Point::Clflush => 64,
        _ => 1,
    }
}

/// The breakpoint of one logical processor. It costs nothing while unarmed.
#[derive(Default)]
pub(super) struct Breakpoint {
    armed: AtomicBool,
    at: Mutex<Option<Armed>>,
}

impl Breakpoint {
    pub fn arm(&self, point: Point, nth: u32) -> Held {
        let (arrived, arrived_there) = channel();
        let (go, go_there) = channel();
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Armed {
            point,
            left: nth.max(1),
            arrived,
            go: go_there,
        });
        self.armed.store(true, Ordering::Release);
        Held {
            arrived: arrived_there,
            _go: go,
        }
    }

    pub fn disarm(&self) {
        self.armed.store(false, Ordering::Release);
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn reached(&self, point: Point) {
        if !self.armed.load(Ordering::Acquire) {
            return;
        }
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(armed) = at.as_mut().filter(|armed| armed.point == point) else {
            return;
        };
        armed.left = armed.left.saturating_sub(times(point));
        if armed.left > 0 {
            return;
        }
        self.armed.store(false, Ordering::Release);
        let Some(armed) = at.take() else { return };
        drop(at);
        if armed.arrived.send(()).is_ok() {
            // Ends when the other side drops its `Held`. The timeout keeps a test that was lost from holding the call
            // forever.
            let _ = armed.go.recv_timeout(PATIENCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Returns whether a call that passes these points is held.
    fn is_held(nth: u32, passed: &[Point]) -> bool {
        let breakpoint = Breakpoint::default();
        let held = breakpoint.arm(Point::Movdir64b, nth);
        thread::scope(|scope| {
            scope.spawn(|| {
                for point in passed {
                    breakpoint.reached(*point);
                }
                breakpoint.disarm();
            });
            let arrived = held.wait();
            drop(held);
            arrived
        })
    }

    #[test]
    fn a_call_is_held_at_the_point_and_time_that_was_asked_for() {
        use Point::{Movdir64b, Sha384};
        assert!(is_held(1, &[Sha384, Movdir64b]));
        assert!(!is_held(1, &[Sha384]));
        assert!(is_held(64, &[Movdir64b]));
        assert!(!is_held(65, &[Movdir64b]));
        assert!(is_held(65, &[Movdir64b, Sha384, Movdir64b]));
    }
}

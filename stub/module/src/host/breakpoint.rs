//! Holding a SEAMCALL at a point inside it, so that a test can let other logical processors act meanwhile.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::Point;

/// How long a held SEAMCALL waits to be let go, and a test for it to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// A SEAMCALL on one logical processor that will be held at a point, or is. Dropping it lets the call go on.
pub struct Held {
    arrived: Receiver<()>,
    _go: Sender<()>,
}

impl Held {
    /// Waits until the SEAMCALL has reached the point. `false` when it ended without, or did not arrive within a
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

/// The breakpoint of one logical processor; free of charge while it is not armed.
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
        armed.left -= 1;
        if armed.left > 0 {
            return;
        }
        self.armed.store(false, Ordering::Release);
        let Some(armed) = at.take() else { return };
        drop(at);
        if armed.arrived.send(()).is_ok() {
            // Ends when the other side drops its `Held`; a lost test must not hold the call for ever.
            let _ = armed.go.recv_timeout(PATIENCE);
        }
    }
}

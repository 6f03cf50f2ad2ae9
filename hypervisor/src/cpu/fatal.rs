//! The end of a CPU that can't go on.

use spin::Once;

use crate::exception::{Cause, Frame};

/// The handler that runs when a CPU can't go on.
pub type Fatal = fn(Cause, &Frame) -> !;

static FATAL: Once<Fatal> = Once::new();

/// Sets the handler that runs when a CPU can't go on. Until then the CPU stops.
pub fn on_fatal(handler: Fatal) {
    FATAL.call_once(|| handler);
}

pub(super) fn fatal(cause: Cause, frame: &Frame) -> ! {
    match FATAL.get() {
        Some(handler) => handler(cause, frame),
        None => super::stop_here(),
    }
}

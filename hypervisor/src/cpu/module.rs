//! The interrupt by which the TDX module tells the other CPUs of a fatal error.

use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

static CAME: AtomicBool = AtomicBool::new(false);

/// Notes the interrupt. The console's CPU finds out what it means ([`take`]).
pub(super) fn on_interrupt() {
    CAME.store(true, SeqCst);
    super::wake_console();
}

/// Returns whether the interrupt has come since the last call.
pub fn take() -> bool {
    CAME.load(SeqCst) && CAME.swap(false, SeqCst)
}

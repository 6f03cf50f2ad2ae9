//! Records the shutdown of the TDX module. This is the only place that keeps track of it.
//!
//! The module shuts down on a fatal error, or because something else ends it. Every SEAMCALL fails from then on. The
//! first failing call on any CPU is recorded here. After that no vCPU is entered and no SEAMCALL is made for a TD. The
//! TDs' resources go to quarantine ([`crate::td::end::write_off`]), and every request for TDX is answered with
//! [`SHUT_DOWN`].

use alloc::string::String;
use core::sync::atomic::{AtomicU8, Ordering::SeqCst};

/// Message to the operator.
pub const SHUT_DOWN: &str = "TDX failed: the module was shut down; restart the machine";

/// Record of the module's shutdown.
#[derive(Debug, Default)]
pub struct Shutdown(AtomicU8);

/// The module is not ready: bring-up reports failing calls.
const NOT_READY: u8 = 0;
/// The module is ready to build TDs.
const READY: u8 = 1;
/// The module was ready, and has shut down.
const DOWN: u8 = 2;

impl Shutdown {
    /// Creates the record of a module that is not ready.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU8::new(NOT_READY))
    }

    /// Notes that the module is ready to build TDs.
    pub fn module_is_ready(&self) {
        self.0.store(READY, SeqCst);
    }

    /// Notes that a call failed in the way that all calls fail after a shutdown. Logs the shutdown once.
    pub fn note(&self) {
        let noted = self.0.compare_exchange(READY, DOWN, SeqCst, SeqCst);
        if noted.is_ok() {
            log::error!("{SHUT_DOWN}");
        }
    }

    /// Returns whether the module has shut down.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.0.load(SeqCst) == DOWN
    }

    /// Returns the message to the operator if the module has shut down.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.is_down().then(|| SHUT_DOWN.into())
    }
}

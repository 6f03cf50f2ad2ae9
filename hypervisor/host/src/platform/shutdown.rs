//! The end of the TDX module: the one place that knows of it.
//!
//! A module that meets a fatal error shuts down, and so does one that somebody else ends: from then on each SEAMCALL fails.
//! The first one that does, on whichever CPU, is noted here. From then on no vCPU is entered and no SEAMCALL is made for a
//! TD; what TDs had is put away ([`crate::td::end::write_off`]), and whoever asks for TDX is told [`SHUT_DOWN`].

use alloc::string::String;
use core::sync::atomic::{AtomicU8, Ordering::SeqCst};

/// What the operator is told.
pub const SHUT_DOWN: &str = "TDX failed: the module was shut down; restart the machine";

/// Whether the module has shut down.
#[derive(Debug, Default)]
pub struct Shutdown(AtomicU8);

/// The module is not ready: a call that fails is for the bring-up to tell.
const NOT_READY: u8 = 0;
/// It builds TDs.
const READY: u8 = 1;
/// It did, and has shut down.
const DOWN: u8 = 2;

impl Shutdown {
    /// Of a module that is not ready.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU8::new(NOT_READY))
    }

    /// The module builds TDs from now on.
    pub fn module_is_ready(&self) {
        self.0.store(READY, SeqCst);
    }

    /// Notes that a call failed as all do once the module has shut down. Says so in the log, once.
    pub fn note(&self) {
        let noted = self.0.compare_exchange(READY, DOWN, SeqCst, SeqCst);
        if noted.is_ok() {
            log::error!("{SHUT_DOWN}");
        }
    }

    /// Whether it has.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.0.load(SeqCst) == DOWN
    }

    /// What the operator is told, if it has.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.is_down().then(|| SHUT_DOWN.into())
    }
}

//! Records the shutdown of the TDX module. This is the only place that keeps track of it.
//!
//! The module shuts down on a fatal error, or because something else ends it. Every SEAMCALL fails from then on. The
//! first failing call on any CPU is recorded here, or the module's notification, which may come first. After that no
//! vCPU is entered and no SEAMCALL is made for a TD. The TDs' resources go to quarantine ([`crate::td::end::write_off`]),
//! and every request for TDX is answered with [`SHUT_DOWN`].

use alloc::{format, string::String, vec::Vec};
use core::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst},
};

use seam::abi::FatalRecord;
use spin::Once;

/// Message to the operator.
pub const SHUT_DOWN: &str = "TDX failed: the module was shut down; restart the machine";

/// Record of the module's shutdown.
#[derive(Debug, Default)]
pub struct Shutdown {
    phase: AtomicU8,
    /// True if the module records its fatal errors.
    is_recorded: AtomicBool,
    /// Set shortly after the phase is [`DOWN`].
    cause: Once<ShutdownCause>,
}

/// The module is not ready: bring-up reports failing calls.
const NOT_READY: u8 = 0;
/// The module is ready to build TDs.
const READY: u8 = 1;
/// The module was ready, and has shut down.
const DOWN: u8 = 2;

/// The module's answer about its shutdown. It prints as a sentence to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownCause {
    /// The module recorded a fatal error.
    Fatal(FatalRecord),
    /// The module records fatal errors, and recorded none.
    NotFatal,
    /// The module has no FATAL_DIAGNOSTICS.
    Unknown,
}

impl fmt::Display for ShutdownCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fatal(record) => write!(
                f,
                "the module recorded fatal error {record}, a number of its build: report both to its vendor"
            ),
            Self::NotFatal => f.write_str("the module recorded no fatal error"),
            Self::Unknown => {
                f.write_str("the module does not tell why: it has no FATAL_DIAGNOSTICS")
            }
        }
    }
}

impl Shutdown {
    /// Creates the record of a module that is not ready.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            phase: AtomicU8::new(NOT_READY),
            is_recorded: AtomicBool::new(false),
            cause: Once::new(),
        }
    }

    /// Notes that the module records its fatal errors from now on.
    pub fn module_records(&self) {
        self.is_recorded.store(true, SeqCst);
    }

    /// Notes that the module is ready to build TDs.
    pub fn module_is_ready(&self) {
        self.phase.store(READY, SeqCst);
    }

    /// Notes that a call failed in the way that all calls fail after a shutdown, or that the module recorded a fatal
    /// error. Logs the shutdown once, with its cause. `record` reads the module's record.
    pub fn note(&self, record: impl FnOnce() -> FatalRecord) {
        let noted = self.phase.compare_exchange(READY, DOWN, SeqCst, SeqCst);
        if noted.is_err() {
            return;
        }
        let cause = self.cause.call_once(|| self.cause_by(record));
        log::error!("{SHUT_DOWN}; {cause}");
    }

    /// Returns the fatal error in the module's record, if the module keeps one.
    pub(crate) fn fatal_error(
        &self,
        record: impl FnOnce() -> FatalRecord,
    ) -> Option<ShutdownCause> {
        let cause = self.cause_by(record);
        matches!(cause, ShutdownCause::Fatal(_)).then_some(cause)
    }

    fn cause_by(&self, record: impl FnOnce() -> FatalRecord) -> ShutdownCause {
        if !self.is_recorded.load(SeqCst) {
            return ShutdownCause::Unknown;
        }
        let record = record();
        if record.is_complete() {
            ShutdownCause::Fatal(record)
        } else {
            ShutdownCause::NotFatal
        }
    }

    /// Returns whether the module has shut down.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.phase.load(SeqCst) == DOWN
    }

    /// Returns the message to the operator if the module has shut down.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.is_down().then(|| SHUT_DOWN.into())
    }

    /// Returns the message to the operator and the cause if the module has shut down; empty otherwise.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let cause = self.cause.get().map(|cause| format!("{cause}"));
        self.problem().into_iter().chain(cause).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: FatalRecord = FatalRecord {
        state: FatalRecord::COMPLETE,
        error: 0x6B,
        rest: [0; 6],
    };

    fn ready(records: bool) -> Shutdown {
        let shutdown = Shutdown::new();
        if records {
            shutdown.module_records();
        }
        shutdown.module_is_ready();
        shutdown
    }

    fn cause(records: bool, record: FatalRecord) -> String {
        let shutdown = ready(records);
        assert!(shutdown.reasons().is_empty());
        shutdown.note(|| record);
        let reasons = shutdown.reasons();
        assert_eq!((reasons.len(), &*reasons[0]), (2, SHUT_DOWN));
        reasons[1].clone()
    }

    #[test]
    fn the_reason_is_what_the_module_recorded() {
        assert!(cause(true, RECORD).contains("fatal error 0x6b"));
        assert!(cause(true, FatalRecord::default()).contains("no fatal error"));
        assert!(cause(false, RECORD).contains("does not tell why"));
    }

    #[test]
    fn the_first_one_to_notice_decides() {
        let shutdown = ready(true);
        shutdown.note(|| RECORD);
        shutdown.note(|| unreachable!("it is noted"));
        assert!(shutdown.is_down());
    }

    #[test]
    fn a_module_that_is_not_ready_cannot_go_down() {
        let shutdown = Shutdown::new();
        shutdown.module_records();
        shutdown.note(|| RECORD);
        assert!(!shutdown.is_down() && shutdown.reasons().is_empty());
        let told = shutdown.fatal_error(|| RECORD);
        assert_eq!(told, Some(ShutdownCause::Fatal(RECORD)));
        assert_eq!(shutdown.fatal_error(FatalRecord::default), None);
    }
}

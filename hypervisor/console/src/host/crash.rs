//! The last crash, as the machine kept it.

use alloc::{string::String, vec::Vec};

use serde::Serialize;

/// The report of the last crash.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Crash {
    /// The time of the crash in seconds since 1970-01-01 00:00 UTC, if the machine knew it.
    pub unix: Option<u64>,
    /// The places that kept it: `uefi-variables`, `erst`, `memory`.
    pub kept_in: Vec<&'static str>,
    /// Bytes of the report that no place had any more.
    pub missing_bytes: u32,
    /// The lines of the report.
    pub lines: Vec<String>,
}

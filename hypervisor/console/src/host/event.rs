//! The record of what happened on the host, and of who did it.

use alloc::{string::String, vec::Vec};

use serde::Serialize;

use super::failure::Code;

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A state changed: of a TD, of TDX, of the console's lock.
    State,
    /// Somebody asked for something that changes the host or a TD.
    Action,
}

/// One event.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Event {
    /// The event's number. Numbers begin with 1 and have no gaps.
    pub number: u64,
    /// Microseconds since the hypervisor's first line.
    pub us: u64,
    /// The kind.
    pub kind: EventKind,
    /// On whose behalf it happened: "console", "td NAME", "button", or "host" for the host itself.
    pub channel: String,
    /// The number of the TD that it concerns.
    pub td: Option<u32>,
    /// The TD's name.
    pub name: Option<String>,
    /// The event.
    pub what: String,
}

/// Events after a number.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Events {
    /// Events after that number that are no longer kept.
    pub lost: u64,
    /// The number of the last event that ever happened.
    pub last: u64,
    /// The events, oldest first.
    pub events: Vec<Event>,
}

/// Something that the operator asked for.
#[derive(Clone, Copy, Debug)]
pub struct Action<'a> {
    /// The TD that it concerns: its number and name.
    pub td: Option<(u32, &'a str)>,
    /// The command with its arguments, without anything secret.
    pub line: &'a str,
    /// The kind of the error if it was refused or failed.
    pub failed: Option<Code>,
}

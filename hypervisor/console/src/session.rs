//! The state of the operator's session.

use super::{line::History, watch::Watch};

/// The console's settings that commands can change.
#[derive(Debug, Default)]
pub struct Session {
    /// True if replies are JSON, and nothing else is sent.
    pub json: bool,
    /// The TD whose console is shown instead of this one.
    pub watch: Option<Watch>,
    /// The lines that were run before.
    pub history: History,
}

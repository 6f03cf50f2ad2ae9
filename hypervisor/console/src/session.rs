//! The state of the operator's session.

use super::{line::History, watch::Watch};

/// What commands can change about the console itself.
#[derive(Debug, Default)]
pub struct Session {
    /// Whether replies are JSON, and nothing else is sent.
    pub json: bool,
    /// Whether the screen is to be cleared before the next prompt.
    pub clear_screen: bool,
    /// The TD whose console is shown instead of this one.
    pub watch: Option<Watch>,
    /// The lines that were run before.
    pub history: History,
}

//! The state of the operator's session.

use super::{
    line::History, load::Load, lock::Lock, pager::Pager, paste::Paste, screen::Size, watch::Watch,
};

/// The console's settings that commands can change.
#[derive(Debug, Default)]
pub struct Session {
    /// True if replies are JSON, and nothing else is sent.
    pub json: bool,
    /// The view that replaces the command line.
    pub front: Option<Front>,
    /// The text that is being pasted.
    pub paste: Option<Paste>,
    /// The lines that were run before.
    pub history: History,
    /// The size of the operator's screen, if it is known: longer output pauses.
    pub size: Option<Size>,
    /// The lock.
    pub lock: Lock,
    /// The host's recent load.
    pub load: Load,
    /// True while a command runs whose output is filtered: it must all be in the reply.
    pub filtered: bool,
}

impl Session {
    /// Returns true if the present command may show something that goes on after its reply.
    pub const fn is_interactive(&self) -> bool {
        !self.json && !self.filtered
    }
}

/// The view that replaces the command line.
#[derive(Debug)]
pub enum Front {
    /// The console of a TD.
    Td(Watch),
    /// The table of `top`.
    Top {
        /// The time of the next view, in microseconds since the host's start.
        due_us: u64,
    },
    /// Nothing: a password is typed.
    Password,
    /// Output that waits for a key.
    More(Pager),
}

//! The receiving side of a card.

use alloc::boxed::Box;
use core::fmt;

use devices::Other;

use super::header::Offloads;
use crate::chain::Chain;
use crate::queue::{Fault, Queue};

/// The receiving side of a port while its driver is ready.
pub struct Receiver {
    /// The guest.
    pub guest: Other,
    /// Its queue.
    pub queue: Queue,
    /// Room for a chain.
    pub chain: Box<Chain>,
    /// The work that its driver does.
    pub takes: Takes,
    /// The rule that its driver broke.
    pub fault: Option<Fault>,
}

/// The kinds of frames that a driver takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Takes {
    /// Those that leave work to it.
    pub offloads: Offloads,
    /// Those that are spread over several chains.
    pub spread: bool,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("queue", &self.queue)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

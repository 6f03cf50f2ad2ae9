//! What the bring-up found and how far it got.

use alloc::{string::String, vec::Vec};

use mm::tdmr::Plan;
use seam::{module::Info, platform::KeyIds};

/// TDX on this machine: what was found, what is missing, how far its bring-up got.
#[derive(Clone, Debug)]
pub struct Report {
    /// How far it is.
    pub state: State,
    /// Why it is not further, one sentence for each reason; empty when `state` is ready.
    pub reasons: Vec<String>,
    /// The KeyIDs that firmware set aside for TDX; `None` where the machine has no such partition.
    pub key_ids: Option<KeyIds>,
    /// What the module says of itself; `None` where none answered.
    pub module: Option<Info>,
    /// The memory that the module was given; `None` before it was.
    pub memory: Option<Plan>,
    /// The steps of the bring-up that were begun, in order.
    pub steps: Vec<Step>,
    /// Microseconds that the whole bring-up took; `None` unless `state` is ready.
    pub us: Option<u64>,
}

/// How far TDX is on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Something that it needs is missing; nothing was started.
    Unavailable,
    /// The module is configured, has its memory and its global key: TDs can be built.
    Ready,
    /// A step of the bring-up failed; TDX can't be used before the next reset.
    Failed,
}

/// One step of the bring-up.
#[derive(Clone, Debug)]
pub struct Step {
    /// The leaf, as the specification names it: "TDH.SYS.LP.INIT".
    pub name: &'static str,
    /// How often the leaf was called, over all CPUs.
    pub calls: u64,
    /// Microseconds from its first call to its last return.
    pub us: u64,
    /// The reason why it failed; `None` when it went well.
    pub error: Option<String>,
}

impl Report {
    /// The report of a machine on which nothing was started.
    #[must_use]
    pub const fn unavailable(key_ids: Option<KeyIds>) -> Self {
        Self {
            state: State::Unavailable,
            reasons: Vec::new(),
            key_ids,
            module: None,
            memory: None,
            steps: Vec::new(),
            us: None,
        }
    }
}

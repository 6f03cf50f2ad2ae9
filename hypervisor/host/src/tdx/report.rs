//! The result of the bring-up.

use alloc::{string::String, vec::Vec};

use mm::tdmr::Plan;
use seam::{module::Info, platform::KeyIds};

/// TDX on this machine: what was found, what is missing, and how far the bring-up got.
#[derive(Clone, Debug)]
pub struct Report {
    /// TdxState of TDX.
    pub state: TdxState,
    /// The reasons why TDX is not ready, one sentence for each; empty when `state` is ready.
    pub reasons: Vec<String>,
    /// The KeyIDs that the firmware has set aside for TDX; `None` if the machine has no such partition.
    pub key_ids: Option<KeyIds>,
    /// The module's own information; `None` if no module answered.
    pub module: Option<Info>,
    /// The memory that the module was given; `None` before that.
    pub memory: Option<Plan>,
    /// The steps of the bring-up that were begun, in order.
    pub steps: Vec<Step>,
    /// Microseconds of the whole bring-up; `None` unless `state` is ready.
    pub us: Option<u64>,
}

/// TdxState of TDX on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TdxState {
    /// A requirement of TDX is missing; nothing was started.
    Unavailable,
    /// The module is configured, has its memory and its global key: TDs can be built.
    Ready,
    /// A step of the bring-up failed. If the reason passes by itself, [`BringUp::go_on`](super::bring_up::BringUp::go_on)
    /// continues.
    Failed,
}

/// A step of the bring-up.
#[derive(Clone, Debug)]
pub struct Step {
    /// Name of the leaf in the specification: "TDH.SYS.LP.INIT".
    pub name: &'static str,
    /// Number of calls of the leaf, over all CPUs.
    pub calls: u64,
    /// Microseconds from its first call to its last return.
    pub us: u64,
    /// The reason of the failure; `None` if the step succeeded.
    pub error: Option<String>,
}

impl Report {
    /// Creates the report of a machine on which nothing was started.
    #[must_use]
    pub const fn unavailable(key_ids: Option<KeyIds>) -> Self {
        Self {
            state: TdxState::Unavailable,
            reasons: Vec::new(),
            key_ids,
            module: None,
            memory: None,
            steps: Vec::new(),
            us: None,
        }
    }
}

//! Units, as the operator sees them.

use alloc::{string::String, string::ToString};

use super::Slot;
use crate::{
    Platform,
    register::{Capability, Extended},
    scope::Coverage,
};

/// A unit, as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitReport {
    /// Physical address of its registers.
    pub base: u64,
    /// Its PCI segment.
    pub segment: u16,
    /// Its state.
    pub state: UnitState,
    /// True if it remaps interrupts.
    pub remaps_interrupts: bool,
    /// True if the firmware's translation was on when the unit was taken over.
    pub taken_over: bool,
    /// True if it has every function of its segment that no other unit's scope names.
    pub has_rest: bool,
    /// Number of functions, bridges and interrupt controllers that its scopes name.
    pub named: usize,
    /// CAP_REG and ECAP_REG, if they could be read.
    pub capabilities: Option<(Capability, Extended)>,
}

/// The state of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// It blocks what its tables do not allow.
    On,
    /// It does not: the reason, as a sentence.
    Failed(String),
}

/// Describes a unit.
pub(super) fn report<P: Platform>(slot: &Slot<P>, coverage: &Coverage) -> UnitReport {
    let unit = slot.unit.as_ref().ok();
    let failure = match &slot.unit {
        Ok(unit) => unit.failure(),
        Err(error) => Some(error.clone()),
    };
    UnitReport {
        base: slot.base,
        segment: slot.segment,
        state: failure.map_or(UnitState::On, |error| UnitState::Failed(error.to_string())),
        remaps_interrupts: unit.is_some_and(|unit| unit.remaps),
        taken_over: unit.is_some_and(|unit| unit.taken_over),
        has_rest: coverage.is_all(),
        named: coverage.named(),
        capabilities: unit.map(|unit| (unit.found.capability, unit.found.extended)),
    }
}

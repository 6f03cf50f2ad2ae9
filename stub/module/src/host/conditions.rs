//! Conditions for a SEAMCALL on a logical processor: pending interrupts, lack of entropy, other MSR values.

use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::PconfigError;

/// Exceptional conditions of a logical processor. They last until they are set again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The check of the pending-interrupt MSR from which on an interrupt is pending; 1 is the first.
    pub interrupt_at_check: Option<u32>,
    /// Number of upcoming RDRANDs that find no entropy.
    pub rdrand_failures: u32,
    /// Number of upcoming RDSEEDs that find no entropy.
    pub rdseed_failures: u32,
    /// Number of upcoming PCONFIGs that fail, and their error.
    pub pconfig_failures: Option<(u32, PconfigError)>,
    /// MSR values that differ from the configured ones.
    pub msrs: BTreeMap<u32, u64>,
    /// Result code of SEAMREPORT, 0 for success.
    pub seamreport_status: u64,
    /// Result code of SEAMVERIFYREPORT, 0 for success, regardless of the report; `None` verifies the report.
    pub verifyreport_status: Option<u64>,
}

/// The conditions of one logical processor. They cost nothing while they are ordinary.
#[derive(Default)]
pub(super) struct Current {
    out_of_the_ordinary: AtomicBool,
    conditions: Mutex<Conditions>,
}

impl Current {
    pub fn set(&self, conditions: Conditions) {
        let ordinary = conditions == Conditions::default();
        *self.lock() = conditions;
        self.out_of_the_ordinary.store(!ordinary, Ordering::Release);
    }

    /// Applies `question` to the conditions, if there are any.
    pub fn ask<T>(&self, question: impl FnOnce(&mut Conditions) -> Option<T>) -> Option<T> {
        if !self.out_of_the_ordinary.load(Ordering::Acquire) {
            return None;
        }
        question(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Conditions> {
        self.conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Conditions {
    pub(super) fn interrupt_pending(&mut self) -> bool {
        match &mut self.interrupt_at_check {
            None => false,
            Some(checks) => {
                *checks = checks.saturating_sub(1);
                *checks == 0
            }
        }
    }

    pub(super) fn pconfig_error(&mut self) -> Option<PconfigError> {
        let (left, error) = self.pconfig_failures.as_mut()?;
        *left = left.checked_sub(1)?;
        Some(*error)
    }
}

/// Decrements a count of upcoming failures. Returns whether it was nonzero.
pub(super) fn take_one(failures: &mut u32) -> bool {
    let any = *failures > 0;
    *failures = failures.saturating_sub(1);
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_stays_pending_from_the_nth_look_on() {
        let mut conditions = Conditions {
            interrupt_at_check: Some(3),
            ..Conditions::default()
        };
        let looks: [bool; 5] = core::array::from_fn(|_| conditions.interrupt_pending());
        assert_eq!(looks, [false, false, true, true, true]);
    }

    #[test]
    fn pconfig_fails_as_often_as_asked() {
        let mut conditions = Conditions {
            pconfig_failures: Some((1, PconfigError::Busy)),
            ..Conditions::default()
        };
        assert_eq!(conditions.pconfig_error(), Some(PconfigError::Busy));
        assert_eq!(conditions.pconfig_error(), None);
    }
}

//! The action that one error requires.
//!
//! Source: Intel SDM volume 3B, section 16.6 (Recovery of Uncorrected Recoverable Errors), tables 16-6 and 16-7.

use core::fmt;

use crate::{
    bank::Reading,
    capability::{Capability, GlobalStatus},
};

/// The occasion on which the banks are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// A machine check.
    MachineCheck,
    /// A corrected-error interrupt, the timer, or the operator's command.
    Poll,
    /// The CPU's start: the errors are from before.
    Start,
}

/// The action that an error requires. Ordered by severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Hardware corrected the error.
    Corrected,
    /// The error's CPU is another one, which will handle it. It stays in the bank.
    NotHere,
    /// Data is lost, and nothing has used it (UCNA).
    NoAction,
    /// Data is lost, and nothing has used it; a machine check said so (SRAO).
    Optional,
    /// The interrupted program used lost data (SRAR).
    Required,
    /// The machine can't go on.
    Fatal(Why),
}

/// The reason why an error is fatal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// PCC: the CPU's state may be corrupt.
    ContextCorrupt,
    /// The CPU can't tell where the error belongs: neither RIPV nor EIPV is set.
    NoPlace,
    /// The CPU can't recover from uncorrected errors.
    NoRecovery,
    /// An error that required an action was lost.
    Lost,
    /// An error that requires an action, of a kind or at a place that is not known.
    UnknownAction,
    /// The host itself used the lost data.
    HostUsedIt,
    /// The host was interrupted at a place where it can't continue (RIPV is clear).
    NoRestart,
}

impl Why {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::ContextCorrupt,
        Self::NoPlace,
        Self::NoRecovery,
        Self::Lost,
        Self::UnknownAction,
        Self::HostUsedIt,
        Self::NoRestart,
    ];
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ContextCorrupt => "the CPU's state may be corrupt (PCC)",
            Self::NoPlace => "the CPU can't tell which program the error belongs to",
            Self::NoRecovery => "the CPU can't recover from uncorrected errors",
            Self::Lost => "an error that required an action was lost (OVER)",
            Self::UnknownAction => "the error requires an action that is not known",
            Self::HostUsedIt => "the hypervisor itself used the lost data",
            Self::NoRestart => "the hypervisor can't continue where it was interrupted",
        })
    }
}

impl Verdict {
    /// Returns the verdict's name for tools.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Corrected => "corrected",
            Self::NotHere => "another-cpu",
            Self::NoAction => "no-action",
            Self::Optional => "action-optional",
            Self::Required => "action-required",
            Self::Fatal(_) => "fatal",
        }
    }

    /// Returns true if data was lost at the place that the bank names.
    #[must_use]
    pub const fn is_loss(self) -> bool {
        matches!(self, Self::NoAction | Self::Optional | Self::Required)
    }

    /// Judges a valid bank.
    #[must_use]
    pub fn of(
        reading: &Reading,
        global: GlobalStatus,
        capability: Capability,
        occasion: Occasion,
    ) -> Self {
        let status = reading.status;
        if !status.is_uncorrected() {
            return Self::Corrected;
        }
        if occasion == Occasion::Start {
            // The machine has been reset since.
            return Self::NoAction;
        }
        if status.is_context_corrupt() {
            return Self::Fatal(Why::ContextCorrupt);
        }
        let is_machine_check = occasion == Occasion::MachineCheck;
        if !capability.recovers() {
            return match is_machine_check && status.is_enabled() {
                true => Self::Fatal(Why::NoRecovery),
                false => Self::NoAction,
            };
        }
        match (status.is_signalled(), status.requires_action()) {
            (false, false) => Self::NoAction,
            // A machine check was signalled, and its handler has not taken the error.
            (true, _) if !is_machine_check => Self::NotHere,
            (true, false) => Self::Optional,
            (false, true) => Self::Fatal(Why::UnknownAction),
            (true, true) => Self::of_required(reading, global),
        }
    }

    fn of_required(reading: &Reading, global: GlobalStatus) -> Self {
        let status = reading.status;
        let is_known = status.code().is_data_load() || status.code().is_instruction_fetch();
        if global.can_restart() && !global.is_at_error() {
            // The bank is shared, and the error is that of a program on another thread.
            Self::NotHere
        } else if status.has_lost() {
            Self::Fatal(Why::Lost)
        } else if !is_known || reading.page(0).is_none() {
            Self::Fatal(Why::UnknownAction)
        } else {
            Self::Required
        }
    }
}

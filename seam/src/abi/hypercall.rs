//! The requests of a TD to Seamark beyond the GHCI: TDG.VP.VMCALL with [`SIGNATURE`] in R10. See `docs/hypercall.md`.

use core::fmt;

/// R10 of a call: the bytes "SEAMARK" from the highest byte down, and the interface version, 1, in the lowest.
pub const SIGNATURE: u64 = u64::from_be_bytes(*b"SEAMARK\x01");

/// A function (R11).
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// Query the capabilities of the host and the rights of the caller.
    Caps = 0,
    /// Find the next TD.
    TdList = 1,
    /// Terminate a TD.
    TdTerminate = 2,
    /// Query the progress of a TD's termination.
    ReclaimStatus = 3,
}

impl Function {
    /// All functions.
    pub const ALL: [Self; 4] = [
        Self::Caps,
        Self::TdList,
        Self::TdTerminate,
        Self::ReclaimStatus,
    ];

    /// Returns the function with this number.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|function| *function as u64 == number)
    }

    /// Returns the name used in the documentation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Caps => "CAPS",
            Self::TdList => "TD_LIST",
            Self::TdTerminate => "TD_TERMINATE",
            Self::ReclaimStatus => "RECLAIM_STATUS",
        }
    }
}

/// Capabilities of the host: bits of [`Function::Caps`]' answer.
pub mod caps {
    /// [`TdTerminate`](super::Function::TdTerminate) is supported.
    pub const TERMINATE: u64 = 1 << 0;
    /// [`TdList`](super::Function::TdList) is supported.
    pub const LIST: u64 = 1 << 1;
    /// [`ReclaimStatus`](super::Function::ReclaimStatus) is supported.
    pub const RECLAIM_STATUS: u64 = 1 << 2;
}

/// The caller may name other TDs: bit 0 of R13 of [`Function::Caps`]' answer.
pub const CONTROL: u64 = 1 << 0;

/// Status in R10.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Success.
    Success = super::ghci::SUCCESS,
    /// An unused register, or an unused bit of a register, is not zero. Nothing was done.
    InvalidOperand = super::ghci::INVALID_OPERAND,
    /// The function does not exist, or R10 has another signature or version. Nothing was done.
    Unsupported = super::ghci::SUBFUNC_UNSUPPORTED,
    /// The caller names another TD and is not configured with `control = true`. Nothing was done.
    NotPermitted = 1 << 63 | 0x1001,
    /// There is no TD with this number. Nothing was done.
    NoSuchTd = 1 << 63 | 0x1002,
    /// The caller asked for its own termination and is still alive, because a CPU did not release one of its vCPUs in
    /// time. It may retry.
    NotEnded = 1 << 63 | 0x1003,
}

impl Status {
    /// All statuses.
    pub const ALL: [Self; 6] = [
        Self::Success,
        Self::InvalidOperand,
        Self::Unsupported,
        Self::NotPermitted,
        Self::NoSuchTd,
        Self::NotEnded,
    ];

    /// Returns the name used in the documentation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "SUCCESS",
            Self::InvalidOperand => "INVALID_OPERAND",
            Self::Unsupported => "UNSUPPORTED",
            Self::NotPermitted => "NOT_PERMITTED",
            Self::NoSuchTd => "NO_SUCH_TD",
            Self::NotEnded => "NOT_ENDED",
        }
    }
}

/// The state of a TD, as reported in answers.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TdState {
    /// Known but not built yet.
    Created = 0,
    /// Being built.
    Building = 1,
    /// Its vCPUs may run.
    Runnable = 2,
    /// None of its vCPUs may run.
    Paused = 3,
    /// Ended, but its HKID is not free yet.
    Terminating = 4,
    /// Its HKID is free; its memory is being reclaimed.
    Teardown = 5,
    /// Nothing of it is left.
    Reclaimed = 6,
}

impl TdState {
    /// All states.
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Building,
        Self::Runnable,
        Self::Paused,
        Self::Terminating,
        Self::Teardown,
        Self::Reclaimed,
    ];

    /// Returns the state with this number.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u64 == number)
    }

    /// Returns the name used in the documentation and on the console.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Building => "building",
            Self::Runnable => "runnable",
            Self::Paused => "paused",
            Self::Terminating => "terminating",
            Self::Teardown => "teardown",
            Self::Reclaimed => "reclaimed",
        }
    }

    /// Returns the state as the complement of "is" in a sentence.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Building => "being built",
            Self::Teardown => "in teardown",
            _ => self.name(),
        }
    }

    /// Returns whether the TD has ended or is ending.
    #[must_use]
    pub const fn is_ending(self) -> bool {
        matches!(self, Self::Terminating | Self::Teardown | Self::Reclaimed)
    }
}

impl fmt::Display for TdState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_map_back_to_names() {
        assert_eq!(SIGNATURE, 0x5345_414D_4152_4B01);
        for (number, function) in (0..).zip(Function::ALL) {
            assert_eq!(function as u64, number);
            assert_eq!(Function::from_number(number), Some(function));
        }
        assert_eq!(Function::from_number(4), None);
        for (number, state) in (0..).zip(TdState::ALL) {
            assert_eq!(TdState::from_number(number), Some(state));
        }
        assert_eq!(TdState::from_number(7), None);
    }
}

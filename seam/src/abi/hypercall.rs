//! What a TD may ask of Seamark beyond the GHCI: TDG.VP.VMCALL with [`SIGNATURE`] in R10. See `docs/hypercall.md`.

/// R10 of a call: the bytes "SEAMARK" from the highest on, and the version of what is said here, 1, in the lowest.
pub const SIGNATURE: u64 = u64::from_be_bytes(*b"SEAMARK\x01");

/// A function (R11).
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// What this host can do, and what the caller may.
    Caps = 0,
    /// The next TD.
    TdList = 1,
    /// Ends a TD.
    TdTerminate = 2,
    /// How far a TD's end is.
    ReclaimStatus = 3,
}

impl Function {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Caps,
        Self::TdList,
        Self::TdTerminate,
        Self::ReclaimStatus,
    ];

    /// The function of this number.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|function| *function as u64 == number)
    }

    /// As the documentation calls it.
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

/// What a host can do: bits of [`Function::Caps`]' answer.
pub mod caps {
    /// [`TdTerminate`](super::Function::TdTerminate).
    pub const TERMINATE: u64 = 1 << 0;
    /// [`TdList`](super::Function::TdList).
    pub const LIST: u64 = 1 << 1;
    /// [`ReclaimStatus`](super::Function::ReclaimStatus).
    pub const RECLAIM_STATUS: u64 = 1 << 2;
}

/// The caller may name other TDs: bit 0 of R13 of [`Function::Caps`]' answer.
pub const CONTROL: u64 = 1 << 0;

/// R10 of an answer.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// It was done.
    Success = super::ghci::SUCCESS,
    /// A register that the function does not use, or a bit of one, is not zero. Nothing was done.
    InvalidOperand = super::ghci::INVALID_OPERAND,
    /// There is no such function, or R10 has another signature or version. Nothing was done.
    Unsupported = super::ghci::SUBFUNC_UNSUPPORTED,
    /// The caller is not marked `control = true`, and names another TD. Nothing was done.
    NotPermitted = 1 << 63 | 0x1001,
    /// There is no TD of that number. Nothing was done.
    NoSuchTd = 1 << 63 | 0x1002,
    /// The caller asked for its own end, and lives: a CPU did not let go of its vCPUs in time. It may ask again.
    NotEnded = 1 << 63 | 0x1003,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Success,
        Self::InvalidOperand,
        Self::Unsupported,
        Self::NotPermitted,
        Self::NoSuchTd,
        Self::NotEnded,
    ];

    /// As the documentation calls it.
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

/// Where a TD is in its life, as answers say it.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TdState {
    /// It is known, and was not built yet.
    Created = 0,
    /// It is being built.
    Building = 1,
    /// Its vCPUs may run.
    Runnable = 2,
    /// None of its vCPUs may run.
    Paused = 3,
    /// It has ended, and still has its key.
    Terminating = 4,
    /// Its key is back; its memory is being taken back.
    Teardown = 5,
    /// Nothing of it is left.
    Reclaimed = 6,
}

impl TdState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Building,
        Self::Runnable,
        Self::Paused,
        Self::Terminating,
        Self::Teardown,
        Self::Reclaimed,
    ];

    /// The state of this number.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u64 == number)
    }

    /// As the documentation and the console call it.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_to_names() {
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

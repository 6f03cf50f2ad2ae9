//! Call counters per leaf and outcome. They need no lock: each CPU counts in its own [`Counters`], and readers add them
//! up.

use core::iter::Sum;
use core::ops::AddAssign;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::abi::{Leaf, Operand, Status};
use crate::retry::Reason;

/// The outcome of one SEAMCALL, from the host's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The success class, or an exit from a TD.
    Done,
    /// A resource was busy or short. The call may be repeated.
    Busy,
    /// An interrupt stopped the module. The call can be continued.
    Interrupted,
    /// The module refused a call that the host should not have made.
    Illegal,
}

impl Outcome {
    /// Classifies the `status` that `leaf` returned.
    #[inline]
    pub fn of(leaf: Leaf, status: Status) -> Self {
        if status.is_error() {
            Self::of_error(leaf, status)
        } else {
            Self::Done
        }
    }

    #[cold]
    fn of_error(leaf: Leaf, status: Status) -> Self {
        match status.code() {
            Status::OPERAND_BUSY
            | Status::SYS_BUSY
            | Status::RND_NO_ENTROPY
            | Status::KEY_GENERATION_FAILED
            | Status::PREVIOUS_TLB_EPOCH_BUSY => Self::Busy,
            Status::INTERRUPTED_RESUMABLE | Status::INTERRUPTED_RESTARTABLE => Self::Interrupted,
            // The TD did something that ends the run. This is the guest's fault, not the host's.
            Status::CROSS_TD_FAULT
            | Status::CROSS_TD_TRAP
            | Status::HOST_PRIORITY_BUSY_TIMEOUT
            | Status::NON_RECOVERABLE_TD_WRONG_APIC_MODE
                if leaf == Leaf::VpEnter =>
            {
                Self::Done
            }
            // The answer to a question: the address is in no TDMR.
            Status::OPERAND_ADDR_RANGE_ERROR if leaf == Leaf::PhymemPageRdmd => Self::Done,
            // The answer to a question: the module has no version 1 of the leaf.
            Status::OPERAND_INVALID
                if leaf == Leaf::SysInit && status.detail() == Operand::RAX.0 =>
            {
                Self::Done
            }
            _ => Self::Illegal,
        }
    }
}

/// Counters of one leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafCounts {
    /// Number of calls.
    pub calls: u64,
    /// Number of calls that ended with [`Outcome::Busy`].
    pub busy: u64,
    /// Number of calls that ended with [`Outcome::Interrupted`].
    pub interrupted: u64,
    /// Number of calls that ended with [`Outcome::Illegal`].
    pub illegal: u64,
}

impl AddAssign for LeafCounts {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.busy += other.busy;
        self.interrupted += other.interrupted;
        self.illegal += other.illegal;
    }
}

impl Sum for LeafCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut sum, counts| {
            sum += counts;
            sum
        })
    }
}

/// Counters of one retry reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryCounts {
    /// Number of tries after the first.
    pub retries: u64,
    /// Number of calls given up after more than one try.
    pub given_up: u64,
}

/// Counters of all SEAMCALLs of one CPU. They may be read at any time. Each value is exact, but a set of values is not
/// a consistent snapshot.
#[derive(Debug)]
pub struct Counters {
    leafs: [LeafCells; LEAF_NUMBERS],
    retries: [RetryCells; Reason::ALL.len()],
    faults: AtomicU64,
}

/// One more than the highest leaf number.
const LEAF_NUMBERS: usize = Leaf::ALL[Leaf::ALL.len() - 1] as usize + 1;

#[derive(Debug)]
struct LeafCells {
    calls: AtomicU64,
    busy: AtomicU64,
    interrupted: AtomicU64,
    illegal: AtomicU64,
}

#[derive(Debug)]
struct RetryCells {
    retries: AtomicU64,
    given_up: AtomicU64,
}

impl LeafCells {
    const fn new() -> Self {
        Self {
            calls: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            interrupted: AtomicU64::new(0),
            illegal: AtomicU64::new(0),
        }
    }
}

impl RetryCells {
    const fn new() -> Self {
        Self {
            retries: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// Creates counters that are all zero.
    pub const fn new() -> Self {
        Self {
            leafs: [const { LeafCells::new() }; LEAF_NUMBERS],
            retries: [const { RetryCells::new() }; Reason::ALL.len()],
            faults: AtomicU64::new(0),
        }
    }

    /// Returns the counters of `leaf`.
    pub fn leaf(&self, leaf: Leaf) -> LeafCounts {
        let cells = &self.leafs[leaf as usize];
        LeafCounts {
            calls: cells.calls.load(Relaxed),
            busy: cells.busy.load(Relaxed),
            interrupted: cells.interrupted.load(Relaxed),
            illegal: cells.illegal.load(Relaxed),
        }
    }

    /// Returns the leafs that were called at least once, with their counters.
    pub fn called(&self) -> impl Iterator<Item = (Leaf, LeafCounts)> {
        Leaf::ALL
            .iter()
            .map(|leaf| (*leaf, self.leaf(*leaf)))
            .filter(|(_, counts)| counts.calls > 0)
    }

    /// Returns the sums over all leafs.
    pub fn total(&self) -> LeafCounts {
        Leaf::ALL.iter().map(|leaf| self.leaf(*leaf)).sum()
    }

    /// Returns the counters of `reason`.
    pub fn retry(&self, reason: Reason) -> RetryCounts {
        let cells = &self.retries[reason as usize];
        RetryCounts {
            retries: cells.retries.load(Relaxed),
            given_up: cells.given_up.load(Relaxed),
        }
    }

    /// Returns the number of SEAMCALLs that no module answered.
    pub fn faults(&self) -> u64 {
        self.faults.load(Relaxed)
    }

    #[inline]
    pub(crate) fn count(&self, leaf: Leaf, outcome: Outcome) {
        let cells = &self.leafs[leaf as usize];
        cells.calls.fetch_add(1, Relaxed);
        match outcome {
            Outcome::Done => {}
            Outcome::Busy => _ = cells.busy.fetch_add(1, Relaxed),
            Outcome::Interrupted => _ = cells.interrupted.fetch_add(1, Relaxed),
            Outcome::Illegal => _ = cells.illegal.fetch_add(1, Relaxed),
        }
    }

    pub(crate) fn count_fault(&self) {
        self.faults.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_retry(&self, reason: Reason) {
        self.retries[reason as usize].retries.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_given_up(&self, reason: Reason) {
        self.retries[reason as usize].given_up.fetch_add(1, Relaxed);
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Operand;

    #[test]
    fn what_the_module_refuses_is_illegal_unless_it_asks_to_come_again() {
        let illegal = |status| Outcome::of(Leaf::MngCreate, status) == Outcome::Illegal;
        assert!(illegal(Status::HKID_NOT_FREE));
        assert!(illegal(Status::OPERAND_INVALID.with(Operand::RCX)));
        for status in [
            Status::SUCCESS,
            Status::KEY_CONFIGURED,
            Status::OPERAND_BUSY.with(Operand::KOT),
            Status::INTERRUPTED_RESUMABLE,
            Status::INTERRUPTED_RESTARTABLE,
            Status::RND_NO_ENTROPY,
            Status::KEY_GENERATION_FAILED,
            Status::PREVIOUS_TLB_EPOCH_BUSY,
        ] {
            assert!(!illegal(status), "{status:?}");
        }
    }

    #[test]
    fn an_address_in_no_tdmr_is_an_answer_to_a_question_alone() {
        let status = Status::OPERAND_ADDR_RANGE_ERROR.with(Operand::RCX);
        assert_eq!(Outcome::of(Leaf::PhymemPageRdmd, status), Outcome::Done);
        assert_eq!(Outcome::of(Leaf::MemPageAug, status), Outcome::Illegal);
    }

    #[test]
    fn a_td_that_dies_is_not_the_hosts_fault() {
        for status in [
            Status::NON_RECOVERABLE_TD_WRONG_APIC_MODE.with_detail(31),
            Status::NON_RECOVERABLE_VCPU.with_detail(2),
            Status::HOST_PRIORITY_BUSY_TIMEOUT,
        ] {
            assert_eq!(Outcome::of(Leaf::VpEnter, status), Outcome::Done);
        }
    }

    #[test]
    fn counts_add_up() {
        let counters = Counters::new();
        counters.count(Leaf::MemPageAug, Outcome::Done);
        counters.count(Leaf::MemPageAug, Outcome::Busy);
        counters.count(Leaf::MigStreamCreate, Outcome::Illegal);
        let aug = counters.leaf(Leaf::MemPageAug);
        assert_eq!((aug.calls, aug.busy, aug.illegal), (2, 1, 0));
        assert_eq!(counters.total().calls, 3);
        assert_eq!(counters.total().illegal, 1);
        assert_eq!(counters.called().count(), 2);
    }
}

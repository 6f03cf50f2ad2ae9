//! The retry policy: the statuses that are retried, the number of tries, and the pauses between them.
//!
//! Nothing here waits. The caller supplies [`Wait`] for the pause between two tries: it can serve interrupts, kick
//! vCPUs, let other work run, or end the retries.

use core::ops::ControlFlow;

use crate::abi::{Leaf, Status};

/// The reason why a call may succeed when repeated with the same operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// OPERAND_BUSY: another processor holds a lock of the module.
    Busy,
    /// SYS_BUSY: another processor is in a function that initialises the module.
    SysBusy,
    /// INTERRUPTED_RESTARTABLE: an interrupt is pending on this CPU; nothing was changed.
    Interrupted,
    /// RND_NO_ENTROPY: the CPU's random number generator had no entropy.
    NoEntropy,
    /// KEY_GENERATION_FAILED: PCONFIG had too little entropy for a key.
    KeyGeneration,
    /// PREVIOUS_TLB_EPOCH_BUSY: a vCPU has been in the guest since before the last TDH.MEM.TRACK.
    EpochBusy,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 6] = [
        Self::Busy,
        Self::SysBusy,
        Self::Interrupted,
        Self::NoEntropy,
        Self::KeyGeneration,
        Self::EpochBusy,
    ];

    /// Returns the reason to repeat a call that ended with `status`, or `None` if repeating it unchanged can't help.
    /// This includes INTERRUPTED_RESUMABLE, because resuming takes other operands.
    pub fn of(status: Status) -> Option<Self> {
        match status.code() {
            Status::OPERAND_BUSY => Some(Self::Busy),
            Status::SYS_BUSY => Some(Self::SysBusy),
            Status::INTERRUPTED_RESTARTABLE => Some(Self::Interrupted),
            Status::RND_NO_ENTROPY => Some(Self::NoEntropy),
            Status::KEY_GENERATION_FAILED => Some(Self::KeyGeneration),
            Status::PREVIOUS_TLB_EPOCH_BUSY => Some(Self::EpochBusy),
            _ => None,
        }
    }

    /// Returns the number of tries, including the first, after which a call is given up.
    pub const fn max_tries(self) -> u32 {
        match self {
            // A lock is held for one SEAMCALL, tens of microseconds. This is about 120 milliseconds.
            Self::Busy => 128,
            // LP.INIT runs in parallel on hundreds of processors, but SYS.INIT and KEY.CONFIG are slow. This is a
            // second.
            Self::SysBusy => 1_024,
            // Each one served an interrupt. The bound only stops an interrupt storm.
            Self::Interrupted => 10_000,
            // The generator refills within microseconds unless all CPUs drain it.
            Self::NoEntropy | Self::KeyGeneration => 128,
            // The caller's pause kicks the vCPUs, so a handful of tries would do.
            Self::EpochBusy => 128,
        }
    }

    /// Returns the pause in microseconds after `tries` failed tries, from 1 on. It doubles up to 1,024. An interrupted
    /// call is repeated at once.
    pub const fn pause_us(self, tries: u32) -> u32 {
        match self {
            Self::Interrupted => 0,
            _ => {
                let doublings = tries.saturating_sub(1);
                1 << if doublings < 10 { doublings } else { 10 }
            }
        }
    }

    /// Returns a short name for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::SysBusy => "system busy",
            Self::Interrupted => "interrupted",
            Self::NoEntropy => "no entropy",
            Self::KeyGeneration => "key generation",
            Self::EpochBusy => "TLB epoch busy",
        }
    }
}

/// A pause between two tries of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Leaf that is tried.
    pub leaf: Leaf,
    /// Status of the last try.
    pub status: Status,
    /// Reason for the next try.
    pub reason: Reason,
    /// Number of tries so far, from 1 on.
    pub tries: u32,
    /// Length of the pause in microseconds.
    pub us: u32,
}

/// The caller's action during pauses. It is called with no lock of the module held, on the CPU that tries.
pub trait Wait {
    /// Waits about `pause.us` microseconds, serves pending work, and returns whether to try again.
    fn wait(&self, pause: Pause) -> ControlFlow<()>;
}

impl<W: Wait + ?Sized> Wait for &W {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        (**self).wait(pause)
    }
}

/// Never retries. For callers with better options, such as letting the guest fault again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Never;

impl Wait for Never {
    fn wait(&self, _: Pause) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Operand;

    #[test]
    fn busy_is_worth_another_try_whatever_it_is_about() {
        let busy = Status::OPERAND_BUSY.with(Operand::SEPT_TREE);
        assert_eq!(Reason::of(busy), Some(Reason::Busy));
        assert_eq!(Reason::of(Status::HKID_NOT_FREE), None);
        assert_eq!(Reason::of(Status::INTERRUPTED_RESUMABLE), None);
        assert_eq!(Reason::of(Status::SUCCESS), None);
    }

    #[test]
    fn every_reason_ends_within_two_seconds_of_waiting() {
        for reason in Reason::ALL {
            let total: u64 = (1..reason.max_tries())
                .map(|tries| u64::from(reason.pause_us(tries)))
                .sum();
            assert!(total < 2_000_000, "{reason:?} waits {total} us");
        }
    }

    #[test]
    fn pauses_double_and_then_stay() {
        let pauses = [1, 2, 3, 11, 12, 128].map(|tries| Reason::Busy.pause_us(tries));
        assert_eq!(pauses, [1, 2, 4, 1024, 1024, 1024]);
    }
}

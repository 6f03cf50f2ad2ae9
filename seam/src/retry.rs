//! The one retry policy: which statuses are worth another try, how many, and how long to wait before it.
//!
//! Nothing here waits. The pause between two tries belongs to the caller, who supplies [`Wait`]: it can serve interrupts,
//! kick vCPUs, let other work run, or say that it has waited long enough.

use core::ops::ControlFlow;

use crate::abi::{Leaf, Status};

/// Why a call may succeed when it is repeated with the same operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// OPERAND_BUSY: another processor holds a lock of the module.
    Busy,
    /// SYS_BUSY: another processor is in a function that initialises the module.
    SysBusy,
    /// INTERRUPTED_RESTARTABLE: an interrupt waits for this CPU, and nothing was changed.
    Interrupted,
    /// RND_NO_ENTROPY: the CPU's random number generator had nothing to give.
    NoEntropy,
    /// KEY_GENERATION_FAILED: PCONFIG found too little entropy for a key.
    KeyGeneration,
    /// PREVIOUS_TLB_EPOCH_BUSY: a vCPU is still in the guest since before the last TDH.MEM.TRACK.
    EpochBusy,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::Busy,
        Self::SysBusy,
        Self::Interrupted,
        Self::NoEntropy,
        Self::KeyGeneration,
        Self::EpochBusy,
    ];

    /// The reason to repeat a call that ended with `status`. `None` when repeating it unchanged cannot help;
    /// INTERRUPTED_RESUMABLE is among those, because resuming takes other operands.
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

    /// Tries after which a call is given up, the first one included.
    pub const fn max_tries(self) -> u32 {
        match self {
            // A lock is held for one SEAMCALL, tens of microseconds; this is some 120 milliseconds.
            Self::Busy => 128,
            // LP.INIT on hundreds of processors takes turns with nothing, but SYS.INIT and KEY.CONFIG are slow: a second.
            Self::SysBusy => 1_024,
            // Each one served an interrupt. The bound only stops a storm.
            Self::Interrupted => 10_000,
            // The generator refills within microseconds unless all CPUs drain it.
            Self::NoEntropy | Self::KeyGeneration => 128,
            // The caller's pause kicks the vCPUs, so that a handful would do.
            Self::EpochBusy => 128,
        }
    }

    /// Microseconds to wait after `tries` of them failed: from 1 on, doubling to 1,024. An interrupted call goes on
    /// at once.
    pub const fn pause_us(self, tries: u32) -> u32 {
        match self {
            Self::Interrupted => 0,
            _ => {
                let doublings = tries.saturating_sub(1);
                1 << if doublings < 10 { doublings } else { 10 }
            }
        }
    }

    /// A short name for tables.
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
    /// What is tried.
    pub leaf: Leaf,
    /// How the last try ended.
    pub status: Status,
    /// Why there is another.
    pub reason: Reason,
    /// Tries so far, from 1 on.
    pub tries: u32,
    /// How long to wait, in microseconds.
    pub us: u32,
}

/// How the caller spends the pauses. It is called with no lock of the module held, on the CPU that tries.
pub trait Wait {
    /// Waits about `pause.us` microseconds, serves what is pending, and says whether to try again.
    fn wait(&self, pause: Pause) -> ControlFlow<()>;
}

impl<W: Wait + ?Sized> Wait for &W {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        (**self).wait(pause)
    }
}

/// Never tries twice: for a caller that has better things to do, such as letting the guest run into the fault again.
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

//! The operation state of a TD (OP_STATE), and the leafs that it allows.

use seam::abi::Leaf;

/// The operation state of a TD.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpState {
    Uninitialized = 0,
    Initialized = 1,
    Runnable = 2,
    LiveExport = 3,
    PausedExport = 4,
    PostExport = 5,
    MemoryImport = 6,
    StateImport = 7,
    PostImport = 8,
    LiveImport = 9,
    FailedImport = 10,
}

use OpState::{
    FailedImport, Initialized, LiveExport, LiveImport, MemoryImport, PausedExport, PostExport,
    PostImport, Runnable, StateImport, Uninitialized,
};

impl OpState {
    /// Returns the state with that number, which the module itself wrote.
    #[inline(always)]
    pub fn from_number(number: u32) -> Self {
        match number {
            0 => Uninitialized,
            1 => Initialized,
            2 => Runnable,
            3 => LiveExport,
            4 => PausedExport,
            5 => PostExport,
            6 => MemoryImport,
            7 => StateImport,
            8 => PostImport,
            9 => LiveImport,
            _ => FailedImport,
        }
    }

    /// Returns whether an entry must be blocked, and the TLBs tracked, before it is changed.
    pub fn needs_tracking(self) -> bool {
        matches!(self, Runnable | LiveExport | LiveImport)
    }

    /// Returns whether a removed page leaves a REMOVED entry instead of a FREE one.
    pub fn is_importing(self) -> bool {
        matches!(self, MemoryImport | StateImport | PostImport | LiveImport)
    }

    /// Returns whether `leaf` may be called in this state. Leafs that do not check the state are always allowed.
    ///
    /// Source: TDX module 1.5.01, `op_state_lookup`.
    #[inline(always)]
    pub fn allows(self, leaf: Leaf) -> bool {
        let allowed = match leaf {
            Leaf::MngAddcx | Leaf::MngInit | Leaf::ImportStateImmutable => states(&[Uninitialized]),
            Leaf::MemPageAdd | Leaf::MrExtend | Leaf::MrFinalize | Leaf::VpInit => {
                states(&[Initialized])
            }
            Leaf::VpCreate | Leaf::VpAddcx => states(&[Initialized, StateImport]),
            Leaf::VpEnter => states(&[Runnable, LiveExport, LiveImport]),
            Leaf::MemPageAug => states(&[Initialized, Runnable, LiveExport, LiveImport]),
            Leaf::MemSeptAdd => states(&[
                Initialized,
                Runnable,
                LiveExport,
                MemoryImport,
                StateImport,
                PostImport,
                LiveImport,
            ]),
            Leaf::MemRangeBlock
            | Leaf::MemRangeUnblock
            | Leaf::MemPageRelocate
            | Leaf::MemPageDemote
            | Leaf::MemPagePromote => states(&[
                Initialized,
                Runnable,
                LiveExport,
                PausedExport,
                PostExport,
                PostImport,
                LiveImport,
            ]),
            Leaf::MemPageRemove => states(&[
                Initialized,
                Runnable,
                LiveExport,
                PausedExport,
                PostExport,
                PostImport,
                LiveImport,
                FailedImport,
            ]),
            Leaf::MngWr | Leaf::MemWr | Leaf::VpWr => states(&[
                Initialized,
                Runnable,
                LiveExport,
                MemoryImport,
                StateImport,
                PostImport,
                LiveImport,
                FailedImport,
            ]),
            Leaf::MemTrack => return !matches!(self, Uninitialized | FailedImport),
            Leaf::MngRd | Leaf::MemRd | Leaf::VpRd | Leaf::MemSeptRd | Leaf::MemSeptRemove => {
                return self != Uninitialized;
            }
            Leaf::ServtdBind => states(&[
                Uninitialized,
                Initialized,
                Runnable,
                LiveExport,
                PostImport,
                LiveImport,
            ]),
            Leaf::ServtdPrebind => states(&[Uninitialized, Initialized]),
            Leaf::MigStreamCreate => states(&[Uninitialized, Initialized, Runnable]),
            Leaf::ExportAbort | Leaf::ExportMem => states(&[LiveExport, PausedExport, PostExport]),
            Leaf::ExportBlockw | Leaf::ExportPause => states(&[LiveExport]),
            Leaf::ExportRestore => states(&[Runnable]),
            Leaf::ExportTrack => states(&[LiveExport, PausedExport]),
            Leaf::ExportStateImmutable => states(&[Runnable, LiveImport]),
            Leaf::ExportStateTd | Leaf::ExportStateVp => states(&[PausedExport]),
            Leaf::ExportUnblockw => states(&[Runnable, LiveExport, PausedExport, PostExport]),
            Leaf::ImportAbort => states(&[MemoryImport, StateImport, PostImport, FailedImport]),
            Leaf::ImportEnd => states(&[PostImport, LiveImport]),
            Leaf::ImportCommit => states(&[PostImport]),
            Leaf::ImportMem => states(&[MemoryImport, StateImport, PostImport, LiveImport]),
            Leaf::ImportTrack => states(&[MemoryImport, StateImport]),
            Leaf::ImportStateTd => states(&[MemoryImport]),
            Leaf::ImportStateVp => states(&[StateImport]),
            _ => return true,
        };
        allowed & states(&[self]) != 0
    }
}

/// Returns a mask with one bit for each of the states.
#[inline(always)]
const fn states(states: &[OpState]) -> u16 {
    let (mut bits, mut i) = (0, 0);
    while i < states.len() {
        bits |= 1 << states[i] as u16;
        i += 1;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_added_before_finalize_and_augmented_also_after() {
        assert!(Initialized.allows(Leaf::MemPageAdd) && !Runnable.allows(Leaf::MemPageAdd));
        assert!(Initialized.allows(Leaf::MemPageAug) && Runnable.allows(Leaf::MemPageAug));
        assert!(!Uninitialized.allows(Leaf::MemTrack));
    }

    #[test]
    fn tracking_is_needed_only_where_the_guest_may_run() {
        for number in 0..=10 {
            let state = OpState::from_number(number);
            assert_eq!(state.needs_tracking(), state.allows(Leaf::VpEnter));
            assert_eq!(state as u32, number);
        }
    }
}

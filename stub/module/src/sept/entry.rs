//! One S-EPT entry: its bits, its states, its lock.

use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::{Leaf, PAGE_MASK, SeptState, level_bytes};

use crate::lock::Busy;
use crate::{Change, Release};

pub(super) const RWX: u64 = 0b111;
pub(super) const MEMORY_TYPE: u64 = 0b111 << 3;
pub(super) const WRITE_BACK: u64 = 6 << 3;
pub(super) const IGNORE_PAT: u64 = 1 << 6;
pub(super) const LEAF: u64 = 1 << 7;
const DIRTY: u64 = 1 << 9;
pub(super) const EXECUTE_USER: u64 = 1 << 10;
const LOCKED: u64 = 1 << 11;
const HOST_PRIORITY: u64 = 1 << 52;
const EXPORTED: u64 = 1 << 53;
const BLOCKED_W: u64 = 1 << 54;
pub(super) const BLOCKED: u64 = 1 << 55;
const PENDING: u64 = 1 << 56;
const ALIASED_SHIFT: u32 = 58;
pub(super) const SUPPRESS_VE: u64 = 1 << 63;

/// The bits that together encode the state.
const STATE: u64 = DIRTY | IGNORE_PAT | LEAF | PENDING | BLOCKED | BLOCKED_W | EXPORTED;
/// Number of 4 KiB parts of a 2 MiB page that the guest has accepted, in address bits unused by such a page.
const ACCEPT_COUNTER: u64 = 0x1ff << 12;

/// The bits of a leaf entry that the host may see. Those of other entries follow.
const SHOWN_LEAF: u64 = RWX | MEMORY_TYPE | PAGE_MASK | IGNORE_PAT | LEAF | SUPPRESS_VE;
const SHOWN_NON_LEAF: u64 = RWX | LEAF;

const STATES: [(SeptState, u64); 16] = [
    (SeptState::Free, BLOCKED | BLOCKED_W | EXPORTED),
    (SeptState::Removed, BLOCKED | BLOCKED_W),
    (SeptState::NonLeafMapped, 0),
    (SeptState::NonLeafBlocked, BLOCKED),
    (SeptState::Mapped, PAGE),
    (SeptState::Blocked, PAGE | BLOCKED),
    (SeptState::BlockedW, PAGE | BLOCKED_W),
    (SeptState::ExportedBlockedW, PAGE | BLOCKED_W | EXPORTED),
    (SeptState::ExportedDirty, PAGE | EXPORTED | DIRTY),
    (
        SeptState::ExportedDirtyBlockedW,
        PAGE | BLOCKED_W | EXPORTED | DIRTY,
    ),
    (SeptState::Pending, PAGE | PENDING),
    (SeptState::PendingBlocked, PAGE | PENDING | BLOCKED),
    (SeptState::PendingBlockedW, PAGE | PENDING | BLOCKED_W),
    (
        SeptState::PendingExportedBlockedW,
        PAGE | PENDING | BLOCKED_W | EXPORTED,
    ),
    (
        SeptState::PendingExportedDirty,
        PAGE | PENDING | EXPORTED | DIRTY,
    ),
    (
        SeptState::PendingExportedDirtyBlockedW,
        PAGE | PENDING | BLOCKED_W | EXPORTED | DIRTY,
    ),
];
const PAGE: u64 = IGNORE_PAT | LEAF;

/// The value of an S-EPT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// An unmapped entry.
    pub const FREE: Self = Self(BLOCKED | BLOCKED_W | EXPORTED | SUPPRESS_VE);

    /// Returns an entry for a mapped page that the guest may read, write and execute.
    pub fn mapped(pa: u64) -> Self {
        Self::leaf(pa, SeptState::Mapped, RWX)
    }

    /// Returns an entry for a page that the guest has yet to accept.
    pub fn pending(pa: u64) -> Self {
        Self::leaf(pa, SeptState::Pending, 0)
    }

    fn leaf(pa: u64, state: SeptState, permissions: u64) -> Self {
        Self(pa & PAGE_MASK | permissions | WRITE_BACK | SUPPRESS_VE | bits_of(state))
    }

    /// Returns an entry for a page table.
    pub fn table(pa: u64) -> Self {
        Self(pa & PAGE_MASK | RWX | SUPPRESS_VE)
    }

    /// Returns the state of the entry.
    pub fn state(self) -> SeptState {
        STATES
            .iter()
            .find(|(_, bits)| self.0 & STATE == *bits)
            .map_or(SeptState::Free, |(state, _)| *state)
    }

    fn with_state(self, state: SeptState) -> Self {
        Self(self.0 & !STATE | bits_of(state) | SUPPRESS_VE)
    }

    /// Returns whether it maps a page. FREE and REMOVED entries do not.
    pub const fn is_leaf(self) -> bool {
        self.0 & LEAF != 0
    }

    /// Returns whether the processor's walk would continue through it.
    pub const fn is_present(self) -> bool {
        self.0 & RWX != 0
    }

    /// Returns whether its range is blocked.
    pub fn is_blocked(self) -> bool {
        use SeptState::{Blocked, NonLeafBlocked, PendingBlocked};
        matches!(self.state(), NonLeafBlocked | Blocked | PendingBlocked)
    }

    /// Returns whether the guest has yet to accept the page.
    pub fn is_pending(self) -> bool {
        self.is_leaf() && self.0 & PENDING != 0
    }

    /// Returns whether it is write-blocked. The entries of nested VMs do not hold this state.
    pub fn is_write_blocked(self) -> bool {
        self.is_leaf() && self.0 & BLOCKED_W != 0
    }

    /// Returns whether TLBs may hold a translation derived from it.
    pub fn needs_tracking(self) -> bool {
        !matches!(
            self.state(),
            SeptState::Free
                | SeptState::Removed
                | SeptState::ExportedBlockedW
                | SeptState::PendingExportedBlockedW
        )
    }

    /// Returns whether the S-EPT of nested VM `vm` (1 to 3) has an entry for the same range.
    pub const fn is_aliased(self, vm: u32) -> bool {
        self.0 >> (ALIASED_SHIFT + vm - 1) & 1 != 0
    }

    /// Returns the entry with an alias in the S-EPT of nested VM `vm`.
    pub const fn with_alias(self, vm: u32) -> Self {
        Self(self.0 | 1 << (ALIASED_SHIFT + vm - 1))
    }

    /// Returns the entry without an alias in the S-EPT of nested VM `vm`.
    pub const fn without_alias(self, vm: u32) -> Self {
        Self(self.0 & !(1 << (ALIASED_SHIFT + vm - 1)))
    }

    /// Returns the page table's address.
    pub const fn table_pa(self) -> u64 {
        self.0 & PAGE_MASK
    }

    /// Returns the address of the page that it maps at `level`.
    pub const fn page_pa(self, level: u8) -> u64 {
        self.0 & PAGE_MASK & !(level_bytes(level) - 1)
    }

    /// Returns the same entry for another page.
    pub const fn with_pa(self, pa: u64) -> Self {
        Self(self.0 & !PAGE_MASK | pa & PAGE_MASK)
    }

    /// Returns the entry without the accept counter, which a 2 MiB page keeps in address bits during acceptance.
    pub fn without_accept_counter(self, level: u8) -> Self {
        let acceptable = matches!(
            self.state(),
            SeptState::Pending | SeptState::PendingExportedDirty
        );
        if acceptable && level == 1 {
            Self(self.0 & !ACCEPT_COUNTER)
        } else {
            self
        }
    }

    /// Returns how many 4 KiB pages of a pending 2 MiB page the guest has accepted so far.
    pub const fn accept_counter(self, level: u8) -> u64 {
        if level == 1 {
            (self.0 & ACCEPT_COUNTER) >> 12
        } else {
            0
        }
    }

    /// Returns the same pending 2 MiB page with this many of its 4 KiB pages accepted.
    pub const fn with_accept_counter(self, pages: u64) -> Self {
        Self(self.0 & !ACCEPT_COUNTER | pages << 12 & ACCEPT_COUNTER)
    }

    /// Returns the entry of a pending page after the guest has accepted it.
    pub fn accepted(self, level: u8) -> Self {
        let entry = self.without_accept_counter(level);
        let state = match entry.state() {
            SeptState::Pending => SeptState::Mapped,
            _ => SeptState::ExportedDirty,
        };
        Self(entry.with_state(state).0 | RWX)
    }

    /// Returns the entry unlocked.
    pub const fn unlocked(self) -> Self {
        Self(self.0 & !LOCKED)
    }

    /// Returns the entry with its range blocked. Its state must be one that TDH.MEM.RANGE.BLOCK accepts.
    pub fn blocked(self, level: u8) -> Self {
        let entry = self.without_accept_counter(level);
        match entry.state() {
            SeptState::NonLeafMapped => Self(entry.with_state(SeptState::NonLeafBlocked).0 & !RWX),
            SeptState::Pending | SeptState::PendingBlockedW => {
                entry.with_state(SeptState::PendingBlocked)
            }
            _ => Self(entry.with_state(SeptState::Blocked).0 & !RWX),
        }
    }

    /// Returns the entry with its range unblocked. An entry that is not blocked is unchanged.
    pub fn unblocked(self) -> Self {
        match self.state() {
            SeptState::NonLeafBlocked => {
                Self(self.with_state(SeptState::NonLeafMapped).0 & !MEMORY_TYPE | RWX)
            }
            SeptState::Blocked => {
                Self(self.with_state(SeptState::Mapped).0 & !MEMORY_TYPE | WRITE_BACK | RWX)
            }
            SeptState::PendingBlocked => self.with_state(SeptState::Pending),
            _ => self,
        }
    }

    /// Returns the entry that remains after its page is removed.
    pub fn after_removal(importing: bool) -> Self {
        if importing {
            Self(SUPPRESS_VE | bits_of(SeptState::Removed))
        } else {
            Self::FREE
        }
    }

    /// Returns RCX and RDX as a release of the module describes an entry of `level` to the host.
    pub fn describe(self, release: Release, level: u8) -> (u64, u64) {
        let state = self.state();
        let shown = match state {
            SeptState::Free => SUPPRESS_VE,
            _ if self.is_leaf() => self.0 & SHOWN_LEAF,
            _ => self.0 & SHOWN_NON_LEAF,
        };
        // A TD may execute what it may read, in user mode too.
        let user = release.does(Change::SHOWS_USER_EXECUTE) && self.is_present();
        let shown = shown | if user { EXECUTE_USER } else { 0 };
        (shown, u64::from(level) | (state as u64) << 8)
    }

    /// Returns whether `leaf` accepts an entry in this state.
    ///
    /// Source: TDX module 1.5.01, `sept_state_lookup`.
    pub fn allows(self, leaf: Leaf) -> bool {
        use SeptState::{
            Blocked, BlockedW, ExportedBlockedW, ExportedDirty, ExportedDirtyBlockedW, Free,
            Mapped, NonLeafBlocked, NonLeafMapped, Pending, PendingBlocked, PendingBlockedW,
            Removed,
        };
        let state = self.state();
        match leaf {
            Leaf::MemPageAdd => state == Free,
            Leaf::MemPageAug => matches!(state, Free | Removed),
            Leaf::MemSeptAdd => matches!(state, Free | NonLeafMapped),
            Leaf::MemSeptRemove | Leaf::MemPagePromote => {
                matches!(state, NonLeafMapped | NonLeafBlocked)
            }
            Leaf::MemPageRelocate => self.is_leaf(),
            Leaf::MemPageRemove => matches!(
                state,
                Mapped | Blocked | BlockedW | Pending | PendingBlocked | PendingBlockedW
            ),
            Leaf::MemPageDemote => matches!(state, Mapped | Blocked | Pending | PendingBlocked),
            Leaf::MemRangeBlock => matches!(
                state,
                NonLeafMapped | Mapped | BlockedW | Pending | PendingBlockedW
            ),
            Leaf::MemRangeUnblock => matches!(state, NonLeafBlocked | Blocked | PendingBlocked),
            Leaf::MrExtend => state == Mapped,
            Leaf::MemRd => matches!(
                state,
                Mapped | BlockedW | ExportedBlockedW | ExportedDirty | ExportedDirtyBlockedW
            ),
            Leaf::MemWr => matches!(state, Mapped | ExportedDirty),
            _ => true,
        }
    }
}

fn bits_of(state: SeptState) -> u64 {
    STATES
        .iter()
        .find(|(other, _)| *other == state)
        .map_or(0, |(_, bits)| *bits)
}

/// An entry in memory.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'m>(pub &'m AtomicU64);

impl<'m> Slot<'m> {
    /// Returns its current value.
    pub fn load(self) -> Entry {
        Entry(self.0.load(Ordering::Acquire))
    }

    /// Replaces its value.
    pub fn store(self, entry: Entry) {
        self.0.store(entry.0, Ordering::Release);
    }

    /// Locks it for the host. If it is locked already, the guest is made to yield it.
    ///
    /// # Errors
    /// [`Busy::Held`].
    pub fn lock(self) -> Result<LockedSlot<'m>, Busy> {
        self.try_lock().map(|()| LockedSlot(self))
    }

    /// Locks it like [`Self::lock`], for callers that call [`Self::unlock`] themselves.
    ///
    /// # Errors
    /// [`Busy::Held`].
    pub fn try_lock(self) -> Result<(), Busy> {
        if self.0.fetch_or(LOCKED, Ordering::Acquire) & LOCKED != 0 {
            self.0.fetch_or(HOST_PRIORITY, Ordering::Relaxed);
            return Err(Busy::Held);
        }
        self.0.fetch_and(!HOST_PRIORITY, Ordering::Relaxed);
        Ok(())
    }

    /// Unlocks it.
    pub fn unlock(self) {
        self.0.fetch_and(!LOCKED, Ordering::Release);
    }

    /// Locks it for a guest.
    ///
    /// # Errors
    /// [`Busy::Held`] if it is locked, [`Busy::HostPriority`] if the host has priority.
    pub fn lock_for_guest(self) -> Result<LockedSlot<'m>, Busy> {
        let before = self.0.fetch_or(LOCKED, Ordering::Acquire);
        if before & LOCKED != 0 {
            return Err(Busy::Held);
        }
        let locked = LockedSlot(self);
        if before & HOST_PRIORITY != 0 {
            return Err(Busy::HostPriority);
        }
        Ok(locked)
    }
}

/// An entry that is locked until this is dropped.
#[derive(Debug)]
pub struct LockedSlot<'m>(Slot<'m>);

impl LockedSlot<'_> {
    /// Returns its current value.
    pub fn load(&self) -> Entry {
        self.0.load()
    }

    /// Replaces its value. It stays locked.
    pub fn store(&self, entry: Entry) {
        self.0.store(Entry(entry.0 & !HOST_PRIORITY | LOCKED));
    }
}

impl Drop for LockedSlot<'_> {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_its_encoding() {
        for (state, bits) in STATES {
            assert_eq!(Entry(bits).state(), state);
        }
    }

    #[test]
    fn a_free_entry_shows_only_suppress_ve() {
        assert_eq!(Entry::FREE.describe(Release::V1_5_01, 3), (1 << 63, 3));
    }

    #[test]
    fn later_releases_show_the_right_to_execute_in_user_mode() {
        let shown = |entry: Entry| entry.describe(Release::V1_5_16, 0).0;
        assert_eq!(shown(Entry::mapped(0x1000)), 0x8000_0000_0000_14f7);
        assert_eq!(shown(Entry::table(0x1000)), 0x407);
        assert_eq!(shown(Entry::pending(0x1000)) & 0xfff, 0xf0);
        assert_eq!(shown(Entry::FREE), 1 << 63);
    }

    #[test]
    fn a_mapped_page_shows_its_address_and_a_table_does_not() {
        let (entry, info) = Entry::mapped(0x1_2345_6000).describe(Release::V1_5_01, 0);
        assert_eq!(entry, 0x8000_0001_2345_60f7);
        assert_eq!(info, 0x0400);
        assert_eq!(
            Entry::table(0x1_2345_6000).describe(Release::V1_5_01, 1),
            (0x7, 0x8401)
        );
        let (entry, info) = Entry::pending(0x1_2340_0000).describe(Release::V1_5_01, 1);
        assert_eq!((entry & 0xfff, info), (0xf0, 0x0201));
    }

    #[test]
    fn blocking_and_unblocking_come_back_to_the_same() {
        for entry in [
            Entry::mapped(0x20_0000),
            Entry::pending(0x20_0000),
            Entry::table(0x20_0000),
        ] {
            let blocked = entry.blocked(0);
            assert!(blocked.is_blocked() && !blocked.is_present());
            assert_eq!(blocked.unblocked(), entry);
            assert!(entry.allows(Leaf::MemRangeBlock) && !entry.allows(Leaf::MemRangeUnblock));
            assert!(blocked.allows(Leaf::MemRangeUnblock) && !blocked.allows(Leaf::MemRangeBlock));
        }
    }

    #[test]
    fn a_locked_entry_is_busy_and_then_the_host_comes_first() {
        let word = AtomicU64::new(Entry::FREE.0);
        let slot = Slot(&word);
        let guest = slot.lock_for_guest().unwrap();
        assert_eq!(slot.lock().err(), Some(Busy::Held));
        drop(guest);
        assert_eq!(slot.lock_for_guest().err(), Some(Busy::HostPriority));
        drop(slot.lock().unwrap());
        assert_eq!(slot.load(), Entry::FREE);
        assert!(slot.lock_for_guest().is_ok());
    }
}

//! TDR: the root page of a TD, encrypted with the global key.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use seam::abi::Status;

use crate::field::{Field, Structure};
use crate::{Machine, PageWords};

/// The fields of a TDR.
pub mod field {
    use super::Field;

    pub const FATAL: Field = Field::u8(0x00);
    pub const NUM_TDCX: Field = Field::u32(0x04);
    pub const CHLDCNT: Field = Field::u64(0x08);
    pub const LIFECYCLE_STATE: Field = Field::u32(0x10);
    /// An array of nine.
    pub const TDCX_PA: Field = Field::u64(0x18);
    /// An array of four.
    pub const TD_UUID: Field = Field::u64(0x60);
    pub const HKID: Field = Field::u16(0x100);
    pub const PKG_CONFIG_BITMAP: Field = Field::u64(0x108);
    /// The version of the handoff data of the module that created the TD.
    pub const HANDOFF_VERSION: Field = Field::u16(0x140);
}

/// The life-cycle state of a TD (LIFECYCLE_STATE).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// It has an HKID, but not a key on every package.
    HkidAssigned = 0,
    /// Its keys are configured: it can be built and run.
    KeysConfigured = 1,
    /// Its vCPUs are flushed; its cache lines are being written back.
    Blocked = 2,
    /// Its HKID is free; its pages can be reclaimed.
    Teardown = 3,
}

/// A TDR page.
#[derive(Clone, Copy, Debug)]
pub struct Tdr<'m> {
    pa: u64,
    words: &'m PageWords,
}

impl<'m> Tdr<'m> {
    /// Returns the TDR at `pa`.
    pub fn at<M: Machine>(machine: &'m M, pa: u64) -> Self {
        Self {
            pa,
            words: machine.page(pa),
        }
    }

    /// Returns its physical address, which identifies the TD.
    pub const fn pa(&self) -> u64 {
        self.pa
    }

    /// Returns whether the TD has a fatal error.
    pub fn is_fatal(&self) -> bool {
        self.get(field::FATAL) != 0
    }

    /// Marks the TD as fatal. From now on it can only be torn down.
    pub fn set_fatal(&self) {
        self.set(field::FATAL, 1);
    }

    /// Returns the TD's life-cycle state.
    pub fn lifecycle(&self) -> Lifecycle {
        match self.get(field::LIFECYCLE_STATE) {
            0 => Lifecycle::HkidAssigned,
            1 => Lifecycle::KeysConfigured,
            2 => Lifecycle::Blocked,
            _ => Lifecycle::Teardown,
        }
    }

    /// Sets the TD's life-cycle state.
    pub fn set_lifecycle(&self, lifecycle: Lifecycle) {
        self.set(field::LIFECYCLE_STATE, lifecycle as u64);
    }

    /// Returns the TD's private KeyID.
    pub fn hkid(&self) -> u32 {
        self.get(field::HKID) as u32
    }

    /// Returns the number of TDCX pages.
    pub fn num_tdcx(&self) -> u32 {
        self.get(field::NUM_TDCX) as u32
    }

    /// Adds `pages` 4 KiB units to the TD's page count.
    pub fn add_children(&self, pages: u64) {
        self.add(field::CHLDCNT, pages);
    }

    /// Subtracts `pages` 4 KiB units from the TD's page count.
    pub fn remove_children(&self, pages: u64) {
        self.sub(field::CHLDCNT, pages);
    }

    /// Returns the number of 4 KiB units that belong to the TD, excluding the TDR.
    pub fn children(&self) -> u64 {
        let reclaimed = self.lanes().map(|lane| self.get(lane.reclaimed()));
        self.get(field::CHLDCNT).wrapping_sub(reclaimed.sum())
    }

    /// Enters the lane of a processor that reclaims the TD's pages.
    pub fn lane(self, lp: u32) -> LaneGuard<'m> {
        let lane = Lane(lp % Lane::COUNT);
        self.add(lane.holders(), 1);
        // Pairs with the fence in `is_being_reclaimed`: an exclusive holder of the TDR sees this lane hold, or this
        // processor, when it looks next, sees the exclusive holder.
        fence(Ordering::SeqCst);
        LaneGuard { tdr: self, lane }
    }

    /// Returns whether a processor is in one of the lanes. The caller holds the TDR exclusively.
    pub fn is_being_reclaimed(&self) -> bool {
        fence(Ordering::SeqCst);
        self.lanes().any(|lane| self.get(lane.holders()) != 0)
    }

    fn lanes(&self) -> impl Iterator<Item = Lane> {
        (0..Lane::COUNT).map(Lane)
    }

    /// Checks that the TD has keys and the TDCS pages needed to work on it.
    ///
    /// # Errors
    /// TD_FATAL, TD_KEYS_NOT_CONFIGURED, TDCS_NOT_ALLOCATED, in this order.
    pub fn check_build_state(&self) -> Result<(), Status> {
        if self.is_fatal() {
            return Err(Status::TD_FATAL);
        }
        if self.lifecycle() != Lifecycle::KeysConfigured {
            return Err(Status::TD_KEYS_NOT_CONFIGURED);
        }
        if self.num_tdcx() < seam::abi::TDCS_PAGES.0 {
            return Err(Status::TDCS_NOT_ALLOCATED);
        }
        Ok(())
    }
}

/// A set of counters for TDH.PHYMEM.PAGE.RECLAIM, in a cache line of its own.
///
/// All processors together reclaim a large TD, a page at a time. If each call changed the TDR's lock and CHLDCNT, the
/// processors would spend most of their time on that contended cache line.
#[derive(Clone, Copy)]
struct Lane(u32);

impl Lane {
    const COUNT: u32 = 32;
    const FIRST: u32 = 0x800;
    const SIZE: u32 = 64;

    /// Returns the field that counts the processors in the lane: shared holders of the TDR.
    const fn holders(self) -> Field {
        Field::u64(Self::FIRST + self.0 * Self::SIZE)
    }

    /// Returns the field that counts the 4 KiB units reclaimed in the lane, which CHLDCNT still includes.
    const fn reclaimed(self) -> Field {
        Field::u64(Self::FIRST + self.0 * Self::SIZE + 8)
    }
}

const _: () = assert!(Lane::FIRST + Lane::COUNT * Lane::SIZE == 4096);

/// A shared hold of the TDR for reclaiming a page.
pub struct LaneGuard<'m> {
    tdr: Tdr<'m>,
    lane: Lane,
}

impl LaneGuard<'_> {
    /// Subtracts `pages` 4 KiB units from the TD's page count.
    pub fn remove_children(&self, pages: u64) {
        self.tdr.add(self.lane.reclaimed(), pages);
    }
}

impl Drop for LaneGuard<'_> {
    fn drop(&mut self) {
        self.tdr.sub(self.lane.holders(), 1);
    }
}

impl<'m> Structure<'m> for Tdr<'m> {
    #[inline(always)]
    fn word(&self, offset: u32) -> &'m AtomicU64 {
        &self.words[offset as usize / 8]
    }
}

//! The S-EPT entry that a leaf works on: holds the tree, locks the entry, and reports errors in registers.

use seam::abi::{GpaLevel, Gprs, Leaf, Operand, Status};

use super::entry::LockedSlot;
use super::{Entry, walk};
use crate::call::Call;
use crate::lock::{Guard, Mode};
use crate::td::{Td, epoch};
use crate::{Machine, Release, operand};

/// An entry that a leaf works on. Dropping it unlocks the entry and releases the tree.
#[derive(Debug)]
pub struct Target<'m> {
    /// The entry's value when it was locked.
    pub entry: Entry,
    /// Its level.
    pub level: u8,
    /// The first guest-physical address that it maps.
    pub gpa: u64,
    release: Release,
    // Released in the order of these fields.
    slot: LockedSlot<'m>,
    _tree: Guard<'m>,
}

impl<'m> Target<'m> {
    /// Checks the address, locks the tree, walks to the entry and locks it.
    ///
    /// # Errors
    /// OPERAND_INVALID with RCX, OPERAND_BUSY with SEPT_TREE; EPT_WALK_FAILED and OPERAND_BUSY with RCX. The last two
    /// return the entry found in RCX and RDX.
    pub fn take<M: Machine>(
        cx: Call<'m, M>,
        td: &Td<'m, M>,
        at: GpaLevel,
        mode: Mode,
        regs: &mut Gprs,
    ) -> Result<Self, Status> {
        let release = cx.module.release;
        if !operand::is_private_gpa(&td.tdcs, at.gpa()) {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX));
        }
        let tree = td
            .tdcs
            .sept_lock()
            .acquire(mode)
            .map_err(|_| Status::OPERAND_BUSY.with(Operand::SEPT_TREE))?;
        let end = walk(cx.machine, &td.tdcs, at.gpa(), at.level());
        if end.level != at.level() {
            (regs.rcx, regs.rdx) = end.entry.describe(release, end.level);
            return Err(Status::EPT_WALK_FAILED.with(Operand::RCX));
        }
        let Ok(slot) = end.slot.lock() else {
            (regs.rcx, regs.rdx) = end.entry.describe(release, end.level);
            return Err(Status::OPERAND_BUSY.with(Operand::RCX));
        };
        Ok(Self {
            entry: slot.load(),
            level: end.level,
            gpa: at.gpa(),
            release,
            slot,
            _tree: tree,
        })
    }

    /// Checks that `leaf` accepts the entry's state.
    ///
    /// # Errors
    /// EPT_ENTRY_STATE_INCORRECT with RCX; RCX and RDX hold the entry.
    pub fn require(&self, leaf: Leaf, regs: &mut Gprs) -> Result<(), Status> {
        if self.entry.allows(leaf) {
            Ok(())
        } else {
            Err(self.refuse(Status::EPT_ENTRY_STATE_INCORRECT, regs))
        }
    }

    /// Returns a status about RCX, and puts the entry into RCX and RDX.
    pub fn refuse(&self, status: Status, regs: &mut Gprs) -> Status {
        (regs.rcx, regs.rdx) = self.entry.describe(self.release, self.level);
        status.with(Operand::RCX)
    }

    /// Returns whether the entry must be blocked, and the TLBs tracked, before it is changed.
    pub fn needs_tracking<M: Machine>(&self, td: &Td<'_, M>) -> bool {
        self.entry.needs_tracking() && td.tdcs.op_state().needs_tracking()
    }

    /// Checks, where required, that the entry is blocked and that no TLB holds it any more. `bepoch` is the epoch in
    /// the PAMT entry of the page that it points to.
    ///
    /// # Errors
    /// GPA_RANGE_NOT_BLOCKED with RCX, and the entry in RCX and RDX; TLB_TRACKING_NOT_DONE with RCX, without the entry.
    pub fn check_tracked<M: Machine>(
        &self,
        td: &Td<'_, M>,
        bepoch: u64,
        regs: &mut Gprs,
    ) -> Result<(), Status> {
        if !self.needs_tracking(td) {
            return Ok(());
        }
        if !self.entry.is_blocked() {
            return Err(self.refuse(Status::GPA_RANGE_NOT_BLOCKED, regs));
        }
        if !epoch::is_tracked(&td.tdcs, bepoch) {
            return Err(Status::TLB_TRACKING_NOT_DONE.with(Operand::RCX));
        }
        Ok(())
    }

    /// Replaces the entry.
    pub fn set(&self, entry: Entry) {
        self.slot.store(entry);
    }
}

//! Blocking and tracking: TDH.MEM.RANGE.BLOCK, RANGE.UNBLOCK, TRACK.

use seam::abi::{Gprs, Leaf, Operand, PageSize, Status};

use super::{page_size, range, take_rcx_rdx};
use crate::call::Call;
use crate::field::Structure;
use crate::lock::Mode;
use crate::sept::{L2Entry, Target, l2_walk};
use crate::td::{Td, epoch, tdcs};
use crate::{Change, Machine, pamt};

/// TDH.MEM.RANGE.BLOCK: prevents new translations of the range at RCX.
pub fn range_block<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (rcx, rdx) = take_rcx_rdx(regs);
    let td = Td::shared(cx, rdx, Operand::RDX, Leaf::MemRangeBlock)?;
    let at = range(rcx, 0, td.tdcs.top_level())?;
    let target = Target::take(cx, &td, at, Mode::Exclusive, regs)?;
    if target.entry.is_blocked() {
        return Err(target.refuse(Status::GPA_RANGE_ALREADY_BLOCKED, regs));
    }
    target.require(Leaf::MemRangeBlock, regs)?;

    // The TD's own entry changes first: a processor that finds a blocked entry of a nested VM then finds the reason
    // there.
    target.set(target.entry.blocked(target.level));
    for vm in td.tdcs.l2_vms() {
        if target.entry.is_aliased(vm)
            && let Ok(slot) = l2_walk(cx.machine, &td.tdcs, vm, target.gpa, target.level)
        {
            L2Entry::load(slot)
                .blocked(target.entry.is_write_blocked())
                .store(slot);
        }
    }
    pamt_entry(cx, &target).set_bepoch(td.tdcs.get(tdcs::field::TD_EPOCH));
    Ok(())
}

/// TDH.MEM.RANGE.UNBLOCK: undoes TDH.MEM.RANGE.BLOCK.
pub fn range_unblock<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (rcx, rdx) = take_rcx_rdx(regs);
    let td = Td::shared(cx, rdx, Operand::RDX, Leaf::MemRangeUnblock)?;
    let at = range(rcx, 0, td.tdcs.top_level())?;
    let target = Target::take(cx, &td, at, Mode::Exclusive, regs)?;
    target.require(Leaf::MemRangeUnblock, regs)?;
    if target.needs_tracking(&td) && !epoch::is_tracked(&td.tdcs, pamt_entry(cx, &target).bepoch())
    {
        let named = if cx.module.release.does(Change::UNBLOCK_NAMES_RCX) {
            Operand::RCX
        } else {
            Operand::SEPT_TREE
        };
        return Err(Status::TLB_TRACKING_NOT_DONE.with(named));
    }

    if !target.entry.is_pending() {
        for vm in td.tdcs.l2_vms() {
            if target.entry.is_aliased(vm)
                && let Ok(slot) = l2_walk(cx.machine, &td.tdcs, vm, target.gpa, target.level)
            {
                L2Entry::load(slot).unblocked().store(slot);
            }
        }
    }
    target.set(target.entry.unblocked());
    Ok(())
}

/// TDH.MEM.TRACK: starts the TD's next TLB-tracking epoch.
pub fn track<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let td = Td::shared(cx, regs.rcx, Operand::RCX, Leaf::MemTrack)?;
    epoch::advance(&td.tdcs)
}

/// Returns the PAMT entry of the page or page table that an entry points to.
fn pamt_entry<'m, M: Machine>(cx: Call<'m, M>, target: &Target<'m>) -> pamt::Entry<'m> {
    if target.entry.is_leaf() {
        let pa = target.entry.page_pa(target.level);
        pamt::entry_of(cx, pa, page_size(target.level))
    } else {
        pamt::entry_of(cx, target.entry.table_pa(), PageSize::Size4K)
    }
}

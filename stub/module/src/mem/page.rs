//! Pages added to and removed from a TD at run time: TDH.MEM.PAGE.AUG, PAGE.REMOVE, PAGE.RELOCATE.

use seam::abi::{Gprs, Leaf, Operand, PAGE_MASK, PageType, Status};

use super::{page_size, range, take_rcx_rdx};
use crate::call::Call;
use crate::lock::Mode;
use crate::operand::Expected;
use crate::sept::{Entry, L2Entry, Target, l2_walk};
use crate::td::Td;
use crate::{Machine, Point, operand, ownership, pamt};

/// TDH.MEM.PAGE.AUG: maps the page in R8 at RCX, pending the guest's acceptance.
pub fn page_aug<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (rcx, rdx) = take_rcx_rdx(regs);
    let td = Td::shared(cx, rdx, Operand::RDX, Leaf::MemPageAug)?;
    let at = range(rcx, 0, 1)?;
    let target = Target::take(cx, &td, at, Mode::Shared, regs)?;
    target.require(Leaf::MemPageAug, regs)?;
    let size = page_size(target.level);
    let expected = Expected {
        size,
        page_type: PageType::Nda,
    };
    let page = operand::sized_page(cx, regs.r8, Operand::R8, Mode::Exclusive, expected)?;
    if target.level == 1 && !pamt::is_2m_free(cx, regs.r8) {
        return Err(Status::PAGE_METADATA_INCORRECT.with(Operand::R8));
    }

    ownership::take(cx, &page, PageType::Reg, td.tdr.pa());
    page.entry().set_bepoch(0);
    target.set(Entry::pending(regs.r8));
    td.tdr.add_children(size.pages());
    Ok(())
}

/// TDH.MEM.PAGE.REMOVE: removes the page at RCX from the TD. RCX returns its address.
pub fn page_remove<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (rcx, rdx) = take_rcx_rdx(regs);
    let td = Td::shared(cx, rdx, Operand::RDX, Leaf::MemPageRemove)?;
    let at = range(rcx, 0, 2)?;
    let target = Target::take(cx, &td, at, Mode::Shared, regs)?;
    target.require(Leaf::MemPageRemove, regs)?;
    let pa = target.entry.page_pa(target.level);
    let size = page_size(target.level);
    let (_page, entry) = pamt::lock_entry_of(cx, pa, size)?;
    target.check_tracked(&td, entry.bepoch(), regs)?;

    for vm in td.tdcs.l2_vms() {
        if target.entry.is_aliased(vm)
            && let Ok(slot) = l2_walk(cx.machine, &td.tdcs, vm, target.gpa, target.level)
        {
            L2Entry::FREE.store(slot);
        }
    }
    target.set(Entry::after_removal(td.tdcs.op_state().is_importing()));
    td.tdr.remove_children(size.pages());
    let hint = ownership::give_back(cx, entry, pa..pa + size.bytes(), &td.tdr);
    regs.rcx = pa | hint;
    Ok(())
}

/// TDH.MEM.PAGE.RELOCATE: moves the page at RCX to the page in R8. RCX returns the old page's address.
pub fn page_relocate<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (rcx, rdx) = take_rcx_rdx(regs);
    let td = Td::shared(cx, rdx, Operand::RDX, Leaf::MemPageRelocate)?;
    let at = range(rcx, 0, 0)?;
    let target = Target::take(cx, &td, at, Mode::Shared, regs)?;
    target.require(Leaf::MemPageRelocate, regs)?;
    let from = target.entry.page_pa(target.level);
    // Only the address bits are compared here. The others are checked with the rest of the operand.
    if from == regs.r8 & (PAGE_MASK | 0xfff) {
        return Err(Status::OPERAND_INVALID.with(Operand::R8));
    }
    let (_from, from_entry) = pamt::lock_entry_of(cx, from, page_size(target.level))?;
    target.check_tracked(&td, from_entry.bepoch(), regs)?;
    let to = operand::private_page(cx, regs.r8, Operand::R8, Mode::Exclusive, PageType::Nda)?;

    ownership::take(cx, &to, PageType::Reg, td.tdr.pa());
    to.entry().set_bepoch(0);
    if !target.entry.is_pending() {
        cx.reached(Point::Movdir64b);
        cx.machine.copy_page(from, regs.r8);
    }
    for vm in td.tdcs.l2_vms() {
        if target.entry.is_aliased(vm)
            && let Ok(slot) = l2_walk(cx.machine, &td.tdcs, vm, target.gpa, target.level)
        {
            let moved = L2Entry::load(slot).with_pa(regs.r8);
            let moved = if target.entry.is_pending() {
                moved
            } else {
                moved.unblocked()
            };
            moved.store(slot);
        }
    }
    target.set(target.entry.with_pa(regs.r8).unblocked());
    let hint = ownership::give_back(cx, from_entry, ownership::page(from), &td.tdr);
    regs.rcx = from | hint;
    Ok(())
}

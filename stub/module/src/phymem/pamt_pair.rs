//! The pages that describe the 4 KiB pages of 2 MiB in a dynamic PAMT: TDH.PHYMEM.PAMT.ADD, TDH.PHYMEM.PAMT.REMOVE.

use seam::abi::{GpaLevel, Gprs, Operand, PAGE_2M, PageSize, PageType, Status};

use crate::Machine;
use crate::call::Call;
use crate::lock::Mode;
use crate::pamt::{self, Held, Pamt};

/// The level of 2 MiB in an operand.
const LEVEL_2M: u8 = 1;

/// Returns the 2 MiB in RCX.
///
/// # Errors
/// OPERAND_INVALID with RAX if no PAMT is dynamic, with RCX if the operand is malformed.
fn range<M: Machine>(cx: Call<'_, M>, rcx: u64) -> Result<u64, Status> {
    if !cx.module.has_dynamic_pamt() {
        return Err(Status::OPERAND_INVALID.with(Operand::RAX));
    }
    let operand = GpaLevel(rcx);
    let pa = operand.gpa();
    let well_formed = operand.is_well_formed() && operand.level() == LEVEL_2M;
    if well_formed && cx.machine.platform().is_plain_page(pa, PAGE_2M) {
        Ok(pa)
    } else {
        Err(Status::OPERAND_INVALID.with(Operand::RCX))
    }
}

/// Locks the entry of the 2 MiB at `pa` exclusively.
///
/// # Errors
/// OPERAND_ADDR_RANGE_ERROR, OPERAND_BUSY, with RCX.
fn take<M: Machine>(cx: Call<'_, M>, pa: u64) -> Result<Held<'_>, Status> {
    Pamt::of(cx.module, pa)
        .ok_or(Status::OPERAND_ADDR_RANGE_ERROR)
        .and_then(|pamt| {
            pamt.walk(cx.machine, pa, Mode::Exclusive, PageSize::Size2M)
                .map_err(|error| error.status())
        })
        .map_err(|status| status.with(Operand::RCX))
}

/// Returns whether the lock is that of a 2 MiB page of this type.
fn is_2m(held: &Held<'_>, page_type: PageType) -> bool {
    held.size() == PageSize::Size2M && held.entry().page_type() == page_type
}

/// TDH.PHYMEM.PAMT.ADD: adds the pages in RDX and R8 for the 2 MiB in RCX.
pub fn pamt_add<M: Machine>(cx: Call<'_, M>, regs: &Gprs) -> Result<(), Status> {
    let pa = range(cx, regs.rcx)?;
    let pair = [regs.rdx, regs.r8];
    let operands = [Operand::RDX, Operand::R8];
    let pamts = [
        pamt::check_pair_page(cx, pair[0], operands[0])?,
        pamt::check_pair_page(cx, pair[1], operands[1])?,
    ];
    let large = take(cx, pa)?;
    if !is_2m(&large, PageType::Nda) {
        return Err(Status::HPA_RANGE_NOT_FREE.with(Operand::RCX));
    }
    pamt::add_pair(cx, &large, pair, pamts, operands)
}

/// TDH.PHYMEM.PAMT.REMOVE: removes the pages of the 2 MiB in RCX. RDX and R8 return them.
pub fn pamt_remove<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let pa = range(cx, regs.rcx)?;
    let large = take(cx, pa)?;
    if !is_2m(&large, PageType::Pamt) {
        return Err(Status::NO_PAMT_PAGE_PAIR.with(Operand::RCX));
    }
    [regs.rdx, regs.r8] = pamt::remove_pair(cx, &large)?;
    Ok(())
}

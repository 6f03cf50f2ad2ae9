//! TDH.PHYMEM.PAGE.RECLAIM: returns the pages of a torn-down TD to the host.

use seam::abi::{Gprs, Operand, PageType, Status};

use super::page::take_page;
use crate::call::Call;
use crate::lock::Mode;
use crate::td::{Lifecycle, Tdr, reclaim_lane};
use crate::{Machine, ownership};

/// TDH.PHYMEM.PAGE.RECLAIM: RCX returns the page's former type, RDX its owner, R8 its size. R9
/// has a flag if no other page of its 2 MiB is in use.
pub fn page_reclaim<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (pa, held) = take_page(cx, Mode::Exclusive, regs)?;
    let entry = held.entry();
    let page_type = entry.page_type();
    if matches!(page_type, PageType::Nda | PageType::Rsvd) {
        return Err(Status::PAGE_METADATA_INCORRECT.with(Operand::RCX));
    }
    if page_type == PageType::Tdr && Tdr::at(cx.machine, pa).is_being_reclaimed() {
        return Err(Status::OPERAND_BUSY.with(Operand::RCX));
    }
    let owner = entry.owner();
    regs.rcx = page_type as u64;
    regs.rdx = owner;
    regs.r8 = held.size() as u64;
    if !pa.is_multiple_of(held.size().bytes()) {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    if page_type == PageType::Tdr {
        let tdr = Tdr::at(cx.machine, pa);
        check_teardown(&tdr)?;
        if tdr.children() != 0 {
            return Err(Status::TD_ASSOCIATED_PAGES_EXIST);
        }
        regs.r9 = ownership::give_back(cx, entry, held.pages(), &tdr);
    } else {
        let (lane, tdr) = reclaim_lane(cx, owner)?;
        check_teardown(&tdr)?;
        lane.remove_children(held.size().pages());
        regs.r9 = ownership::give_back(cx, entry, held.pages(), &tdr);
    }
    Ok(())
}

fn check_teardown(tdr: &Tdr<'_>) -> Result<(), Status> {
    if tdr.lifecycle() == Lifecycle::Teardown {
        Ok(())
    } else {
        Err(Status::LIFECYCLE_STATE_INCORRECT)
    }
}

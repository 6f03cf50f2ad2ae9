//! TDH.MEM.PAGE.ADD: adds a page with initial contents, whose addition extends MRTD.

use seam::abi::{Gprs, Leaf, Operand, PAGE_4K, PageType, Status};

use super::{range, take_rcx_rdx};
use crate::call::Call;
use crate::lock::Mode;
use crate::mr::Mrtd;
use crate::sept::{Entry, walk};
use crate::td::Td;
use crate::{Machine, Point, operand, ownership};

/// TDH.MEM.PAGE.ADD: RCX address and level, RDX TDR, R8 the new page, R9 the page to copy.
pub fn page_add<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (rcx, rdx) = take_rcx_rdx(regs);
    let td = Td::exclusive(cx, rdx, Operand::RDX, Leaf::MemPageAdd)?;
    let gpa = range(rcx, 0, 0)?.gpa();
    if !operand::is_private_gpa(&td.tdcs, gpa) {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    // The exclusive TDR lock keeps other calls off the tree and its entries.
    let end = walk(cx.machine, &td.tdcs, gpa, 0);
    let refusal = if end.level != 0 {
        Some(Status::EPT_WALK_FAILED)
    } else if !end.entry.allows(Leaf::MemPageAdd) {
        Some(Status::EPT_ENTRY_STATE_INCORRECT)
    } else {
        None
    };
    if let Some(status) = refusal {
        (regs.rcx, regs.rdx) = end.entry.describe(cx.module.release, end.level);
        return Err(status.with(Operand::RCX));
    }
    let source = operand::shared_buffer(cx, regs.r9, PAGE_4K, Operand::R9)?;
    let page = operand::private_page(cx, regs.r8, Operand::R8, Mode::Exclusive, PageType::Nda)?;

    cx.module.check_measurement(&td.tdcs)?;
    ownership::take(cx, &page, PageType::Reg, td.tdr.pa());
    page.entry().set_bepoch(0);
    cx.reached(Point::Movdir64b);
    cx.machine.copy_page(source, regs.r8);
    end.slot.store(Entry::mapped(regs.r8));
    Mrtd::resume(cx, &td.tdcs).extend_page_add(gpa);
    td.tdr.add_children(1);
    Ok(())
}

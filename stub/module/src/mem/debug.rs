//! Access to a debug TD's memory: TDH.MEM.RD, TDH.MEM.WR.

use seam::abi::{Gprs, Leaf, Operand, Status, level_bytes};

use super::take_rcx_rdx;
use crate::call::Call;
use crate::lock::Mode;
use crate::sept::walk;
use crate::td::Td;
use crate::{Machine, memory, operand};

/// TDH.MEM.RD: returns the 8 bytes at guest-physical address RCX in R8.
pub fn rd<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    access(cx, Leaf::MemRd, None, regs)
}

/// TDH.MEM.WR: replaces the 8 bytes at guest-physical address RCX by R8; R8 returns the previous value.
pub fn wr<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    access(cx, Leaf::MemWr, Some(regs.r8), regs)
}

fn access<M: Machine>(
    cx: Call<'_, M>,
    leaf: Leaf,
    write: Option<u64>,
    regs: &mut Gprs,
) -> Result<(), Status> {
    let (gpa, rdx) = take_rcx_rdx(regs);
    regs.r8 = 0;
    let td = Td::shared(cx, rdx, Operand::RDX, leaf)?;
    if !td.tdcs.is_debug() {
        return Err(Status::TD_NON_DEBUG);
    }
    if !gpa.is_multiple_of(8) {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    let _tree = td
        .tdcs
        .sept_lock()
        .acquire(Mode::Shared)
        .map_err(|_| Status::OPERAND_BUSY.with(Operand::SEPT_TREE))?;
    if !operand::is_private_gpa(&td.tdcs, gpa) {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    let end = walk(cx.machine, &td.tdcs, gpa, 0);
    let mut refuse = |status: Status, entry: crate::sept::Entry| {
        (regs.rcx, regs.rdx) = entry.describe(cx.module.release, end.level);
        status.with(Operand::RCX)
    };
    if !end.entry.is_leaf() || !end.entry.is_present() {
        return Err(refuse(Status::EPT_ENTRY_NOT_PRESENT, end.entry));
    }
    let Ok(locked) = end.slot.lock() else {
        return Err(refuse(Status::OPERAND_BUSY, end.entry));
    };
    let entry = locked.load();
    if !entry.allows(leaf) {
        return Err(refuse(Status::EPT_ENTRY_STATE_INCORRECT, entry));
    }
    let pa = entry.page_pa(end.level) + gpa % level_bytes(end.level);
    regs.r8 = memory::read(cx.machine, pa);
    if let Some(value) = write {
        memory::write(cx.machine, pa, value);
    }
    Ok(())
}

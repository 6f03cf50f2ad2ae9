//! TDH.MEM.SEPT.RD: the parts of an S-EPT entry that the host may see.

use seam::abi::{Gprs, Leaf, Operand, SeptState, Status};

use super::{range, take_rcx_rdx};
use crate::Machine;
use crate::call::Call;
use crate::lock::Mode;
use crate::sept::{L2Entry, Target, l2_walk};
use crate::td::Td;

/// Flag in the TDR operand that requests the attributes of nested VMs.
const READ_L2_ATTRIBUTES: u64 = 1 << 0;

/// TDH.MEM.SEPT.RD: RCX returns the entry, RDX its level and state. R8 returns the attributes of a debug TD's nested
/// VMs if requested.
pub fn sept_rd<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (rcx, rdx) = take_rcx_rdx(regs);
    let with_attributes = rdx & READ_L2_ATTRIBUTES != 0;
    let td = Td::shared(cx, rdx & !READ_L2_ATTRIBUTES, Operand::RDX, Leaf::MemSeptRd)?;
    if with_attributes && !td.tdcs.is_debug() {
        return Err(Status::OPERAND_INVALID.with(Operand::RDX));
    }
    let at = range(rcx, 0, td.tdcs.top_level())?;
    let target = Target::take(cx, &td, at, Mode::Shared, regs)?;
    if with_attributes {
        regs.r8 = td
            .tdcs
            .l2_vms()
            .filter(|vm| target.entry.state() != SeptState::Free && target.entry.is_aliased(*vm))
            .filter_map(|vm| {
                let slot = l2_walk(cx.machine, &td.tdcs, vm, target.gpa, target.level).ok()?;
                let attributes = L2Entry::load(slot).attributes(target.entry.is_write_blocked());
                Some(attributes << (16 * vm))
            })
            .fold(0, |all, one| all | one);
    }
    (regs.rcx, regs.rdx) = target.entry.describe(cx.module.release, target.level);
    Ok(())
}

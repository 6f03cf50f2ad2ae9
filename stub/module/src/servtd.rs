//! TDH.SERVTD.*: service TDs. Only the error paths of the real module are implemented; no binding is ever made.

use seam::abi::{Gprs, Leaf, Operand, Status};

use crate::Machine;
use crate::call::Call;
use crate::lock::Mode;
use crate::operand;
use crate::td::{Td, lock_op_state, op_state_incorrect};

/// Service TD slots of a TD.
const SLOTS: u64 = 1;
/// The only type of service TD that the module knows: a migration TD.
const MIGRATION_TD: u64 = 0;
/// Defined bits of the attributes operand: instance binding, and the parts of TDINFO that are not compared.
const ATTRIBUTES: u64 = 1 << 0 | 0x7ff << 32;

/// TDH.SERVTD.BIND: RCX target, RDX service TD, R8 slot, R9 type, R10 attributes.
pub fn bind<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (target, service) = (regs.rcx, regs.rdx);
    let binding = (regs.r8, regs.r9, regs.r10);
    (regs.rcx, regs.r10, regs.r11, regs.r12, regs.r13) = (0, 0, 0, 0, 0);
    if target == service {
        return Err(Status::OPERAND_INVALID.with(Operand::RDX));
    }
    let _target = Td::shared(cx, target, Operand::RCX, Leaf::ServtdBind)?;
    let (_held, root) = operand::tdr(cx, service, Operand::RDX, Mode::Shared)?;
    let (tdcs, _op_state) = lock_op_state(cx, root, Leaf::ServtdBind)?;
    check_binding(binding)?;
    Err(op_state_incorrect(cx, tdcs.op_state()))
}

/// TDH.SERVTD.PREBIND: RCX target, RDX address of the service TD's hash, R8 slot, R9 type, R10 attributes.
pub fn prebind<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let target = Td::shared(cx, regs.rcx, Operand::RCX, Leaf::ServtdPrebind)?;
    operand::shared_buffer(cx, regs.rdx, 64, Operand::RDX)?;
    check_binding((regs.r8, regs.r9, regs.r10))?;
    Err(op_state_incorrect(cx, target.tdcs.op_state()))
}

fn check_binding((slot, kind, attributes): (u64, u64, u64)) -> Result<(), Status> {
    if slot >= SLOTS {
        return Err(Status::OPERAND_INVALID.with(Operand::R8));
    }
    if kind != MIGRATION_TD {
        return Err(Status::OPERAND_INVALID.with(Operand::R9));
    }
    if attributes & !ATTRIBUTES != 0 {
        return Err(Status::OPERAND_INVALID.with(Operand::R10));
    }
    Ok(())
}

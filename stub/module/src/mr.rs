//! TDH.MR.*: the measurement of a TD's initial contents.

use seam::abi::{Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;

/// TDH.MR.EXTEND.
pub fn extend<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.MR.FINALIZE.
pub fn finalize<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

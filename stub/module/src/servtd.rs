//! TDH.SERVTD.*: service TDs.

use seam::abi::{Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;

/// TDH.SERVTD.BIND.
pub fn bind<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.SERVTD.PREBIND.
pub fn prebind<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

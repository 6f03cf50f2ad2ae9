//! TDH.SYS.SHUTDOWN and TDH.SYS.UPDATE.

use seam::abi::{Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;

/// TDH.SYS.SHUTDOWN.
pub fn shutdown<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.SYS.UPDATE.
pub fn update<M: Machine>(_cx: Call<'_, M>) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

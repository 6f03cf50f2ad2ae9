//! TDH.VP.*: virtual CPUs.

use seam::abi::{Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;

/// TDH.VP.CREATE.
pub fn create<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.VP.ADDCX.
pub fn addcx<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.VP.INIT.
pub fn init<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.VP.ENTER.
pub fn enter<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.VP.FLUSH.
pub fn flush<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

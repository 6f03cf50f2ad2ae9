//! A TD's HKID and keys: TDH.MNG.CREATE, KEY.CONFIG, VPFLUSHDONE, KEY.FREEID.

use seam::abi::{Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;

/// TDH.MNG.CREATE.
pub fn create<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.MNG.KEY.CONFIG.
pub fn key_config<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.MNG.VPFLUSHDONE.
pub fn vpflushdone<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.MNG.KEY.FREEID.
pub fn key_freeid<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

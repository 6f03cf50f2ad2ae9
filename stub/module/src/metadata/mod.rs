//! Metadata: fields by id, read and written.

use seam::abi::{Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;

/// TDH.SYS.INFO.
pub fn sys_info<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.SYS.RD.
pub fn sys_rd<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.SYS.RDALL.
pub fn sys_rdall<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.MNG.RD.
pub fn mng_rd<M: Machine>(_cx: Call<'_, M>, _version: u8, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.MNG.WR.
pub fn mng_wr<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.VP.RD.
pub fn vp_rd<M: Machine>(_cx: Call<'_, M>, _version: u8, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

/// TDH.VP.WR.
pub fn vp_wr<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

//! TDH.SYS.CONFIG: the TDMRs and the global HKID.

use seam::abi::{Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;

/// TDH.SYS.CONFIG.
pub fn config<M: Machine>(_cx: Call<'_, M>, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

//! TDH.EXPORT.*, TDH.IMPORT.*, TDH.MIG.*: a TD on its way to another platform.

use seam::abi::{Gprs, Leaf, Operand, Status};

use crate::Machine;
use crate::call::Call;

/// Every migration leaf.
pub fn refuse<M: Machine>(_cx: Call<'_, M>, _leaf: Leaf, _regs: &mut Gprs) -> Result<(), Status> {
    Err(Status::OPERAND_INVALID.with(Operand::RAX))
}

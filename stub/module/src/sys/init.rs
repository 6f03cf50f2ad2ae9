//! TDH.SYS.INIT: once, on any processor, before everything else.

use seam::abi::{Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;
use crate::lock::Mode;
use crate::module::SysState;

/// What TDH.SYS.INIT saw of the machine, and TDH.SYS.LP.INIT compares every processor with.
#[derive(Debug)]
pub struct Sample {}

/// TDH.SYS.INIT: checks the machine and opens the module.
pub fn init<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let attributes = regs.rcx;
    (regs.rcx, regs.rdx, regs.r8, regs.r9, regs.r10) = (0, 0, 0, 0, 0);
    if attributes != 0 {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    let _global = cx.module.lock_global(Mode::Exclusive)?;
    if cx.module.state() != SysState::InitPending {
        return Err(Status::SYS_INIT_NOT_PENDING);
    }
    cx.native();
    cx.module.sample.call_once(|| Sample {});
    cx.module.set_state(SysState::InitDone);
    Ok(())
}

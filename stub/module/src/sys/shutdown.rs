//! TDH.SYS.SHUTDOWN and TDH.SYS.UPDATE: the end of the module and the handoff to a new one.

use core::sync::atomic::Ordering;

use seam::abi::{Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;
use crate::lock::Mode;
use crate::module::SysState;

/// The only handoff version that the module supports.
const HANDOFF_VERSION: u64 = 0;

/// TDH.SYS.SHUTDOWN: from here on every leaf except TDH.SYS.LP.SHUTDOWN is refused.
pub fn shutdown<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    if regs.rcx != HANDOFF_VERSION {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    let _global = cx.module.lock_global(Mode::Exclusive)?;
    // A processor that enters after this store is refused; one that entered before is found by the scan.
    cx.module.set_state(SysState::Shutdown);
    let others = cx
        .module
        .lps
        .iter()
        .enumerate()
        .any(|(i, lp)| i != cx.lp as usize && lp.inside.load(Ordering::SeqCst));
    if others {
        cx.module.set_state(SysState::Ready);
        return Err(Status::SYS_BUSY);
    }
    Ok(())
}

/// TDH.SYS.UPDATE: takes over the TDs of the previous module. There is none here, so its handoff data is not valid.
pub fn update<M: Machine>(cx: Call<'_, M>) -> Result<(), Status> {
    let _global = cx.module.lock_global(Mode::Exclusive)?;
    if cx.module.state() != SysState::InitDone || !cx.module.all_lps_initialized() {
        return Err(Status::SYS_STATE_INCORRECT);
    }
    Err(Status::SYS_INVALID_HANDOFF)
}

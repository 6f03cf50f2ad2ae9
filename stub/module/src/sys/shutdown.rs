//! The end of the module, and its successor's beginning: TDH.SYS.SHUTDOWN, TDH.SYS.UPDATE.

use core::sync::atomic::Ordering;

use seam::abi::{Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;
use crate::lock::Mode;
use crate::module::SysState;

/// The one handoff version that the module knows.
const HANDOFF_VERSION: u64 = 0;

/// TDH.SYS.SHUTDOWN: no leaf but TDH.SYS.LP.SHUTDOWN is answered from here on.
pub fn shutdown<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    if regs.rcx != HANDOFF_VERSION {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    let _global = cx.module.lock_global(Mode::Exclusive)?;
    // Whoever enters after this store is turned away; whoever entered before is seen by the scan.
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

/// TDH.SYS.UPDATE: takes over the TDs of the module before. There is none here: its data is not valid.
pub fn update<M: Machine>(cx: Call<'_, M>) -> Result<(), Status> {
    let _global = cx.module.lock_global(Mode::Exclusive)?;
    if cx.module.state() != SysState::InitDone || !cx.module.all_lps_initialized() {
        return Err(Status::SYS_STATE_INCORRECT);
    }
    Err(Status::SYS_INVALID_HANDOFF)
}

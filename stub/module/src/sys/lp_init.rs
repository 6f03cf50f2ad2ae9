//! TDH.SYS.LP.INIT: once on every processor.

use core::sync::atomic::Ordering;

use seam::abi::{Gprs, Status};

use crate::Machine;
use crate::call::Call;
use crate::lock::Mode;
use crate::module::SysState;

/// TDH.SYS.LP.INIT: checks that the calling processor is like the one of TDH.SYS.INIT, and admits it.
pub fn lp_init<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    (regs.rcx, regs.rdx, regs.r8) = (0, 0, 0);
    let _global = cx.module.lock_global(Mode::Shared)?;
    if cx.module.state() != SysState::InitDone {
        return Err(Status::SYS_LP_INIT_NOT_PENDING);
    }
    let lp = cx.module.lp(cx.lp);
    if lp.initialized.load(Ordering::Acquire) {
        return Err(Status::SYS_LP_INIT_DONE);
    }
    lp.initialized.store(true, Ordering::Release);
    cx.module.num_initialized_lps.fetch_add(1, Ordering::AcqRel);
    Ok(())
}

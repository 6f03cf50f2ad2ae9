//! TDH.SYS.SHUTDOWN and TDH.SYS.UPDATE: the end of the module and the handoff to a new one.

use core::sync::atomic::Ordering;

use seam::abi::{Features0, Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;
use crate::lock::Mode;
use crate::module::SysState;

/// TDH.SYS.SHUTDOWN: hands the module's state over to its successor, in the version in RCX. From here on every leaf
/// except TDH.SYS.LP.SHUTDOWN is refused.
pub fn shutdown<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    const VERSION: u64 = 0xFFFF;
    const AVOID_COMPAT_SENSITIVE: u64 = 1 << 16;
    let release = cx.module.release;
    let flags = if release.has(Features0::UPDATE_COMPATIBILITY) {
        AVOID_COMPAT_SENSITIVE
    } else {
        0
    };
    // A release hands over only what its own version of the data holds.
    let version = regs.rcx & VERSION;
    if version != release.handoff_version() || regs.rcx & !(VERSION | flags) != 0 {
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
    let builds = cx.module.builds.load(Ordering::Acquire);
    if regs.rcx & flags != 0 && builds != 0 {
        cx.module.set_state(SysState::Ready);
        return Err(Status::UPDATE_COMPATIBILITY_SENSITIVE.with_detail(builds << 16));
    }
    cx.module.hand_over(version);
    Ok(())
}

/// TDH.SYS.UPDATE: takes over the TDs of the previous module. Version 1 enables the features in R9.
pub fn update<M: Machine>(cx: Call<'_, M>, version: u8, regs: &Gprs) -> Result<(), Status> {
    let _global = cx.module.lock_global(Mode::Exclusive)?;
    if cx.module.state() != SysState::InitDone || !cx.module.all_lps_initialized() {
        return Err(Status::SYS_STATE_INCORRECT);
    }
    let release = cx.module.release;
    let mut handoff = cx.module.handoff.lock();
    let valid = |version| version <= release.handoff_version();
    if !handoff.as_ref().is_some_and(|data| valid(data.version)) {
        return Err(Status::SYS_INVALID_HANDOFF);
    }
    if version > 1 {
        return Err(Status::OPERAND_INVALID.with(Operand::RAX));
    }
    if version > 0 {
        if regs.r9 & !release.features().bits() != 0 {
            return Err(Status::OPERAND_INVALID.with(Operand::R9));
        }
        if regs.r10 != 0 {
            return Err(Status::OPERAND_INVALID.with(Operand::R10));
        }
        let checks = regs.r9 & Features0::UPDATE_COMPATIBILITY.bits() != 0;
        cx.module
            .update_compatibility
            .store(checks, Ordering::Release);
    }
    if let Some(data) = handoff.take() {
        cx.module.take_over(data);
    }
    cx.module.set_state(SysState::Ready);
    Ok(())
}

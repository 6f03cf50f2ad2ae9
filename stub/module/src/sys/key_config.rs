//! TDH.SYS.KEY.CONFIG: the global key, once on every package.

use core::sync::atomic::Ordering;

use seam::abi::{Operand, Status};

use crate::call::Call;
use crate::lock::Mode;
use crate::module::SysState;
use crate::{Machine, PconfigError};

/// TDH.SYS.KEY.CONFIG: programs the global key on the caller's package; the last package makes the module ready.
pub fn key_config<M: Machine>(cx: Call<'_, M>) -> Result<(), Status> {
    let _global = cx.module.lock_global(Mode::Exclusive)?;
    if cx.module.state() != SysState::ConfigDone {
        return Err(Status::SYS_KEY_CONFIG_NOT_PENDING);
    }
    let package = 1 << cx.package();
    let keyed = cx.module.keyed_packages.load(Ordering::Acquire);
    if keyed & package != 0 {
        return Err(Status::KEY_CONFIGURED);
    }
    program_key(cx, cx.module.global_hkid())?;
    cx.module
        .keyed_packages
        .store(keyed | package, Ordering::Release);
    if keyed | package == all_packages(cx) {
        cx.module.set_state(SysState::Ready);
    }
    Ok(())
}

/// Returns a mask with one bit for each package of the machine.
pub fn all_packages<M: Machine>(cx: Call<'_, M>) -> u64 {
    cx.machine
        .platform()
        .lp_to_package
        .iter()
        .fold(0, |packages, package| packages | 1 << package)
}

/// Programs a fresh key for `hkid` on the caller's package.
///
/// # Errors
/// OPERAND_BUSY with KET, KEY_GENERATION_FAILED.
pub fn program_key<M: Machine>(cx: Call<'_, M>, hkid: u32) -> Result<(), Status> {
    cx.pconfig(hkid).map_err(|error| match error {
        PconfigError::Busy => Status::OPERAND_BUSY.with(Operand::KET),
        PconfigError::Entropy => Status::KEY_GENERATION_FAILED,
    })
}

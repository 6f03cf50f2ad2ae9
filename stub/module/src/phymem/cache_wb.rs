//! TDH.PHYMEM.CACHE.WB: writes back the cache lines of flushed HKIDs.

use seam::abi::{Gprs, Operand, Status};

use crate::Machine;
use crate::call::Call;
use crate::lock::Mode;

/// RCX: start a round.
const START: u64 = 0;
/// RCX: resume the round that was interrupted on this package.
const RESUME: u64 = 1;

/// TDH.PHYMEM.CACHE.WB: writes back the caches of the caller's package, by sub-block. It can be interrupted between two
/// sub-blocks.
pub fn cache_wb<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let keys = &cx.module.keys;
    if !matches!(regs.rcx, START | RESUME) {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    let round = keys.write_back(cx.package())?;
    let _kot = keys.lock(Mode::Shared)?;
    let mut sub_block = if regs.rcx == START {
        if !round.begin() {
            return Err(Status::NO_HKID_READY_TO_WBCACHE);
        }
        0
    } else {
        round.resume_at().ok_or(Status::WBCACHE_RESUME_ERROR)?
    };
    let sub_blocks = cx.machine.platform().wbinvd_sub_blocks;
    loop {
        cx.machine.cache_write_back(cx.lp, sub_block);
        sub_block += 1;
        if sub_block >= sub_blocks {
            break;
        }
        if cx.interrupt_pending() {
            round.set_resume_at(sub_block);
            return Err(Status::INTERRUPTED_RESUMABLE);
        }
    }
    round.finish();
    Ok(())
}

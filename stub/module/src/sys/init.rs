//! Module initialisation: TDH.SYS.INIT, once on any processor, and TDH.SYS.LP.INIT, once on each.

use core::sync::atomic::Ordering;

use seam::abi::{Gprs, Operand, Status};

use super::cpuid::Processor;
use super::diagnostics::Diagnostics;
use super::msr;
use crate::call::Call;
use crate::cpuid::{NUM_ROWS, Registers, Table};
use crate::lock::Mode;
use crate::module::SysState;
use crate::{Change, Machine, Platform, Point};

/// The values that TDH.SYS.INIT sampled on its processor. TDH.SYS.LP.INIT requires them on every processor.
#[derive(Debug)]
pub struct Sample {
    first: [u64; msr::FIRST.len()],
    cpuid: [Registers; NUM_ROWS],
    tsc_adjust: u64,
    rest: [u64; msr::REST.len()],
}

/// TDH.SYS.INIT: checks the machine and starts the module. The calling processor is the reference for the others.
/// Version 1 takes in R8 what to do at a fatal error.
pub fn init<M: Machine>(cx: Call<'_, M>, version: u8, regs: &mut Gprs) -> Result<(), Status> {
    let (attributes, diagnostics) = (regs.rcx, regs.r8);
    (regs.rcx, regs.rdx, regs.r8, regs.r9, regs.r10) = (0, 0, 0, 0, 0);
    if version > 1 {
        return Err(Status::OPERAND_INVALID.with(Operand::RAX));
    }
    let _global = cx.module.lock_global(Mode::Exclusive)?;
    if attributes != 0 {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    if cx.module.state() != SysState::InitPending {
        return Err(Status::SYS_INIT_NOT_PENDING);
    }
    let platform = cx.machine.platform();
    let processor = processor(cx, cx.lp);
    let release = cx.module.release;
    msr::check_features(release, &processor.rdmsr)?;
    processor.check(release, regs)?;
    let has_waitpkg = (processor.cpuid)(7, 0)[crate::cpuid::ECX] >> 5 & 1 != 0;
    msr::check_vmx(release, &processor.rdmsr, has_waitpkg)?;
    msr::check_keys(&processor.rdmsr, &platform)?;
    check_cmrs(&platform)?;
    msr::check_smrrs(&processor.rdmsr, &platform)?;
    if cx.rdrand().is_none() {
        return Err(Status::RND_NO_ENTROPY);
    }
    if version > 0 {
        let diagnostics = Diagnostics::from_operand(diagnostics, &platform)
            .ok_or(Status::OPERAND_INVALID.with(Operand::R8))?;
        cx.module.diagnostics.call_once(|| diagnostics);
    }
    cx.native();
    cx.module.sample.call_once(|| Sample {
        first: msr::FIRST.map(&processor.rdmsr),
        tsc_adjust: (processor.rdmsr)(msr::TSC_ADJUST),
        rest: msr::REST.map(|msr| {
            if msr::exists(msr, &processor.rdmsr) {
                (processor.rdmsr)(msr)
            } else {
                0
            }
        }),
        cpuid: processor.sample(),
    });
    cx.module.set_state(SysState::InitDone);
    Ok(())
}

/// TDH.SYS.LP.INIT: checks that the calling processor matches that of TDH.SYS.INIT, and admits it.
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
    check_entropy(cx)?;
    // Drops translations of a previous module, if there was one.
    cx.reached(Point::Invept);
    let sample = cx
        .module
        .sample
        .get()
        .ok_or(Status::SYS_LP_INIT_NOT_PENDING)?;
    let here = processor(cx, cx.lp);
    let compare = |(msr, sampled): (u32, u64)| {
        if (here.rdmsr)(msr) == sampled {
            Ok(())
        } else {
            Err(Status::INCONSISTENT_MSR.with_detail(msr))
        }
    };
    (msr::FIRST.into_iter().zip(sample.first)).try_for_each(compare)?;
    here.compare(&sample.cpuid, regs)?;
    if cx.package() >= seam::abi::MAX_PACKAGES as u32 {
        return Err(Status::INVALID_PKG_ID.with_detail(cx.package()));
    }
    compare((msr::TSC_ADJUST, sample.tsc_adjust))?;
    (msr::REST.into_iter().zip(sample.rest))
        .filter(|(msr, _)| msr::exists(*msr, &here.rdmsr))
        .try_for_each(compare)?;
    if let Some(diagnostics) = cx.module.diagnostics.get() {
        diagnostics.clear(cx.machine);
    }
    lp.initialized.store(true, Ordering::Release);
    cx.module.num_initialized_lps.fetch_add(1, Ordering::AcqRel);
    Ok(())
}

/// Returns a processor's CPUID and MSRs, as the machine reports them.
fn processor<'m, M: Machine>(
    cx: Call<'m, M>,
    lp: u32,
) -> Processor<impl Fn(u32, u32) -> Registers + 'm, impl Fn(u32) -> u64 + 'm> {
    Processor {
        table: Table::of(cx.module.release),
        cpuid: move |leaf, sub_leaf| cx.machine.cpuid(lp, leaf, sub_leaf),
        rdmsr: move |msr| cx.machine.rdmsr(lp, msr),
    }
}

/// Draws the random number that the module requires here.
///
/// # Errors
/// RND_NO_ENTROPY.
fn check_entropy<M: Machine>(cx: Call<'_, M>) -> Result<(), Status> {
    const TRIES: usize = 10;
    let tries = if cx.module.release.does(Change::RETRIES_ENTROPY) {
        TRIES
    } else {
        1
    };
    if (0..tries).any(|_| cx.rdrand().is_some()) {
        Ok(())
    } else {
        Err(Status::RND_NO_ENTROPY)
    }
}

/// Checks that CMRs ascend, consist of whole pages, and lie below the KeyIDs.
///
/// # Errors
/// CMR_LIST_INVALID.
fn check_cmrs(platform: &Platform<'_>) -> Result<(), Status> {
    let mut last_end = 0;
    for &(base, size) in platform.cmrs.iter().filter(|(_, size)| *size != 0) {
        let end = base
            .checked_add(size)
            .filter(|end| platform.without_keyid(end - 1) == end - 1)
            .filter(|_| base.is_multiple_of(4096) && size.is_multiple_of(4096))
            .ok_or(Status::CMR_LIST_INVALID)?;
        if base < last_end {
            return Err(Status::CMR_LIST_INVALID);
        }
        last_end = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cmrs_ascend_in_whole_pages() {
        let check = |cmrs| {
            check_cmrs(&Platform {
                lp_to_package: &[0],
                cmrs,
                max_pa: 52,
                keyid_bits: 6,
                num_mktme_keyids: 31,
                num_tdx_keyids: 32,
                seamrr: (0, 0),
                wbinvd_sub_blocks: 1,
            })
        };
        assert_eq!(check(&[(0x1000, 0x1000), (0x2000, 0x1000)]), Ok(()));
        assert_eq!(
            check(&[(0x2000, 0x1000), (0x1000, 0x1000)]),
            Err(Status::CMR_LIST_INVALID)
        );
        assert_eq!(check(&[(0x1000, 0x800)]), Err(Status::CMR_LIST_INVALID));
        assert_eq!(check(&[(1 << 46, 0x1000)]), Err(Status::CMR_LIST_INVALID));
    }
}

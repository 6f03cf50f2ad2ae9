//! Association of a vCPU with a logical processor: made at the first use, ended by TDH.VP.FLUSH.

use core::sync::atomic::Ordering;

use seam::abi::{Gprs, Operand, Status, TDVPS_PAGES};

use crate::call::Call;
use crate::field::Structure;
use crate::lock::Mode;
use crate::td::tdvps::{NO_LP, field};
use crate::td::{Lifecycle, TdVcpu, Tdcs, Tdvps, VcpuState, tdcs};
use crate::{Change, Machine};

/// Pages that each L2 VM adds to a TDVPS.
const PAGES_PER_L2_VM: u32 = 3;

/// The policy for a vCPU in the disabled state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disabled {
    /// It may be associated, so that it can be read.
    Allowed,
    /// It may not be associated.
    Refused,
}

/// Checks that a vCPU has all its pages, including those for its TD's L2 VMs.
///
/// # Errors
/// TDCX_NUM_INCORRECT.
#[inline(always)]
pub fn check_pages<M: Machine>(tdcs: &Tdcs<'_, M>, tdvps: &Tdvps<'_, M>) -> Result<(), Status> {
    let l2_vms = tdcs.get(tdcs::field::NUM_L2_VMS) as u32;
    if tdvps.num_pages() < TDVPS_PAGES.0 + l2_vms * PAGES_PER_L2_VM {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    Ok(())
}

/// Returns the status for a vCPU in the wrong state.
#[cold]
pub fn state_incorrect<M: Machine>(cx: Call<'_, M>, tdvps: &Tdvps<'_, M>) -> Status {
    if cx.module.release.does(Change::TELLS_VCPU_STATE) {
        Status::VCPU_STATE_INCORRECT.with_detail(tdvps.state() as u32)
    } else {
        Status::VCPU_STATE_INCORRECT
    }
}

/// Associates a vCPU with the calling processor. Returns true if it was not associated before.
///
/// # Errors
/// VCPU_STATE_INCORRECT; VCPU_ASSOCIATED if it is associated with another processor.
#[inline(always)]
pub fn associate<M: Machine>(
    cx: Call<'_, M>,
    tdcs: &Tdcs<'_, M>,
    tdvps: &Tdvps<'_, M>,
    disabled: Disabled,
) -> Result<bool, Status> {
    let usable = match tdvps.state() {
        VcpuState::Ready => true,
        VcpuState::Disabled => disabled == Disabled::Allowed,
        _ => false,
    };
    if !usable {
        return Err(state_incorrect(cx, tdvps));
    }
    let here = u64::from(cx.lp);
    let mut was = NO_LP;
    let taken = tdvps.update(field::ASSOC_LPID, |now| {
        was = now;
        (now == NO_LP || now == here).then_some(here)
    });
    if taken.is_none() {
        return Err(Status::VCPU_ASSOCIATED);
    }
    if was == NO_LP {
        tdcs.add(tdcs::field::NUM_ASSOC_VCPUS, 1);
    }
    Ok(was == NO_LP)
}

/// TDH.VP.FLUSH: RCX = TDVPR. Ends the vCPU's association with its processor.
pub fn flush<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let vcpu = TdVcpu::take(cx, regs.rcx, Operand::RCX, Mode::Exclusive)?;
    if vcpu.tdr.lifecycle() != Lifecycle::KeysConfigured {
        return Err(Status::TD_KEYS_NOT_CONFIGURED);
    }
    let tdcs = Tdcs::of(cx.machine, vcpu.tdr);
    check_pages(&tdcs, &vcpu.tdvps)?;
    if vcpu.tdvps.get(field::ASSOC_LPID) != u64::from(cx.lp) {
        return Err(Status::VCPU_NOT_ASSOCIATED);
    }
    cx.reached(crate::Point::Invept);
    vcpu.tdvps.set(field::ASSOC_LPID, NO_LP);
    tdcs.sub(tdcs::field::NUM_ASSOC_VCPUS, 1);
    cx.module.lp(cx.lp).last_tdvpr.store(0, Ordering::Relaxed);
    Ok(())
}

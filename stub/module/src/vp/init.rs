//! TDH.VP.INIT: makes a vCPU ready to be entered.

use seam::abi::{Gprs, Leaf, Operand, Status};

use super::associate::check_pages;
use super::vmcs;
use crate::Machine;
use crate::call::Call;
use crate::cpuid::{self, EAX};
use crate::field::Structure;
use crate::lock::Mode;
use crate::params::TSC_ADJUST_MSR;
use crate::td::{TdVcpu, Tdcs, VcpuState, lock_op_state, tdcs, tdvps};
use crate::vcpu::{Gpr, Held, Vcpu, fields};

/// The cause of the last TD exit (LAST_TD_EXIT).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastExit {
    /// Other than a TDVMCALL; the guest's instruction did not complete.
    AsyncFault = 0,
    /// Other than a TDVMCALL; the guest's instruction completed.
    AsyncTrap = 1,
    /// A TDVMCALL.
    Vmcall = 2,
}

/// XFAM bit of last-branch records.
const XFAM_LBR: u32 = 15;

/// TDH.VP.INIT: RCX = TDVPR, RDX = initial value of the guest's RCX and R8.
pub fn init<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let taken = TdVcpu::take(cx, regs.rcx, Operand::RCX, Mode::Exclusive)?;
    let (tdcs, _op_state) = lock_op_state(cx, taken.tdr, Leaf::VpInit)?;
    let tdvps = taken.tdvps;
    check_pages(&tdcs, &tdvps)?;
    if tdvps.state() != VcpuState::Uninitialized {
        return Err(Status::VCPU_STATE_INCORRECT);
    }
    let max = tdcs.get(tdcs::field::MAX_VCPUS);
    let index = tdcs.add(tdcs::field::NUM_VCPUS, 1);
    if index >= max {
        tdcs.sub(tdcs::field::NUM_VCPUS, 1);
        return Err(Status::MAX_VCPUS_EXCEEDED);
    }
    tdvps.set(fields::VCPU_INDEX, index);
    // The index stays allocated, as in Intel's module.
    if cx.machine.rdmsr(cx.lp, TSC_ADJUST_MSR) != cx.native().msrs.tsc_adjust {
        return Err(Status::INCONSISTENT_MSR.with_detail(TSC_ADJUST_MSR));
    }
    let xfam = tdcs.get(tdcs::field::XFAM);
    tdvps.set(fields::LAST_EXIT_TSC, cx.machine.rdtsc(cx.lp));
    tdvps.set(fields::XFAM, xfam);
    let vcpu = Vcpu::of(cx.machine, &tdvps);
    set_registers(cx, &tdcs, &vcpu, index, regs.rdx);
    vcpu.set(fields::XCOMP_BV, 1 << 63);
    if xfam >> XFAM_LBR & 1 != 0 {
        vcpu.set_held(Held::LbrDepth, max_lbr_depth(cx));
    }
    tdvps.set(tdvps::field::LAST_TD_EXIT, LastExit::AsyncFault as u64);
    vmcs::fill(cx, taken.tdr, &tdcs, &tdvps, &vcpu);
    tdvps.set(tdvps::field::ASSOC_LPID, cx.lp.into());
    tdcs.add(tdcs::field::NUM_ASSOC_VCPUS, 1);
    tdvps.set_state(VcpuState::Ready);
    Ok(())
}

/// Sets the guest's initial registers, excluding those in the VMCS.
fn set_registers<M: Machine>(
    cx: Call<'_, M>,
    tdcs: &Tdcs<'_, M>,
    vcpu: &Vcpu<'_>,
    index: u64,
    argument: u64,
) {
    let version = cpuid::find(1, 0).map_or(0, |row| cx.native().values[row][EAX]);
    let hidden = tdcs.get(tdcs::field::IA32_SPEC_CTRL_MASK);
    vcpu.set_gpr(Gpr::Rbx, if tdcs.is_wide() { 52 } else { 48 });
    vcpu.set_gpr(Gpr::Rcx, argument);
    vcpu.set_gpr(Gpr::R8, argument);
    vcpu.set_gpr(Gpr::Rdx, version.into());
    vcpu.set_gpr(Gpr::Rsi, index);
    vcpu.set_held(Held::Xcr0, 1);
    vcpu.set_held(Held::Dr6, 0xFFFF_0FF0);
    vcpu.set_held(Held::Fmask, 0x2_0200);
    vcpu.set_held(
        Held::SpecCtrl,
        if cx.native().has_ddpd() { hidden } else { 0 },
    );
}

/// Returns the deepest last-branch record stack: CPUID(1CH).EAX has a bit for each multiple of 8.
fn max_lbr_depth<M: Machine>(cx: Call<'_, M>) -> u64 {
    let depths = cpuid::find(0x1C, 0).map_or(0, |row| cx.native().values[row][EAX] & 0xFF);
    u64::from(
        depths
            .checked_ilog2()
            .map_or(0, |highest| 8 * (highest + 1)),
    )
}

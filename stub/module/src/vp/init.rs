//! TDH.VP.INIT: makes a vCPU ready to be entered.

use seam::abi::{Attributes, Gprs, Leaf, Operand, Status};

use super::associate::{check_pages, state_incorrect};
use super::vmcs;
use crate::call::Call;
use crate::cpuid::EAX;
use crate::field::Structure;
use crate::lock::Mode;
use crate::params::TSC_ADJUST_MSR;
use crate::td::{TdVcpu, Tdcs, VcpuState, lock_op_state, tdcs, tdvps};
use crate::vcpu::{Gpr, Held, Vcpu, fields};
use crate::{Change, Machine};

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

/// TDH.VP.INIT: RCX = TDVPR, RDX = initial value of the guest's RCX and R8; in version 1 R8 = x2APIC id.
pub fn init<M: Machine>(cx: Call<'_, M>, version: u8, regs: &mut Gprs) -> Result<(), Status> {
    let checks_first = cx.module.release.does(Change::STRICT_INIT);
    if checks_first {
        check_tsc_adjust(cx)?;
    }
    if version > 1 {
        return Err(Status::OPERAND_INVALID.with(Operand::RAX));
    }
    // A version with an id compares it with the others of the TD, which must not change meanwhile.
    let tdr_mode = if version > 0 {
        Mode::Exclusive
    } else {
        Mode::Shared
    };
    let taken = TdVcpu::take_with(cx, regs.rcx, Operand::RCX, Mode::Exclusive, tdr_mode)?;
    let (tdcs, _op_state) = lock_op_state(cx, taken.tdr, Leaf::VpInit)?;
    let tdvps = taken.tdvps;
    check_pages(&tdcs, &tdvps)?;
    if tdvps.state() != VcpuState::Uninitialized {
        return Err(state_incorrect(cx, &tdvps));
    }
    let max = tdcs.get(tdcs::field::MAX_VCPUS);
    let index = tdcs.add(tdcs::field::NUM_VCPUS, 1);
    if index >= max {
        tdcs.sub(tdcs::field::NUM_VCPUS, 1);
        return Err(Status::MAX_VCPUS_EXCEEDED);
    }
    tdvps.set(fields::VCPU_INDEX, index);
    if !checks_first {
        // The index stays allocated, as in Intel's module.
        check_tsc_adjust(cx)?;
    }
    if version == 0 {
        tdcs.set(tdcs::field::TOPOLOGY_ENUM_CONFIGURED, 0);
        tdcs.set(tdcs::field::VE_REDUCTION_VALID, 0);
    } else if let Err(status) = set_x2apic_id(&tdcs, index as u32, regs.r8) {
        tdcs.sub(tdcs::field::NUM_VCPUS, 1);
        return Err(status);
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

/// Checks that the time-stamp counter was not changed since TDH.SYS.INIT.
///
/// # Errors
/// INCONSISTENT_MSR.
fn check_tsc_adjust<M: Machine>(cx: Call<'_, M>) -> Result<(), Status> {
    if cx.machine.rdmsr(cx.lp, TSC_ADJUST_MSR) == cx.native().msrs.tsc_adjust {
        Ok(())
    } else {
        Err(Status::INCONSISTENT_MSR.with_detail(TSC_ADJUST_MSR))
    }
}

/// Gives the vCPU `index` this x2APIC id.
///
/// # Errors
/// OPERAND_INVALID with R8; X2APIC_ID_NOT_UNIQUE with the id.
fn set_x2apic_id<M: Machine>(tdcs: &Tdcs<'_, M>, index: u32, id: u64) -> Result<(), Status> {
    let Ok(id) = u32::try_from(id) else {
        return Err(Status::OPERAND_INVALID.with(Operand::R8));
    };
    let of = |vcpu| tdcs.get(tdcs::field::X2APIC_IDS.at(vcpu));
    if (0..index).any(|vcpu| of(vcpu) == u64::from(id)) {
        return Err(Status::X2APIC_ID_NOT_UNIQUE.with_detail(id));
    }
    tdcs.set(tdcs::field::X2APIC_IDS.at(index), id.into());
    Ok(())
}

/// Returns IA32_MISC_ENABLE as a guest reads it: the bits that its configuration determines.
fn misc_enable<M: Machine>(cx: Call<'_, M>, tdcs: &Tdcs<'_, M>) -> u64 {
    const FAST_STRINGS: u32 = 0;
    const PERFMON_AVAILABLE: u32 = 7;
    const BTS_UNAVAILABLE: u32 = 11;
    const PEBS_UNAVAILABLE: u32 = 12;
    const EST: u32 = 16;
    const MONITOR: u32 = 18;
    let native = cx.native();
    let features = vmcs::features(native, tdcs);
    let perfmon = tdcs.get(tdcs::field::ATTRIBUTES) & Attributes::PERFMON.bits() != 0;
    let has = |bit: u32| native.msrs.misc_enable >> bit & 1 != 0;
    [
        (FAST_STRINGS, has(FAST_STRINGS)),
        (PERFMON_AVAILABLE, perfmon),
        (BTS_UNAVAILABLE, has(BTS_UNAVAILABLE)),
        (PEBS_UNAVAILABLE, has(PEBS_UNAVAILABLE) && !perfmon),
        (EST, features.est),
        (MONITOR, features.monitor),
    ]
    .into_iter()
    .fold(0, |value, (bit, set)| value | u64::from(set) << bit)
}

/// Sets the guest's initial registers, excluding those in the VMCS.
fn set_registers<M: Machine>(
    cx: Call<'_, M>,
    tdcs: &Tdcs<'_, M>,
    vcpu: &Vcpu<'_>,
    index: u64,
    argument: u64,
) {
    let native = cx.native();
    let version = native.table.find(1, 0);
    let version = version.map_or(0, |row| native.values[row][EAX]);
    let hidden = tdcs.get(tdcs::field::IA32_SPEC_CTRL_MASK);
    vcpu.set_gpr(Gpr::Rbx, if tdcs.is_wide() { 52 } else { 48 });
    vcpu.set_gpr(Gpr::Rcx, argument);
    vcpu.set_gpr(Gpr::R8, argument);
    vcpu.set_gpr(Gpr::Rdx, version.into());
    vcpu.set_gpr(Gpr::Rsi, index);
    vcpu.set(fields::MISC_ENABLE, misc_enable(cx, tdcs));
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
    let native = cx.native();
    let row = native.table.find(0x1C, 0);
    let depths = row.map_or(0, |row| native.values[row][EAX] & 0xFF);
    u64::from(
        depths
            .checked_ilog2()
            .map_or(0, |highest| 8 * (highest + 1)),
    )
}

//! TDH.VP.ENTER: from the host's call to the guest's first instruction, and back.
//!
//! All code that every call executes is inlined, here and in the functions that it uses: under TCG a call costs more
//! than the work of most of these functions.

use core::num::NonZero;
use core::sync::atomic::Ordering;

use seam::abi::x86::exit_reason;
use seam::abi::{Gprs, Leaf, Operand, PAGE_MASK, Status};

use super::LastExit;
use super::associate::{Disabled, associate, check_pages};
use super::vmcs::features;
use crate::call::Call;
use crate::field::Structure;
use crate::guest::{Inside, TdExit};
use crate::lock::Mode;
use crate::params::TSC_ADJUST_MSR;
use crate::sept;
use crate::td::{TdVcpu, Tdcs, Tdvps, VcpuState, lock_op_state, tdcs, tdvps};
use crate::vcpu::{Gpr, Vcpu, fields};
use crate::{Change, Machine, Point};

/// RCX flag beside the TDVPR's address: the host has dealt with the cause of the last exit; the guest is informed.
const HOST_RECOVERABILITY_HINT: u64 = 1 << 52;
/// RCX flag: resume the TD itself, not its L2 VM.
const RESUME_L1: u64 = 1 << 53;
/// IA32_MISC_ENABLE. Two of its bits follow.
const MISC_ENABLE: u32 = 0x1A0;
const LIMIT_CPUID_MAXVAL: u64 = 1 << 22;
const ENABLE_MONITOR: u64 = 1 << 18;
/// Exit qualification of an EPT violation: a write.
const WRITE: u64 = 1 << 1;
/// NOTIFY_ENABLES: raise #VE in a TD whose vCPU repeatedly faults on the same instruction.
const NOTIFY_EPT_FAULTS: u64 = 1;
/// Bit in a guest's TDCALL status: the host has set the recoverability hint.
const STATUS_HINT: u64 = 1 << 60;

/// TDH.VP.ENTER: RCX = TDVPR and flags. The last TD exit determines the meaning of all other registers.
#[inline(always)]
pub fn enter<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    if cx.machine.rdmsr(cx.lp, MISC_ENABLE) & LIMIT_CPUID_MAXVAL != 0 {
        return Err(Status::LIMIT_CPUID_MAXVAL_SET);
    }
    let (tdvpr, flags) = (regs.rcx & PAGE_MASK, regs.rcx & !PAGE_MASK);
    if flags & !(HOST_RECOVERABILITY_HINT | RESUME_L1) != 0 {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    let taken = TdVcpu::take(cx, tdvpr, Operand::RCX, Mode::Shared)?;
    let result = enter_taken(cx, regs, &taken, tdvpr, flags);
    taken.release();
    result
}

/// Enters a vCPU whose TDVPR the caller has locked.
#[inline(always)]
fn enter_taken<M: Machine>(
    cx: Call<'_, M>,
    regs: &mut Gprs,
    taken: &TdVcpu<'_, M>,
    tdvpr: u64,
    flags: u64,
) -> Result<(), Status> {
    let (tdcs, op_state) = lock_op_state(cx, taken.tdr, Leaf::VpEnter)?;
    let tdvps = taken.tdvps;
    check_pages(&tdcs, &tdvps)?;
    let is_new = associate(cx, &tdcs, &tdvps, Disabled::Refused)?;
    let last_exit = tdvps.get(tdvps::field::LAST_TD_EXIT);
    let after_trap = last_exit == LastExit::AsyncTrap as u64;
    if flags & HOST_RECOVERABILITY_HINT != 0 && !after_trap || flags & RESUME_L1 != 0 {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    if cx.machine.rdmsr(cx.lp, TSC_ADJUST_MSR) != cx.native().msrs.tsc_adjust {
        return Err(Status::INCONSISTENT_MSR.with_detail(TSC_ADJUST_MSR));
    }
    let elapsed = cx
        .machine
        .rdtsc(cx.lp)
        .wrapping_sub(tdvps.get(fields::LAST_EXIT_TSC));
    if (elapsed as i64) < 0 {
        return Err(Status::TSC_ROLLBACK);
    }
    let misc_enable = cx.machine.rdmsr(cx.lp, MISC_ENABLE);
    if misc_enable & ENABLE_MONITOR == 0 && features(cx.native(), &tdcs).monitor {
        return Err(Status::INCORRECT_MSR_VALUE.with_detail(MISC_ENABLE));
    }
    join_epoch(cx, &tdcs, &tdvps, is_new)?;

    let vcpu = Vcpu::of(cx.machine, &tdvps);
    let mut inside = Inside::new(cx, taken.tdr, tdcs, tdvps, vcpu);
    match suspect_stepping(cx, &inside) {
        Ok(Suspicion::None) => {}
        Ok(Suspicion::Notify) => inside.notify_of_stepping(),
        Ok(Suspicion::StillFaults(gpa)) => {
            leave_epoch(&tdcs, &tdvps);
            return refuse_to_step(cx, regs, gpa);
        }
        Err(status) => {
            leave_epoch(&tdcs, &tdvps);
            return Err(status);
        }
    }
    drop(op_state);

    let last = &cx.module.lp(cx.lp).last_tdvpr;
    if last.swap(tdvpr, Ordering::Relaxed) != tdvpr {
        cx.reached(Point::Invept);
    }
    if last_exit == LastExit::Vmcall as u64 {
        take_results(cx, &vcpu, regs);
    } else if after_trap && flags & HOST_RECOVERABILITY_HINT != 0 {
        vcpu.set_gpr(Gpr::Rax, vcpu.gpr(Gpr::Rax) | STATUS_HINT);
    }
    inside.ask_for_nmi_window();
    tdvps.set_state(VcpuState::Active);
    let exit = inside.run();
    finish(cx, &tdcs, &inside, regs, &exit)
}

/// Registers the vCPU in the TD's current TLB epoch, and flushes its translations if it was in an older epoch.
///
/// # Errors
/// OPERAND_BUSY with TD_EPOCH.
#[inline(always)]
fn join_epoch<M: Machine>(
    cx: Call<'_, M>,
    tdcs: &Tdcs<'_, M>,
    tdvps: &Tdvps<'_, M>,
    is_new: bool,
) -> Result<(), Status> {
    let busy = Status::OPERAND_BUSY.with(Operand::TD_EPOCH);
    let epoch = {
        let _lock = tdcs.epoch_lock().acquire(Mode::Shared).map_err(|_| busy)?;
        let epoch = tdcs.get(tdcs::field::TD_EPOCH);
        tdcs.add(tdcs::field::REFCOUNT.at(epoch as u32 & 1), 1);
        epoch
    };
    if epoch != tdvps.get(tdvps::field::VCPU_EPOCH) {
        if !is_new {
            cx.reached(Point::Invept);
        }
        tdvps.set(tdvps::field::VCPU_EPOCH, epoch);
    }
    Ok(())
}

/// Removes the vCPU from the epoch in which it entered.
#[inline(always)]
fn leave_epoch<M: Machine>(tdcs: &Tdcs<'_, M>, tdvps: &Tdvps<'_, M>) {
    let epoch = tdvps.get(tdvps::field::VCPU_EPOCH);
    tdcs.sub(tdcs::field::REFCOUNT.at(epoch as u32 & 1), 1);
}

/// The conclusion from repeated EPT violations at one instruction.
enum Suspicion {
    /// No suspicion.
    None,
    /// The pages are mapped now; the TD requested a notification.
    Notify,
    /// A page is still not mapped, so an entry would fault again.
    StillFaults(u64),
}

/// Checks the pages on which the instruction at RIP repeatedly faulted (the defence against zero-stepping).
///
/// # Errors
/// OPERAND_BUSY with SEPT_TREE.
#[inline(always)]
fn suspect_stepping<M: Machine>(
    cx: Call<'_, M>,
    inside: &Inside<'_, M>,
) -> Result<Suspicion, Status> {
    match inside.vcpu.get(fields::LAST_EPF_GPA_LIST_IDX) as u32 {
        0 => Ok(Suspicion::None),
        count => look_at_faults(cx, inside, count),
    }
}

#[inline(never)]
fn look_at_faults<M: Machine>(
    cx: Call<'_, M>,
    inside: &Inside<'_, M>,
    count: u32,
) -> Result<Suspicion, Status> {
    let busy = Status::OPERAND_BUSY.with(Operand::SEPT_TREE);
    let pending_is_progress = cx.module.release.does(Change::PENDING_IS_PROGRESS);
    let mode = if pending_is_progress {
        Mode::Shared
    } else {
        Mode::Exclusive
    };
    let _tree = inside.tdcs.sept_lock().acquire(mode).map_err(|_| busy)?;
    for index in 0..count {
        let gpa = inside.vcpu.get(fields::LAST_EPF_GPA_LIST.at(index));
        let end = sept::walk(cx.machine, &inside.tdcs, gpa, 0);
        let is_accessible = end.entry.is_leaf() && end.entry.is_present();
        let raises_ve = pending_is_progress && inside.raises_ve_for(end.entry);
        if !is_accessible && !raises_ve {
            return Ok(Suspicion::StillFaults(gpa));
        }
    }
    let notifies = inside.tdcs.get(tdcs::field::NOTIFY_ENABLES) & NOTIFY_EPT_FAULTS != 0;
    Ok(if notifies {
        Suspicion::Notify
    } else {
        Suspicion::None
    })
}

/// Reports another EPT violation of the guest to the host without entering the guest.
#[inline(never)]
fn refuse_to_step<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs, gpa: u64) -> Result<(), Status> {
    cx.machine.clear_host_xmm(cx.lp);
    let rbp = regs.rbp;
    *regs = Gprs {
        rcx: WRITE,
        r8: gpa & PAGE_MASK,
        rbp,
        ..Gprs::default()
    };
    Err(Status(exit_reason::EPT_VIOLATION.into()))
}

/// The registers that a TDVMCALL passes, from its RCX: one bit for each general-purpose register from RDX on, then one
/// for each of XMM0 to XMM15.
struct Passed(u64);

impl Passed {
    /// Returns the numbers of the general-purpose registers. RSP is never passed.
    fn gprs(&self) -> impl Iterator<Item = usize> {
        bits(self.0 & 0xFFFC & !(1 << Gpr::Rsp as usize))
    }

    fn xmm(&self) -> impl Iterator<Item = usize> {
        bits(self.0 >> 16 & 0xFFFF)
    }
}

/// Returns the numbers of the bits that are set.
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let number = NonZero::new(mask)?.trailing_zeros();
        mask &= mask - 1;
        Some(number as usize)
    })
}

/// Copies the results of a TDVMCALL from the host's registers to those that the guest selected.
#[inline(always)]
fn take_results<M: Machine>(cx: Call<'_, M>, vcpu: &Vcpu<'_>, regs: &Gprs) {
    let passed = Passed(vcpu.gpr(Gpr::Rcx));
    for xmm in passed.xmm() {
        vcpu.set_xmm(xmm, cx.machine.host_xmm(cx.lp, xmm));
    }
    for number in passed.gprs() {
        vcpu.numbered(number)
            .store(regs.numbered(number), Ordering::Relaxed);
    }
    vcpu.set_gpr(Gpr::Rax, 0);
}

/// Copies a TD exit to the host's registers.
#[inline(always)]
fn finish<M: Machine>(
    cx: Call<'_, M>,
    tdcs: &Tdcs<'_, M>,
    inside: &Inside<'_, M>,
    regs: &mut Gprs,
    exit: &TdExit,
) -> Result<(), Status> {
    let tdvps = &inside.tdvps;
    if exit.status.code() == Status::SYS_SHUTDOWN {
        return Err(exit.status);
    }
    let mut last_exit = None;
    match exit.status.code() {
        Status::NON_RECOVERABLE_VCPU => tdvps.set_state(VcpuState::Disabled),
        code if code.is_fatal() => inside.tdr.set_fatal(),
        Status::HOST_PRIORITY_BUSY_TIMEOUT => last_exit = Some(LastExit::AsyncTrap),
        _ => {
            last_exit = Some(if exit.vmcall.is_some() {
                LastExit::Vmcall
            } else {
                LastExit::AsyncFault
            })
        }
    }
    if let Some(last_exit) = last_exit {
        tdvps.set_state(VcpuState::Ready);
        tdvps.set(tdvps::field::LAST_TD_EXIT, last_exit as u64);
    }
    if exit.status.code() != Status::NON_RECOVERABLE_TD_NON_ACCESSIBLE {
        leave_epoch(tdcs, tdvps);
    }
    cx.machine.clear_host_xmm(cx.lp);
    let rbp = regs.rbp;
    *regs = Gprs {
        rcx: exit.qualification,
        rdx: exit.extended,
        r8: exit.gpa,
        r9: exit.interruption,
        ..Gprs::default()
    };
    if let Some(control) = exit.vmcall {
        let passed = Passed(control);
        for number in passed.gprs() {
            let value = inside.vcpu.numbered(number).load(Ordering::Relaxed);
            regs.set_numbered(number, value);
        }
        for xmm in passed.xmm() {
            cx.machine.set_host_xmm(cx.lp, xmm, inside.vcpu.xmm(xmm));
        }
        if inside.keeps_rbp() {
            regs.rbp = rbp;
        }
    } else if cx.module.release.does(Change::KEEPS_RBP_ALWAYS) && inside.keeps_rbp() {
        regs.rbp = rbp;
    }
    match exit.status {
        Status(0) => Ok(()),
        status => Err(status),
    }
}

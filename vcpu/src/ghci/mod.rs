//! The Guest-Hypervisor Communication Interface: the calls that a guest makes to the host by TDG.VP.VMCALL.
//!
//! R10 is zero for these calls, R11 the sub-function, and R12 to R15 (and more for a fatal error) are the operands. The
//! status is returned in R10. Every operand is checked before use. Each outcome of a call is a [`Branch`], which is
//! counted.
//!
//! Source: Intel TDX Guest-Hypervisor Communication Interface 1.5, chapter 3; Linux arch/x86/kvm/vmx/tdx.c and
//! arch/x86/coco/tdx/tdx.c for the behaviour of both sides.

mod instruction;
mod map_gpa;
mod services;
mod transfer;

use seam::abi::ghci::number;

pub use crate::branch::{Branch, Branches, Status};
use crate::current::{Current, Stop};
use crate::slice::TimeSlice;

/// Number of tries at a contended resource before the guest is told to retry.
const TRIES: u32 = 16;

/// The outcome of a call, with which it is to be answered.
///
/// # Errors
/// The vCPU must not be entered again at once, for this reason. The call is answered, or [`Vcpu::mapping`] says that it
/// is not.
///
/// [`Vcpu::mapping`]: crate::vcpu::Vcpu::mapping
type Served = Result<Branch, Stop>;

/// Serves a TDVMCALL, and answers it.
///
/// # Errors
/// The vCPU must not be entered again at once, for this reason.
#[inline(always)]
pub(crate) fn serve<S: TimeSlice>(current: &mut Current<'_, S>) -> Result<(), Stop> {
    if current.vcpu.regs.r10 != 0 {
        current.slice.vendor_call(&mut current.vcpu.regs);
        current.state.branches().count(Branch::Vendor);
        return Ok(());
    }
    let branch = match current.vcpu.regs.r11 {
        number::CPUID => instruction::cpuid(current),
        number::HLT => instruction::halt(current)?,
        number::IO => instruction::port_io(current)?,
        _ => other(current)?,
    };
    answer(current, branch);
    Ok(())
}

/// Serves the calls that guests make less often.
#[inline(never)]
fn other<S: TimeSlice>(current: &mut Current<'_, S>) -> Served {
    let branch = match current.vcpu.regs.r11 {
        number::RDMSR => instruction::rdmsr(current),
        number::WRMSR => instruction::wrmsr(current),
        number::MMIO => instruction::mmio(current)?,
        number::GET_TD_VM_CALL_INFO => services::call_info(current),
        number::MAP_GPA => map_gpa::map_gpa(current)?,
        number::GET_QUOTE => services::get_quote(current),
        number::REPORT_FATAL_ERROR => services::fatal_error(current)?,
        number::SERVICE => services::service(current),
        _ => Branch::Unsupported,
    };
    Ok(branch)
}

/// Goes on with a MapGPA that was not answered when the vCPU left its CPU.
///
/// # Errors
/// As for [`serve`].
#[cold]
#[inline(never)]
pub(crate) fn go_on_mapping<S: TimeSlice>(current: &mut Current<'_, S>) -> Result<(), Stop> {
    let branch = map_gpa::map_gpa(current)?;
    answer(current, branch);
    Ok(())
}

/// Answers a call.
#[inline]
fn answer<S: TimeSlice>(current: &mut Current<'_, S>, branch: Branch) {
    current.vcpu.regs.r10 = branch.status() as u64;
    current.state.branches().count(branch);
}

//! Exits of the software and their handling.

mod apic;
mod cr;
mod iommu;
mod movdir;
mod msr;
mod npf;
mod seamcall;
mod step;
mod ud;
mod vmx;

use seam::abi::x86::vector;
use stub_rom::insn::gpr;

use super::guest::Fault;
use super::lp::Lp;
use super::vmcb::{exit, misc1};
use super::{lp, panic, smp};
use crate::{cpu, report};

/// Handles the exit of `lp`. The next entry uses the resulting VMCB.
pub fn handle(lp: &mut Lp) {
    if lp.is_parked() {
        smp::nmi(lp);
        lp.nmi_pending = false;
        smp::check_mailbox(lp);
        return;
    }
    lp.vmcb.event_injection = 0;
    lp.vmcb.tlb_control = 0;
    let code = lp.vmcb.exit_code;
    match code {
        exit::EXCEPTION..=exit::LAST_EXCEPTION => exception(lp, (code - exit::EXCEPTION) as u8),
        exit::CPUID => cpuid(lp),
        _ => handle_other(lp, code),
    }
    smp::check_mailbox(lp);
    deliver_nmi(lp);
}

#[inline(never)]
fn handle_other(lp: &mut Lp, code: u64) {
    match code {
        exit::CR4_WRITE => cr::write_cr4(lp),
        exit::MSR => msr::exit(lp),
        exit::NPF => npf::exit(lp),
        exit::NMI => {
            lp.vmcb.redeliver();
            smp::nmi(lp);
        }
        exit::CR4_READ => cr::read_cr4(lp),
        exit::CR0_WRITE => cr::write_cr0(lp),
        exit::IRET => {
            // The handler of the NMI is at its end. The next NMI waits for the exit after IRET, which is at the latest
            // the end of its single step.
            lp.vmcb.intercept_misc1 &= !misc1::IRET;
            lp.vmcb.redeliver();
            step::over_iret(lp);
        }
        exit::VMRUN..=exit::SKINIT => lp.inject(Fault::InvalidOpcode),
        exit::SHUTDOWN => shutdown(lp),
        _ => panic::stop(format_args!("an exit that the monitor does not intercept")),
    }
}

/// Reports a fault in the software's own fault handling, then resets the machine, as hardware does.
#[inline(never)]
fn shutdown(lp: &Lp) -> ! {
    report::line("shutdown", format_args!("{}", lp::State(lp)));
    cpu::reset_machine()
}

#[inline(never)]
fn cpuid(lp: &mut Lp) {
    let leaf = lp.gprs.0[gpr::RAX] as u32;
    let sub_leaf = lp.gprs.0[gpr::RCX] as u32;
    let [eax, ebx, ecx, edx] =
        lp.world
            .personality(lp.number, lp.cr4())
            .cpuid(cpu::cpuid, leaf, sub_leaf);
    lp.gprs.0[gpr::RAX] = u64::from(eax);
    lp.gprs.0[gpr::RBX] = u64::from(ebx);
    lp.gprs.0[gpr::RCX] = u64::from(ecx);
    lp.gprs.0[gpr::RDX] = u64::from(edx);
    lp.vmcb.skip(2);
}

fn exception(lp: &mut Lp, number: u8) {
    if number == vector::UD && lp.step.is_none() {
        ud::exit(lp);
    } else {
        other_exception(lp, number);
    }
}

#[inline(never)]
fn other_exception(lp: &mut Lp, number: u8) {
    match number {
        vector::PF if npf::keyid_alias(lp) => {}
        _ if lp.step.is_some() => step::end(lp, number),
        vector::PF => {
            let (code, va) = (lp.vmcb.exit_info1 as u32, lp.vmcb.exit_info2);
            lp.inject(Fault::Page { va, code });
        }
        _ => panic::stop(format_args!(
            "an exception that the monitor does not intercept"
        )),
    }
}

/// Delivers a pending NMI if no other event is being injected, and watches for the IRET that ends its handler.
fn deliver_nmi(lp: &mut Lp) {
    if lp.nmi_pending
        && !lp.nmi_blocked
        && !lp.is_parked()
        && lp.step.is_none()
        && !lp.vmcb.is_injecting()
    {
        lp.nmi_pending = false;
        lp.nmi_blocked = true;
        lp.vmcb.intercept_misc1 |= misc1::IRET;
        lp.vmcb.inject_nmi();
    }
}

/// Ends an emulated instruction of `length` bytes: advances past it, or injects the fault.
#[inline(always)]
fn finish(lp: &mut Lp, length: usize, result: Result<(), Fault>) {
    match result {
        Ok(()) => lp.vmcb.skip(length),
        Err(fault) => take_fault(lp, fault),
    }
}

#[inline(never)]
fn take_fault(lp: &mut Lp, fault: Fault) {
    if lp.world.options.trace >= 1 {
        report::line(
            "fault",
            format_args!(
                r#""lp":{},"rip":"{:#x}","fault":"{fault:?}""#,
                lp.number, lp.vmcb.save.rip
            ),
        );
    }
    lp.inject(fault);
}

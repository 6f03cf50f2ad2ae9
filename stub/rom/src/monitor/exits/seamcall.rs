//! SEAMCALL and PCONFIG.

use seam::abi::Gprs;
use seam::abi::x86::rflags;
use stub_module::seamldr;
use stub_rom::insn::gpr;
use stub_rom::personality::mktme_keyids;
use stub_rom::vmx::Outcome;

use super::vmx;
use crate::monitor::guest::Fault;
use crate::monitor::lp::Lp;
use crate::monitor::machine::report_violations;
use crate::report;

/// RAX bit 63 selects the P-SEAMLDR.
const SEAMLDR: u64 = 1 << 63;

/// Executes SEAMCALL: #UD outside VMX operation or without SEAM, #GP outside ring 0, otherwise a call of the module.
#[inline(always)]
pub fn execute(lp: &mut Lp) -> Result<(), Fault> {
    let Some(module) = &lp.world.module else {
        return Err(Fault::InvalidOpcode);
    };
    if let Err(outcome) = lp.vmx.may_execute(&vmx::cpu(lp), false) {
        return lp.finish_vmx(outcome);
    }
    let rax = lp.gprs.0[gpr::RAX];
    if rax & SEAMLDR != 0 {
        call_seamldr(lp);
    } else {
        let (number, presence) = (lp.number, lp.presence);
        let mut regs = Gprs::from_numbers(&lp.gprs.0);
        let machine = lp.seam();
        presence.leave();
        module.seamcall(&machine, number, &mut regs);
        presence.handle();
        lp.td = machine.leave();
        let rsp = lp.gprs.0[gpr::RSP];
        lp.gprs.0 = regs.by_number();
        lp.gprs.0[gpr::RSP] = rsp;
        report_violations(module);
    }
    if lp.world.options.trace >= 2 {
        trace(lp, rax);
    }
    lp.finish_vmx(Outcome::Succeed)
}

#[inline(never)]
fn call_seamldr(lp: &mut Lp) {
    let (rax, rcx) = (lp.gprs.0[gpr::RAX], lp.gprs.0[gpr::RCX]);
    let (physical, data) = (lp.physical(), lp.data());
    lp.gprs.0[gpr::RAX] = seamldr::call(rax, rcx, |pa, bytes| {
        let allowed = physical.is_accessible(pa);
        data.copy_to(pa, bytes);
        allowed
    });
}

#[inline(never)]
fn trace(lp: &Lp, leaf: u64) {
    report::line(
        "seamcall",
        format_args!(
            r#""lp":{},"leaf":"{leaf:#x}","status":"{:#x}""#,
            lp.number,
            lp.gprs.0[gpr::RAX]
        ),
    );
}

/// Executes PCONFIG, leaf 0 (MKTME_KEY_PROGRAM), for the shared KeyIDs. Memory is not encrypted here, so a permitted
/// key is programmed immediately.
#[inline(never)]
pub fn pconfig(lp: &mut Lp) -> Result<(), Fault> {
    const KEY_PROGRAM_SIZE: u64 = 256;
    const INVALID_KEYID: u64 = 2;
    let options = &lp.world.options;
    if !options.tdx {
        return Err(Fault::InvalidOpcode);
    }
    let va = lp.gprs.0[gpr::RBX];
    let leaf = lp.gprs.0[gpr::RAX] as u32;
    if lp.vmcb.save.cpl != 0 || leaf != 0 || !va.is_multiple_of(KEY_PROGRAM_SIZE) {
        return Err(Fault::Protection);
    }
    let mut keyid = [0; 2];
    lp.read(va, &mut keyid)?;
    let keyid = u32::from(u16::from_le_bytes(keyid));
    let save = &mut lp.vmcb.save;
    save.rflags &= !rflags::ARITHMETIC;
    let known = (1..=mktme_keyids(options.hkids)).contains(&keyid);
    if !known {
        save.rflags |= rflags::ZF;
    }
    lp.gprs.0[gpr::RAX] = if known { 0 } else { INVALID_KEYID };
    Ok(())
}

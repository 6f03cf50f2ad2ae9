//! SEAMCALL and PCONFIG.

use stub_rom::insn::gpr;
use stub_rom::personality::mktme_keyids;
use stub_rom::vmx::Outcome;

use super::vmx;
use crate::monitor::guest::Fault;
use crate::monitor::lp::Lp;
use crate::monitor::world;

/// TDX_OPERAND_INVALID with operand RAX: what a module says to a leaf that it does not know.
const OPERAND_INVALID_RAX: u64 = 0xC000_0100_0000_0000;

/// SEAMCALL: #UD outside VMX operation or without SEAM, #GP outside ring 0; the module's answer otherwise.
pub fn execute(lp: &mut Lp) -> Result<(), Fault> {
    if !world::get().options.tdx {
        return Err(Fault::InvalidOpcode);
    }
    if let Err(outcome) = lp.vmx.may_execute(&vmx::cpu(lp), false) {
        return lp.finish_vmx(outcome);
    }
    lp.gprs.0[gpr::RAX] = OPERAND_INVALID_RAX;
    lp.finish_vmx(Outcome::Succeed)
}

/// PCONFIG, leaf 0 (MKTME_KEY_PROGRAM), for the shared KeyIDs. No memory is encrypted here: a key that may be programmed
/// is, at once.
pub fn pconfig(lp: &mut Lp) -> Result<(), Fault> {
    const KEY_PROGRAM_SIZE: u64 = 256;
    const INVALID_KEYID: u64 = 2;
    const ZF: u64 = 1 << 6;
    const ARITHMETIC: u64 = 0x8D5;
    let options = &world::get().options;
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
    let rflags = &mut lp.vmcb.save.rflags;
    *rflags &= !ARITHMETIC;
    let known = (1..=mktme_keyids(options.hkids)).contains(&keyid);
    if !known {
        *rflags |= ZF;
    }
    lp.gprs.0[gpr::RAX] = if known { 0 } else { INVALID_KEYID };
    Ok(())
}

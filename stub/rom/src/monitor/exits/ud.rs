//! Invalid opcodes: what TCG does not know, and this machine does.

use iced_x86::{Code, Mnemonic};
use stub_rom::insn;

use super::{cr, finish, movdir, seamcall, vmx};
use crate::monitor::guest::Fault;
use crate::monitor::lp::Lp;
use crate::monitor::world;
use crate::report;

/// The invalid opcode exit. SEAMCALL, which is what it is most often, is recognised without the full decoder.
pub fn exit(lp: &mut Lp) {
    const SEAMCALL: &[u8] = &[0x66, 0x0F, 0x01, 0xCF];
    let (bytes, length) = lp.code();
    let code = &bytes[..length];
    if code.starts_with(SEAMCALL) && lp.is_in_long_mode() {
        let result = seamcall::execute(lp);
        finish(lp, SEAMCALL.len(), result);
        return;
    }
    emulate(lp, code);
}

#[inline(never)]
fn emulate(lp: &mut Lp, code: &[u8]) {
    let instruction = insn::decode(code, lp.vmcb.save.rip, lp.bitness());
    let Some(instruction) = instruction.filter(|_| lp.is_in_long_mode()) else {
        lp.inject(Fault::InvalidOpcode);
        return;
    };
    if world::get().options.trace >= 2 {
        report::line(
            "emulate",
            format_args!(
                r#""lp":{},"rip":"{:#x}","code":"{:?}","rax":"{:#x}""#,
                lp.number,
                lp.vmcb.save.rip,
                instruction.code(),
                lp.gprs.0[0]
            ),
        );
    }
    let result = match instruction.mnemonic() {
        Mnemonic::Seamcall => seamcall::execute(lp),
        Mnemonic::Movdir64b if instruction.code() == Code::Movdir64b_r64_m512 => {
            movdir::exit(lp, &instruction);
            return;
        }
        Mnemonic::Pconfig => seamcall::pconfig(lp),
        _ => vmx::execute(lp, &instruction),
    };
    cr::watch_cr0(lp);
    finish(lp, instruction.len(), result);
}

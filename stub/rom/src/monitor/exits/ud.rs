//! Invalid opcodes: instructions that TCG lacks and this machine has.

use iced_x86::{Code, Mnemonic};
use stub_rom::insn;

use super::{cr, finish, movdir, seamcall, vmx};
use crate::monitor::guest::Fault;
use crate::monitor::lp::Lp;
use crate::report;

/// Handles the invalid opcode exit. SEAMCALL, the most frequent cause, is recognised without the decoder.
#[inline(never)]
pub fn exit(lp: &mut Lp) {
    const SEAMCALL: [u8; 4] = [0x66, 0x0F, 0x01, 0xCF];
    let length = if lp.opcode() == Some(u32::from_le_bytes(SEAMCALL)) {
        SEAMCALL.len()
    } else if let Some(length) = emulate(lp) {
        length
    } else {
        return;
    };
    let result = seamcall::execute(lp);
    finish(lp, length, result);
}

/// Emulates the instruction. For a SEAMCALL that was not recognised, returns its length instead.
#[inline(never)]
fn emulate(lp: &mut Lp) -> Option<usize> {
    let (bytes, length) = lp.code();
    let instruction = insn::decode(&bytes[..length], lp.vmcb.save.rip, lp.bitness());
    let Some(instruction) = instruction.filter(|_| lp.is_in_long_mode()) else {
        lp.inject(Fault::InvalidOpcode);
        return None;
    };
    if lp.world.options.trace >= 2 {
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
        Mnemonic::Seamcall => return Some(instruction.len()),
        Mnemonic::Movdir64b if instruction.code() == Code::Movdir64b_r64_m512 => {
            movdir::exit(lp, &instruction);
            return None;
        }
        Mnemonic::Pconfig => seamcall::pconfig(lp),
        _ => vmx::execute(lp, &instruction),
    };
    cr::watch_cr0(lp);
    finish(lp, instruction.len(), result);
    None
}

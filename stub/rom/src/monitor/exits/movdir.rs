//! MOVDIR64B, and whole loops of it in one exit.

use iced_x86::Instruction;
use stub_rom::clearing::{Loop, Op};
use stub_rom::insn;

use super::finish;
use crate::memory::PAGE;
use crate::monitor::guest::{Fault, read_physical, write_physical};
use crate::monitor::lp::Lp;

/// The most rounds of a loop that one exit completes: 2 MiB at 64 bytes each. Interrupts wait that long.
const MAX_ROUNDS: u32 = 32_768;
const LINE: usize = 64;

/// The exit for the MOVDIR64B `first`.
#[inline(never)]
pub fn exit(lp: &mut Lp, first: &Instruction) {
    let mut pages = Pages::default();
    if let Err(fault) = store(lp, first, &mut pages) {
        finish(lp, 0, Err(fault));
        return;
    }
    let found = Loop::recognise(first, |at| {
        let (bytes, length) = lp.code_at(at);
        insn::decode(&bytes[..length], at, 64)
    });
    let Some(found) = found else {
        finish(lp, first.len(), Ok(()));
        return;
    };
    for _ in 0..MAX_ROUNDS {
        for op in &found.body {
            match op {
                Op::Compute(compute) => {
                    compute.execute(&mut lp.gprs, &mut lp.vmcb.save.rflags);
                }
                Op::Store(instruction) => {
                    if let Err(fault) = store(lp, instruction, &mut pages) {
                        lp.vmcb.save.rip = instruction.ip();
                        finish(lp, 0, Err(fault));
                        return;
                    }
                }
            }
        }
        if !found.goes_on(lp.vmcb.save.rflags) {
            lp.vmcb.save.rip = found.end;
            return;
        }
        lp.vmcb.save.rip = found.start;
        if let Err(fault) = store(lp, first, &mut pages) {
            finish(lp, 0, Err(fault));
            return;
        }
    }
    finish(lp, first.len(), Ok(()));
}

/// The translations that were used last: a loop stays on a page for 64 rounds.
#[derive(Default)]
struct Pages {
    source: Option<(u64, u64)>,
    target: Option<(u64, u64)>,
}

fn store(lp: &Lp, instruction: &Instruction, pages: &mut Pages) -> Result<(), Fault> {
    let target = lp
        .gprs
        .get(instruction.op0_register())
        .ok_or(Fault::InvalidOpcode)?;
    if !target.is_multiple_of(LINE as u64) {
        return Err(Fault::Protection);
    }
    let source = lp.operand_address(instruction, 1)?;
    let mut line = [0; LINE];
    if source as usize % PAGE + LINE <= PAGE {
        read_physical(translate(lp, source, false, &mut pages.source)?, &mut line);
    } else {
        lp.read(source, &mut line)?;
    }
    write_physical(translate(lp, target, true, &mut pages.target)?, &line);
    Ok(())
}

fn translate(lp: &Lp, va: u64, write: bool, last: &mut Option<(u64, u64)>) -> Result<u64, Fault> {
    let offset = va % PAGE as u64;
    if let Some((page, pa)) = *last
        && page == va - offset
    {
        return Ok(pa + offset);
    }
    let pa = lp.translate(va, write)?;
    *last = Some((va - offset, pa - offset));
    Ok(pa)
}

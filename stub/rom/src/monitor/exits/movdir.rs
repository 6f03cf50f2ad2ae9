//! MOVDIR64B, and whole loops of it in one exit.

use iced_x86::Instruction;
use stub_rom::clearing::{Loop, Op, Stride};
use stub_rom::insn;

use super::finish;
use crate::memory::PAGE;
use crate::monitor::guest::Fault;
use crate::monitor::lp::Lp;

/// Maximum number of rounds of a loop in one exit: 2 MiB at 64 bytes each. Interrupts wait that long.
const MAX_ROUNDS: u32 = 32_768;
const LINE: usize = 64;

/// Handles the exit for the MOVDIR64B `first`.
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
    let stride = found.stride(first);
    let mut rounds = 0;
    while rounds < MAX_ROUNDS {
        if let Some(stride) = stride {
            rounds += repeat(lp, first, stride, &mut pages);
        }
        rounds += 1;
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

/// Copies the line just stored to those behind it in the same page, up to the end of the loop. Returns their number.
fn repeat(lp: &mut Lp, first: &Instruction, stride: Stride, pages: &mut Pages) -> u32 {
    let lines = stride.ahead(&lp.gprs);
    let Some(target) = lp.gprs.get(first.op0_register()).filter(|_| lines > 0) else {
        return 0;
    };
    let mut line = [0; LINE];
    let bytes = lines * LINE as u64;
    let (Ok(source), Ok(pa)) = (
        lp.operand_address(first, 1),
        translate(lp, target, true, &mut pages.target),
    ) else {
        return 0;
    };
    let is_apart = source.wrapping_add(LINE as u64) <= target
        || source >= target.wrapping_add(bytes + LINE as u64);
    if source as usize % PAGE + LINE > PAGE || !is_apart {
        return 0;
    }
    let Ok(from) = translate(lp, source, false, &mut pages.source) else {
        return 0;
    };
    let data = lp.data();
    data.copy_from(from, &mut line);
    data.fill(pa + LINE as u64, &line, lines as usize);
    stride.skip(&mut lp.gprs, lines);
    lines as u32
}

/// The most recent translations. A loop stays on a page for 64 rounds.
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
        let from = translate(lp, source, false, &mut pages.source)?;
        lp.data().copy_from(from, &mut line);
    } else {
        lp.read(source, &mut line)?;
    }
    let to = translate(lp, target, true, &mut pages.target)?;
    lp.data().copy_to(to, &line);
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

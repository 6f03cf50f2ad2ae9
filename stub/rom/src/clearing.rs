//! Loops around MOVDIR64B: recognised as a whole, so that clearing a page takes one exit and not 64.
//!
//! A loop is a MOVDIR64B, a few instructions that only compute in general-purpose registers, more MOVDIR64Bs if it is
//! unrolled, and a conditional jump back to the first one.

use alloc::vec::Vec;

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind, Register};

use crate::insn::GprFile;

/// The longest loop body that is looked at, in instructions.
const MAX_BODY: usize = 24;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;

/// One instruction of the body.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// A further MOVDIR64B.
    Store(Instruction),
    /// An instruction that only computes.
    Compute(Compute),
}

/// ADD, SUB, CMP, INC, DEC or LEA with an immediate displacement, on 64-bit registers.
#[derive(Clone, Copy, Debug)]
pub struct Compute {
    kind: Kind,
    target: Register,
    source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Add,
    Sub,
    Cmp,
    Inc,
    Dec,
    Lea,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Immediate(u64),
    Register(Register),
    /// Register plus displacement, for LEA.
    Address(Register, u64),
}

/// A recognised loop.
#[derive(Debug)]
pub struct Loop {
    /// What follows the first MOVDIR64B, up to the jump.
    pub body: Vec<Op>,
    condition: ConditionCode,
    /// The address of the first MOVDIR64B.
    pub start: u64,
    /// The address behind the jump.
    pub end: u64,
}

impl Loop {
    /// Recognises the loop that starts with `first`; `fetch` decodes the instruction at an address.
    pub fn recognise(
        first: &Instruction,
        mut fetch: impl FnMut(u64) -> Option<Instruction>,
    ) -> Option<Self> {
        let mut body = Vec::new();
        let mut at = first.next_ip();
        while body.len() < MAX_BODY {
            let instruction = fetch(at)?;
            at = instruction.next_ip();
            if instruction.is_jcc_short_or_near() {
                return (instruction.near_branch_target() == first.ip()).then_some(Self {
                    body,
                    condition: instruction.condition_code(),
                    start: first.ip(),
                    end: at,
                });
            }
            body.push(if instruction.code() == Code::Movdir64b_r64_m512 {
                Op::Store(instruction)
            } else {
                Op::Compute(Compute::of(&instruction)?)
            });
        }
        None
    }

    /// Whether the jump at the end is taken with these flags.
    #[must_use]
    pub fn goes_on(&self, rflags: u64) -> bool {
        let is = |flag| rflags & flag != 0;
        let less = is(SF) != is(OF);
        match self.condition {
            ConditionCode::o => is(OF),
            ConditionCode::no => !is(OF),
            ConditionCode::b => is(CF),
            ConditionCode::ae => !is(CF),
            ConditionCode::e => is(ZF),
            ConditionCode::ne => !is(ZF),
            ConditionCode::be => is(CF) || is(ZF),
            ConditionCode::a => !is(CF) && !is(ZF),
            ConditionCode::s => is(SF),
            ConditionCode::ns => !is(SF),
            ConditionCode::p => is(PF),
            ConditionCode::np => !is(PF),
            ConditionCode::l => less,
            ConditionCode::ge => !less,
            ConditionCode::le => less || is(ZF),
            ConditionCode::g => !less && !is(ZF),
            ConditionCode::None => false,
        }
    }
}

impl Compute {
    fn of(instruction: &Instruction) -> Option<Self> {
        let kind = match instruction.mnemonic() {
            Mnemonic::Add => Kind::Add,
            Mnemonic::Sub => Kind::Sub,
            Mnemonic::Cmp => Kind::Cmp,
            Mnemonic::Inc => Kind::Inc,
            Mnemonic::Dec => Kind::Dec,
            Mnemonic::Lea => Kind::Lea,
            _ => return None,
        };
        let target = instruction.op0_register();
        if instruction.op0_kind() != OpKind::Register || !target.is_gpr64() {
            return None;
        }
        let source = match (kind, instruction.op_count()) {
            (Kind::Inc | Kind::Dec, _) => Source::Immediate(1),
            (Kind::Lea, _) => {
                let base = instruction.memory_base();
                if instruction.memory_index() != Register::None || !base.is_gpr64() {
                    return None;
                }
                Source::Address(base, instruction.memory_displacement64())
            }
            _ if instruction.op1_kind() == OpKind::Register => {
                Source::Register(instruction.op1_register())
            }
            _ => Source::Immediate(instruction.try_immediate(1).ok()?),
        };
        Some(Self {
            kind,
            target,
            source,
        })
    }

    /// Executes the instruction.
    pub fn execute(&self, gprs: &mut GprFile, rflags: &mut u64) {
        let left = gprs.get(self.target).unwrap_or(0);
        let right = match self.source {
            Source::Immediate(value) => value,
            Source::Register(register) => gprs.get(register).unwrap_or(0),
            Source::Address(base, displacement) => {
                let value = gprs.get(base).unwrap_or(0).wrapping_add(displacement);
                gprs.set(self.target, value);
                return;
            }
        };
        let adds = matches!(self.kind, Kind::Add | Kind::Inc);
        let (result, carry) = if adds {
            left.overflowing_add(right)
        } else {
            left.overflowing_sub(right)
        };
        let overflow = if adds {
            (left ^ result) & (right ^ result)
        } else {
            (left ^ right) & (left ^ result)
        };
        let keeps_carry = matches!(self.kind, Kind::Inc | Kind::Dec);
        let flag = |set, flag| if set { flag } else { 0 };
        let mut flags = flag(result == 0, ZF)
            | flag(result >> 63 != 0, SF)
            | flag(overflow >> 63 != 0, OF)
            | flag((left ^ right ^ result) & 0x10 != 0, AF)
            | flag((result as u8).count_ones().is_multiple_of(2), PF);
        flags |= if keeps_carry {
            *rflags & CF
        } else {
            flag(carry, CF)
        };
        *rflags = *rflags & !(CF | PF | AF | ZF | SF | OF) | flags;
        if self.kind != Kind::Cmp {
            gprs.set(self.target, result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::insn::decode;

    /// Runs the loop in `code`, whose first instruction is MOVDIR64B RDI, \[RSI\]; returns the stores and the registers.
    fn run(code: &[u8], mut gprs: GprFile) -> Option<(usize, GprFile)> {
        let fetch = |at: u64| decode(code.get(at as usize..)?, at, 64);
        let found = Loop::recognise(&fetch(0)?, fetch)?;
        assert_eq!((found.start, found.end), (0, code.len() as u64));
        let (mut stores, mut rflags) = (0, 2);
        loop {
            stores += 1;
            for op in &found.body {
                match op {
                    Op::Store(_) => stores += 1,
                    Op::Compute(compute) => compute.execute(&mut gprs, &mut rflags),
                }
            }
            if !found.goes_on(rflags) {
                return Some((stores, gprs));
            }
        }
    }

    const MOVDIR: [u8; 5] = [0x66, 0x0F, 0x38, 0xF8, 0x3E];

    #[test]
    fn a_counted_loop_stores_once_a_round() {
        // add rdi, 64; dec rcx; jnz
        let code = [
            &MOVDIR[..],
            &[0x48, 0x83, 0xC7, 0x40, 0x48, 0xFF, 0xC9, 0x75, 0xF2],
        ]
        .concat();
        let mut gprs = GprFile::default();
        (gprs.0[1], gprs.0[7]) = (64, 0x1000);
        let (stores, gprs) = run(&code, gprs).unwrap();
        assert_eq!((stores, gprs.0[1], gprs.0[7]), (64, 0, 0x2000));
    }

    #[test]
    fn a_loop_up_to_an_address_may_be_unrolled() {
        // lea rax, [rdi+64]; movdir64b rax, [rsi]; sub rdi, -128; cmp rdi, rdx; jb
        let code = [
            &MOVDIR[..],
            &[0x48, 0x8D, 0x47, 0x40, 0x66, 0x0F, 0x38, 0xF8, 0x06],
            &[0x48, 0x83, 0xEF, 0x80, 0x48, 0x39, 0xD7, 0x72, 0xE9],
        ]
        .concat();
        let mut gprs = GprFile::default();
        (gprs.0[2], gprs.0[7]) = (0x2000, 0x1000);
        let (stores, gprs) = run(&code, gprs).unwrap();
        assert_eq!((stores, gprs.0[7], gprs.0[0]), (64, 0x2000, 0x1FC0));
    }

    #[test]
    fn anything_else_is_no_loop() {
        // mov [rdi], rax in the body; a jump elsewhere
        let store = [&MOVDIR[..], &[0x48, 0x89, 0x07, 0x75, 0xF6]].concat();
        assert!(run(&store, GprFile::default()).is_none());
        let elsewhere = [&MOVDIR[..], &[0x75, 0x10]].concat();
        assert!(run(&elsewhere, GprFile::default()).is_none());
    }
}

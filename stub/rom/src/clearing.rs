//! Loops around MOVDIR64B, recognised as a whole: clearing a page takes one exit instead of 64.
//!
//! A loop is a MOVDIR64B, a few instructions that only compute in general-purpose registers, more MOVDIR64Bs if it is
//! unrolled, and a conditional jump back to the first one.

use alloc::vec::Vec;

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind, Register};
use seam::abi::x86::rflags::{AF, ARITHMETIC, CF, OF, PF, SF, ZF};

use crate::insn::GprFile;

/// The longest loop body that is examined, in instructions.
const MAX_BODY: usize = 24;

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
    /// The instructions between the first MOVDIR64B and the jump.
    pub body: Vec<Op>,
    condition: ConditionCode,
    /// The address of the first MOVDIR64B.
    pub start: u64,
    /// The address after the jump.
    pub end: u64,
}

/// A loop that only moves through memory line by line: `ADD at, 64`, then `CMP at, end; JB` or `DEC count; JNZ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stride {
    at: Register,
    until: Until,
}

/// The end condition of a stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// The end address is in this register.
    End(Register),
    /// The count is in this register.
    Count(Register),
}

impl Stride {
    /// Size of a line in bytes.
    const LINE: u64 = 64;
    const PAGE: u64 = 4096;

    /// Returns how many lines follow the current one in the same page and before the end of the loop. Their rounds are
    /// like the current one. The round that ends the loop is not included.
    #[must_use]
    pub fn ahead(&self, gprs: &GprFile) -> u64 {
        let value = |register| gprs.get(register).unwrap_or(0);
        let at = value(self.at);
        let in_page = (Self::PAGE - at % Self::PAGE) / Self::LINE - 1;
        let rounds = match self.until {
            Until::End(end) => value(end).saturating_sub(at).div_ceil(Self::LINE),
            Until::Count(count) => value(count),
        };
        in_page.min(rounds.saturating_sub(1))
    }

    /// Skips the rounds of this many lines. The flags are unchanged; the next round sets them.
    pub fn skip(&self, gprs: &mut GprFile, lines: u64) {
        let at = gprs.get(self.at).unwrap_or(0);
        gprs.set(self.at, at.wrapping_add(lines * Self::LINE));
        if let Until::Count(count) = self.until {
            let rounds = gprs.get(count).unwrap_or(0);
            gprs.set(count, rounds.wrapping_sub(lines));
        }
    }
}

impl Loop {
    /// Returns the loop as a stride over memory, if it does nothing else. Its source must stay at the same place.
    #[must_use]
    pub fn stride(&self, first: &Instruction) -> Option<Stride> {
        let at = first.op0_register();
        let [Op::Compute(add), Op::Compute(last)] = self.body.as_slice() else {
            return None;
        };
        let until = match (last.kind, last.source, self.condition) {
            (Kind::Cmp, Source::Register(end), ConditionCode::b) if last.target == at => {
                Until::End(end)
            }
            (Kind::Dec, _, ConditionCode::ne) => Until::Count(last.target),
            _ => return None,
        };
        let adds_a_line = add.kind == Kind::Add
            && add.target == at
            && matches!(add.source, Source::Immediate(Stride::LINE));
        let (Until::End(other) | Until::Count(other)) = until;
        let source = first.memory_base();
        let is_plain = other != at
            && source != at
            && source != other
            && first.memory_index() == Register::None;
        (adds_a_line && is_plain).then_some(Stride { at, until })
    }

    /// Recognises the loop that starts with `first`. `fetch` decodes the instruction at an address.
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

    /// Returns whether the jump at the end is taken with these flags.
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
        *rflags = *rflags & !ARITHMETIC | flags;
        if self.kind != Kind::Cmp {
            gprs.set(self.target, result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::insn::{decode, gpr};

    /// Runs the loop in `code`, whose first instruction is MOVDIR64B RDI, \[RSI\]. Returns the number of stores and the
    /// registers.
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

    /// Returns the stride of the loop in `code`.
    fn stride(code: &[u8]) -> Option<Stride> {
        let fetch = |at: u64| decode(code.get(at as usize..)?, at, 64);
        let first = fetch(0)?;
        Loop::recognise(&first, fetch)?.stride(&first)
    }

    #[test]
    fn only_a_plain_loop_is_a_stride() {
        const ADD_64: [u8; 4] = [0x48, 0x83, 0xC7, 0x40];
        const CMP_RDX: [u8; 3] = [0x48, 0x39, 0xD7];
        let plain = [&MOVDIR[..], &ADD_64, &CMP_RDX, &[0x72, 0xF2]].concat();
        let stride = stride(&plain).expect("a stride");
        let mut gprs = GprFile::default();
        for (at, end, ahead) in [
            (0x1000, 0x2000, 63),
            (0x1000, 0x9000, 63),
            (0x1FC0, 0x9000, 0),
            (0x1000, 0x1080, 1),
            (0x1000, 0x1081, 2),
            (0x1000, 0x1040, 0),
            (0x1000, 0x1000, 0),
            (0x1000, 0x800, 0),
        ] {
            (gprs.0[gpr::RDI], gprs.0[gpr::RDX]) = (at, end);
            assert_eq!(stride.ahead(&gprs), ahead, "{at:#x} to {end:#x}");
            // The number of stores equals that of executing each round.
            let (stores, _) = run(&plain, gprs).expect("a loop");
            assert!(stores as u64 > ahead);
        }
        stride.skip(&mut gprs, 3);
        assert_eq!(gprs.0[gpr::RDI], 0x10C0);

        let counted = [&MOVDIR[..], &ADD_64, &[0x48, 0xFF, 0xC9, 0x75, 0xF2]].concat();
        let stride = super::tests::stride(&counted).expect("a stride");
        for (at, count, ahead) in [
            (0x1000, 3, 2),
            (0x1000, 1, 0),
            (0x1FC0, 9, 0),
            (0x1000, 99, 63),
        ] {
            (gprs.0[gpr::RDI], gprs.0[gpr::RCX]) = (at, count);
            assert_eq!(stride.ahead(&gprs), ahead);
            let (stores, end) = run(&counted, gprs).expect("a loop");
            stride.skip(&mut gprs, ahead);
            let (rest, same_end) = run(&counted, gprs).expect("a loop");
            assert_eq!((stores as u64, end), (rest as u64 + ahead, same_end));
        }
        let jne = [&MOVDIR[..], &ADD_64, &CMP_RDX, &[0x75, 0xF2]].concat();
        let by_32 = [
            &MOVDIR[..],
            &[0x48, 0x83, 0xC7, 0x20],
            &CMP_RDX,
            &[0x72, 0xF2],
        ]
        .concat();
        let source_moves = [
            &MOVDIR[..],
            &[0x48, 0x83, 0xC6, 0x40],
            &CMP_RDX,
            &[0x72, 0xF2],
        ]
        .concat();
        for other in [jne, by_32, source_moves] {
            assert_eq!(super::tests::stride(&other), None);
        }
    }

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
    fn other_code_is_not_a_loop() {
        // mov [rdi], rax in the body; a jump elsewhere
        let store = [&MOVDIR[..], &[0x48, 0x89, 0x07, 0x75, 0xF6]].concat();
        assert!(run(&store, GprFile::default()).is_none());
        let elsewhere = [&MOVDIR[..], &[0x75, 0x10]].concat();
        assert!(run(&elsewhere, GprFile::default()).is_none());
    }
}

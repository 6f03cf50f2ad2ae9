//! A check of finished programs for the compiler bug described in docs/miscompilation.md.
//!
//! A load of 8 or 16 bits into the low part of a register leaves the rest unchanged. LLVM may treat the result as one
//! of 32 bits whose upper half is zero. The check finds each such load whose register may have a nonzero upper half,
//! and from which a use of all 64 bits can be reached before the register is overwritten.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SymbolKind};

/// Checks every function of the program `elf`.
///
/// Some uses do not count: an argument or a result in such a register; for a byte, a store to memory, and everything
/// after a use of less than the register. Programs that are optimised for size have many bytes in registers that were
/// never cleared. A function with instructions that the decoder does not know (AVX) is skipped.
///
/// # Errors
/// There is such a load; the error gives the function and the address of each. Or `elf` is no ELF file.
pub fn check(elf: &[u8]) -> Result<()> {
    let file = ElfFile64::<LittleEndian>::parse(elf).context("not an ELF64 file")?;
    let mut functions = Vec::new();
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text)
    {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let section = file.section_by_index(index)?;
        let bytes = section.data_range(symbol.address(), symbol.size())?;
        let bytes = bytes.context("a symbol ends after its section")?;
        let name = symbol.name().unwrap_or("?");
        functions.push((name, Function::decode(bytes, symbol.address())));
    }
    // Code after the call of a panic is not reached through it.
    let endless: BTreeSet<u64> = functions
        .iter()
        .filter(|(_, function)| !function.returns())
        .filter_map(|(_, function)| function.code.keys().next().copied())
        .collect();
    let found: Vec<_> = functions
        .into_iter()
        .flat_map(|(name, function)| {
            let places = function.calling(&endless).mistakes();
            places
                .into_iter()
                .map(move |at| format!("{at:#x} in {name}"))
        })
        .collect();
    ensure!(
        found.is_empty(),
        "loads into a part of a register, all of which is used then (docs/miscompilation.md): {}",
        found.join(", ")
    );
    Ok(())
}

/// A set of the 16 general-purpose registers, one bit each.
type Registers = u16;

/// The effect of an instruction on the registers.
struct Effect {
    /// Registers of which all 64 bits are read.
    reads: Registers,
    /// Registers that are written in 32 bits or more.
    writes: Registers,
    /// Registers of which a part is read, or a byte written.
    parts: Registers,
    /// Registers whose bits 63:32 are zero afterwards, whatever they were.
    clears: Registers,
}

struct Function {
    code: BTreeMap<u64, (Instruction, Effect)>,
    /// Addresses of functions that never return.
    endless: BTreeSet<u64>,
}

impl Function {
    fn decode(bytes: &[u8], address: u64) -> Self {
        let mut info = InstructionInfoFactory::new();
        let decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
        let code = decoder.into_iter().map(|instruction| {
            let effect = Effect::of(&instruction, &mut info);
            (instruction.ip(), (instruction, effect))
        });
        Self {
            code: code.collect(),
            endless: BTreeSet::new(),
        }
    }

    /// Sets the functions that never return.
    fn calling(mut self, endless: &BTreeSet<u64>) -> Self {
        self.endless.clone_from(endless);
        self
    }

    /// Returns true if the function returns, or jumps to code that may return.
    fn returns(&self) -> bool {
        self.code
            .values()
            .any(|(instruction, _)| match instruction.flow_control() {
                FlowControl::Return | FlowControl::IndirectBranch => true,
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    !self.code.contains_key(&instruction.near_branch_target())
                }
                _ => false,
            })
    }

    /// Returns the addresses in this function at which control can be after an instruction, as far as it names them.
    fn next(&self, instruction: &Instruction) -> impl Iterator<Item = u64> {
        let (falls, branches) = match instruction.flow_control() {
            FlowControl::UnconditionalBranch => (false, true),
            FlowControl::ConditionalBranch => (true, true),
            FlowControl::Return | FlowControl::IndirectBranch | FlowControl::Exception => {
                (false, false)
            }
            FlowControl::Call => {
                let returns = !self.endless.contains(&instruction.near_branch_target());
                (returns, false)
            }
            _ => (true, false),
        };
        let fallen = falls.then(|| instruction.next_ip());
        let branched = branches.then(|| instruction.near_branch_target());
        let here = |at: &u64| self.code.contains_key(at);
        fallen.into_iter().chain(branched).filter(here)
    }

    /// Returns, for each instruction, the registers whose bits 63:32 are zero on every path to it. A jump through a
    /// table leads to code where none is known.
    fn cleared(&self) -> BTreeMap<u64, Registers> {
        let mut targets: BTreeSet<u64> = self.code.keys().copied().collect();
        for (instruction, _) in self.code.values() {
            for at in self.next(instruction) {
                targets.remove(&at);
            }
        }
        let mut before: BTreeMap<u64, Registers> = targets.iter().map(|&at| (at, 0)).collect();
        let mut open: Vec<u64> = targets.into_iter().collect();
        while let Some(at) = open.pop() {
            let (instruction, effect) = &self.code[&at];
            let after = before[&at] & !effect.writes | effect.clears;
            for next in self.next(instruction) {
                let known = before.get(&next).copied();
                let both = known.map_or(after, |known| known & after);
                if known != Some(both) {
                    before.insert(next, both);
                    open.push(next);
                }
            }
        }
        before
    }

    fn mistakes(&self) -> Vec<u64> {
        let loads: Vec<_> = self
            .code
            .values()
            .filter_map(|(instruction, _)| Some((instruction, loaded_in_part(instruction)?)))
            .collect();
        let is_decoded = |(instruction, _): &(Instruction, Effect)| !instruction.is_invalid();
        if loads.is_empty() || !self.code.values().all(is_decoded) {
            return Vec::new();
        }
        let cleared = self.cleared();
        loads
            .into_iter()
            .filter(|(load, register)| {
                let known = cleared.get(&load.ip()).copied().unwrap_or(0);
                known & register == 0 && self.is_used_whole(load, *register)
            })
            .map(|(load, _)| load.ip())
            .collect()
    }

    /// Returns true if all 64 bits of a register, or of a copy of it in another, are read after an instruction, before
    /// it is written again.
    fn is_used_whole(&self, after: &Instruction, register: Registers) -> bool {
        let is_byte = after.op0_register().is_gpr8();
        let mut seen = BTreeSet::new();
        let mut open: Vec<_> = self.next(after).map(|at| (at, register)).collect();
        while let Some((at, holding)) = open.pop() {
            if !seen.insert((at, holding)) {
                continue;
            }
            let (instruction, effect) = &self.code[&at];
            let copy = copy_of(instruction, holding);
            let is_put_by = copy != 0 || is_byte && is_store(instruction);
            if effect.reads & holding != 0 && !is_put_by {
                return true;
            }
            let parts = if is_byte { effect.parts } else { 0 };
            let still = holding & !(effect.writes | parts) | copy;
            if still != 0 {
                open.extend(self.next(instruction).map(|at| (at, still)));
            }
        }
        false
    }
}

/// Returns the register of `mov r8, m8` or `mov r16, m16`.
fn loaded_in_part(instruction: &Instruction) -> Option<Registers> {
    let part = instruction.op0_register();
    let is_load = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Memory
        && part.is_gpr()
        && part.size() < 4;
    is_load.then(|| bit(part))
}

/// Returns the register that `mov r64, r64` fills from one of these; zero for another instruction.
fn copy_of(instruction: &Instruction, from: Registers) -> Registers {
    let is_copy = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_register().is_gpr64()
        && instruction.op1_register().is_gpr64();
    if is_copy && bit(instruction.op1_register()) & from != 0 {
        bit(instruction.op0_register())
    } else {
        0
    }
}

/// Returns true if an instruction only stores a register; a push counts.
fn is_store(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Mov => instruction.op0_kind() == OpKind::Memory,
        mnemonic => mnemonic == Mnemonic::Push,
    }
}

/// Returns true if an instruction's second operand is a bit number, which is the only part of it that is used.
fn takes_bit_number(instruction: &Instruction) -> bool {
    use Mnemonic::{Bt, Btc, Btr, Bts};
    matches!(instruction.mnemonic(), Bt | Btc | Btr | Bts)
        && instruction.op0_kind() == OpKind::Register
}

fn bit(register: Register) -> Registers {
    1 << (register.full_register().number() & 15)
}

impl Effect {
    fn of(instruction: &Instruction, info: &mut InstructionInfoFactory) -> Self {
        let mut effect = Self {
            reads: 0,
            writes: 0,
            parts: 0,
            clears: 0,
        };
        for used in info.info(instruction).used_registers() {
            let register = used.register();
            if !register.is_gpr() {
                continue;
            }
            let access = used.access();
            let reads = matches!(
                access,
                OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            let is_number = takes_bit_number(instruction)
                && register == instruction.op1_register()
                && register != instruction.op0_register();
            if reads && register.is_gpr64() && !is_number {
                effect.reads |= bit(register);
            }
            if register.is_gpr8() || reads && register.size() < 8 {
                effect.parts |= bit(register);
            }
            let writes = matches!(access, OpAccess::Write | OpAccess::ReadWrite);
            // An operation of 32 bits counts as writing all 64.
            if writes && register.size() >= 4 {
                effect.writes |= bit(register);
                let destination = instruction.op0_register();
                let is_narrow = register.is_gpr32()
                    || destination.is_gpr32() && destination.full_register() == register;
                if is_narrow {
                    effect.clears |= bit(register);
                }
            }
        }
        if instruction.flow_control() == FlowControl::Call
            || instruction.flow_control() == FlowControl::IndirectCall
        {
            // Registers that a function may change (System V ABI): RAX, RCX, RDX, RSI, RDI, R8 to R11.
            effect.writes |= 0xFC7;
            effect.clears &= !0xFC7;
        }
        effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(code: &[u8]) -> Vec<u64> {
        Function::decode(code, 0).mistakes()
    }

    /// mov cx, [rsi]
    const LOAD: &[u8] = &[0x66, 0x8B, 0x0E];
    /// add rax, rcx; ret
    const USE: &[u8] = &[0x48, 0x01, 0xC8, 0xC3];

    #[test]
    fn a_word_loaded_into_an_unknown_register_is_a_mistake_if_all_of_it_is_used() {
        assert_eq!(mistakes(&[LOAD, USE].concat()), [0]);
        // mov rcx, [rsp + 8]
        let filled = [&[0x48, 0x8B, 0x4C, 0x24, 8], LOAD, USE].concat();
        assert_eq!(mistakes(&filled), [5]);
    }

    #[test]
    fn none_is_where_the_upper_half_was_cleared_before() {
        // xor ecx, ecx
        assert_eq!(mistakes(&[&[0x31, 0xC9], LOAD, USE].concat()), [0; 0]);
        // mov ecx, edi
        assert_eq!(mistakes(&[&[0x89, 0xF9], LOAD, USE].concat()), [0; 0]);
    }

    #[test]
    fn none_is_where_the_register_is_extended_or_only_its_half_is_used() {
        // movzx ecx, cx
        assert_eq!(mistakes(&[LOAD, &[0x0F, 0xB7, 0xC9], USE].concat()), [0; 0]);
        // add eax, ecx; ret
        assert_eq!(mistakes(&[LOAD, &[0x01, 0xC8, 0xC3]].concat()), [0; 0]);
    }

    #[test]
    fn a_byte_may_be_put_by_and_a_word_may_not() {
        // mov [rsp + 8], rcx; ret
        let store: &[u8] = &[0x48, 0x89, 0x4C, 0x24, 8, 0xC3];
        assert_eq!(mistakes(&[LOAD, store].concat()), [0]);
        // mov cl, [rsi]
        let byte: &[u8] = &[0x8A, 0x0E];
        assert_eq!(mistakes(&[byte, store].concat()), [0; 0]);
        assert_eq!(mistakes(&[byte, USE].concat()), [0]);
        // cmp cl, 6
        assert_eq!(mistakes(&[byte, &[0x80, 0xF9, 6], USE].concat()), [0; 0]);
        // bts rax, rcx; ret
        assert_eq!(
            mistakes(&[byte, &[0x48, 0x0F, 0xAB, 0xC8, 0xC3]].concat()),
            [0; 0]
        );
    }

    #[test]
    fn a_copy_in_another_register_is_followed() {
        // mov cl, [rsi]; mov rdx, rcx
        let copied: &[u8] = &[0x8A, 0x0E, 0x48, 0x89, 0xCA];
        // movzx eax, dl; ret
        let as_byte = [copied, &[0x0F, 0xB6, 0xC2, 0xC3]].concat();
        assert_eq!(mistakes(&as_byte), [0; 0]);
        // add rax, rdx; ret
        let whole: &[u8] = &[0x48, 0x01, 0xD0, 0xC3];
        assert_eq!(mistakes(&[copied, whole].concat()), [0]);
        // mov edx, ecx
        let narrowed = [&[0x8A, 0x0E, 0x89, 0xCA], whole].concat();
        assert_eq!(mistakes(&narrowed), [0; 0]);
        // mov cx, [rsi]; mov rdx, rcx
        assert_eq!(mistakes(&[LOAD, &copied[2..], whole].concat()), [0]);
    }

    #[test]
    fn ways_meet() {
        // test al, al; je over the next instruction; xor ecx, ecx
        let skipped = [&[0x84, 0xC0, 0x74, 0x02, 0x31, 0xC9], LOAD, USE].concat();
        assert_eq!(mistakes(&skipped), [6]);
        // mov cl, [rsi]; loop: lea rax, [rcx + 1]; jmp back to the load
        let looped = [0x31, 0xC9, 0x8A, 0x0E, 0x48, 0x8D, 0x41, 0x01, 0xEB, 0xF8];
        assert_eq!(mistakes(&looped), [0; 0]);
    }
}

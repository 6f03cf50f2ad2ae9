//! The guest's code and linear memory, as the monitor reads them: SVM under TCG neither decodes instructions nor
//! reports their length.

use core::sync::atomic::Ordering;

use iced_x86::{Instruction, Mnemonic, OpKind};
use seam::abi::x86::vector;
use stub_module::Machine;
use stub_module::ept;
use stub_module::vcpu::Vcpu;
use stub_rom::insn::{self, SegmentBases};
use stub_rom::walk::{Paging, Trail};

use super::{Next, Td, reason};
use crate::memory::PAGE;
use crate::monitor::machine::SeamCpu;
use crate::monitor::vmcb::Segment;

const MAX_INSTRUCTION: usize = 15;

/// The readable bytes at the instruction pointer.
pub struct Bytes {
    bytes: [u8; MAX_INSTRUCTION],
    length: usize,
    rip: u64,
    bitness: u32,
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Decodes the instruction. Returns `None` if the decoder does not know it.
    pub fn decode(&self) -> Option<Instruction> {
        insn::decode(self.as_slice(), self.rip, self.bitness)
    }
}

/// TDCALL without further prefixes.
pub const TDCALL: [u8; 4] = [0x66, 0x0F, 0x01, 0xCC];

/// Returns the VM exit of an instruction that TCG does not know, and the instruction's length.
pub fn known(code: &Bytes) -> Option<(u32, usize)> {
    let instruction = code.decode()?;
    let reason = match instruction.mnemonic() {
        Mnemonic::Tdcall => reason::TDCALL,
        Mnemonic::Seamcall => reason::SEAMCALL,
        Mnemonic::Vmcall => reason::VMCALL,
        Mnemonic::Pconfig => reason::PCONFIG,
        _ => return None,
    };
    Some((reason, instruction.len()))
}

/// Returns whether an I/O instruction encodes the port itself.
pub fn is_immediate_port(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Immediate8 || instruction.op1_kind() == OpKind::Immediate8
}

impl Td {
    /// Returns the physical address of a guest-physical address that the guest may read.
    pub(super) fn physical(&self, machine: &SeamCpu, vcpu: &Vcpu<'_>, gpa: u64) -> Option<u64> {
        self.shadow.find(gpa).or_else(|| {
            let leaf = ept::walk(machine, vcpu, gpa, ept::READ).ok()?;
            let offset = gpa & (seam::abi::level_bytes(leaf.level) - 1);
            Some(leaf.page + offset)
        })
    }

    /// Translates a linear to a guest-physical address by the guest's page tables. Returns `None` if it is not mapped.
    pub(super) fn guest_physical(
        &self,
        machine: &SeamCpu,
        vcpu: &Vcpu<'_>,
        va: u64,
    ) -> Option<u64> {
        let read = |gpa| {
            self.physical(machine, vcpu, gpa)
                .map_or(0, |pa| machine.word(pa))
        };
        self.paging().translate(va, false, read).ok()
    }

    fn paging(&self) -> Paging {
        let s = &self.vmcb.save;
        Paging {
            cr0: s.cr0,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.efer,
        }
    }

    /// Returns the physical address of 64-bit code in the most recently read page. The walk to that page is kept,
    /// because the next exit is often on the same page.
    #[inline(always)]
    fn known_code(&self, machine: &SeamCpu, va: u64) -> Option<u64> {
        let (generation, trail) = self.trail.get();
        if generation != self.shadow.generation() {
            return None;
        }
        let (at, word) = trail.last_entry(&self.paging(), va)?;
        (machine.word(at) == word).then_some(trail.at(va))
    }

    /// Returns the physical address of the code at `va`.
    fn code_address(&self, machine: &SeamCpu, vcpu: &Vcpu<'_>, va: u64) -> Option<u64> {
        let known = self.is_in_long_mode().then(|| self.known_code(machine, va));
        known
            .flatten()
            .or_else(|| self.find_code(machine, vcpu, va))
    }

    #[inline(never)]
    fn find_code(&self, machine: &SeamCpu, vcpu: &Vcpu<'_>, va: u64) -> Option<u64> {
        if self.is_in_long_mode() {
            let read = |gpa| {
                let pa = self.physical(machine, vcpu, gpa);
                pa.map_or((0, 0), |pa| (pa, machine.word(pa)))
            };
            let trail = Trail::walk(&self.paging(), va, read).ok()?;
            let trail =
                trail.with_destination(self.physical(machine, vcpu, trail.destination())?);
            self.trail.set((self.shadow.generation(), trail));
            return Some(trail.destination() + va % PAGE as u64);
        }
        let gpa = self.guest_physical(machine, vcpu, va)?;
        self.physical(machine, vcpu, gpa)
    }

    /// Reads a range inside one page.
    fn read(&self, machine: &SeamCpu, vcpu: &Vcpu<'_>, va: u64, to: &mut [u8]) -> Option<()> {
        let pa = self.code_address(machine, vcpu, va)?;
        let page = machine.page(pa);
        for (at, byte) in (pa as usize % PAGE..).zip(to) {
            let word = page.get(at / 8)?.load(Ordering::Relaxed);
            *byte = (word >> (at % 8 * 8)) as u8;
        }
        Some(())
    }

    /// Returns the four bytes at the instruction pointer, if they are 64-bit code in the most recently read page.
    #[inline(always)]
    pub(super) fn opcode(&self, machine: &SeamCpu) -> Option<u32> {
        let va = self.vmcb.save.rip;
        let is_whole = va as usize % PAGE <= PAGE - size_of::<u32>();
        if !is_whole || !self.is_in_long_mode() {
            return None;
        }
        let pa = self.known_code(machine, va)?;
        let page = machine.page(pa);
        let word = |at: u64| page[at as usize % PAGE / 8].load(Ordering::Relaxed);
        Some(insn::opcode(pa, word))
    }

    /// Returns the bytes at the instruction pointer.
    #[inline(never)]
    pub(super) fn code(&self, machine: &SeamCpu, vcpu: &Vcpu<'_>) -> Bytes {
        let s = &self.vmcb.save;
        let (va, bitness) = if self.is_in_long_mode() {
            (s.rip, 64)
        } else {
            let bitness = if s.cs.attributes & Segment::BIG != 0 {
                32
            } else {
                16
            };
            (s.cs.base.wrapping_add(s.rip) & 0xFFFF_FFFF, bitness)
        };
        let mut code = Bytes {
            bytes: [0; MAX_INSTRUCTION],
            length: 0,
            rip: s.rip,
            bitness,
        };
        let first = (PAGE - va as usize % PAGE).min(MAX_INSTRUCTION);
        if first == MAX_INSTRUCTION
            && let Some(pa) = self.code_address(machine, vcpu, va)
        {
            let page = machine.page(pa);
            let word = |at: u64| page[at as usize % PAGE / 8].load(Ordering::Relaxed);
            (code.bytes, code.length) = (insn::bytes(pa, word), MAX_INSTRUCTION);
            return code;
        }
        self.read_code(machine, vcpu, va, code)
    }

    /// Reads the 16-bit memory operand of an instruction whose exit came before the read.
    ///
    /// # Errors
    /// The outcome if it can't be read: #PF, or an exit for the missing page.
    #[inline(never)]
    pub(super) fn word_operand(
        &mut self,
        machine: &SeamCpu,
        vcpu: &Vcpu<'_>,
        instruction: &Instruction,
    ) -> Result<u16, Next> {
        let bases = SegmentBases {
            fs: self.vmcb.save.fs.base,
            gs: self.vmcb.save.gs.base,
        };
        let va = insn::address(instruction, 0, &self.gprs, bases);
        let va = va.ok_or_else(|| self.unexplained("an operand that can't be found"))?;
        let mut word = [0; 2];
        for (at, byte) in [va, va.wrapping_add(1)].into_iter().zip(&mut word) {
            let Some(gpa) = self.guest_physical(machine, vcpu, at) else {
                self.vmcb.save.cr2 = at;
                return Err(self.raise(vector::PF, Some(0)));
            };
            let Some(pa) = self.physical(machine, vcpu, gpa) else {
                return Err(self.missing(machine, vcpu, gpa));
            };
            *byte = (machine.word(pa) >> (pa % 8 * 8)) as u8;
        }
        Ok(u16::from_le_bytes(word))
    }

    /// Reads code that continues in another page, or can't be read.
    #[inline(never)]
    fn read_code(&self, machine: &SeamCpu, vcpu: &Vcpu<'_>, va: u64, mut code: Bytes) -> Bytes {
        let first = (PAGE - va as usize % PAGE).min(MAX_INSTRUCTION);
        let (head, tail) = code.bytes.split_at_mut(first);
        if self.read(machine, vcpu, va, head).is_some() {
            let next = va.wrapping_add(first as u64);
            let all = tail.is_empty() || self.read(machine, vcpu, next, tail).is_some();
            code.length = if all { MAX_INSTRUCTION } else { first };
        }
        code
    }

    /// Returns the instruction at the instruction pointer, if it is one that causes the exit.
    ///
    /// # Errors
    /// The outcome if it is not, or can't be read.
    pub(super) fn instruction(
        &mut self,
        machine: &SeamCpu,
        vcpu: &Vcpu<'_>,
        exits: impl Fn(&Instruction) -> bool,
    ) -> Result<Instruction, Next> {
        let code = self.code(machine, vcpu);
        match code.decode() {
            Some(instruction) if exits(&instruction) => {
                self.doubt.settle();
                Ok(instruction)
            }
            _ => Err(self.execute_again(!code.is_empty())),
        }
    }

    /// Lets the processor execute an instruction again that does not match the exit, after a flush of its translations.
    /// If this does not help and the instruction is readable, TCG executes an instruction that the processor does not
    /// have, and the guest gets #UD. If the instruction can't be read, the vCPU ends.
    #[inline(never)]
    pub(super) fn execute_again(&mut self, is_readable: bool) -> Next {
        if self.doubt.may_retry(self.vmcb.save.rip, &self.gprs) {
            self.flush();
            self.redeliver();
            Next::Resume
        } else if is_readable {
            self.raise(vector::UD, None)
        } else {
            self.unexplained("an instruction that can't be read")
        }
    }

    /// Returns the linear address by which the instruction at the instruction pointer accesses `gpa`; 0 if it is
    /// unknown.
    pub(super) fn linear_address(&self, machine: &SeamCpu, vcpu: &Vcpu<'_>, gpa: u64) -> u64 {
        let code = self.code(machine, vcpu);
        let Some(instruction) = code.decode() else {
            return 0;
        };
        let bases = SegmentBases {
            fs: self.vmcb.save.fs.base,
            gs: self.vmcb.save.gs.base,
        };
        (0..instruction.op_count())
            .filter_map(|operand| insn::address(&instruction, operand, &self.gprs, bases))
            .flat_map(|va| {
                // The operand may start on the previous page.
                let last = va.wrapping_add(instruction.memory_size().size().max(1) as u64 - 1);
                [va, last]
            })
            .find(|&va| {
                self.guest_physical(machine, vcpu, va).map(|at| at >> 12) == Some(gpa >> 12)
            })
            .map_or(0, |va| va & !0xFFF | gpa & 0xFFF)
    }
}

//! Access to the software's memory and instructions on its behalf.

use iced_x86::Instruction;
use seam::abi::x86::{efer, rflags, vector};
use stub_rom::insn::{self, SegmentBases};
use stub_rom::vmx::{Memory, Outcome};
use stub_rom::walk::{PageFault, Paging, Trail};

use super::lp::Lp;
use super::machine::word;
use super::vmcb::Segment;
use crate::memory::PAGE;

const MAX_INSTRUCTION: usize = 15;

/// The reason why an emulated instruction can't complete: the fault that the software gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// #UD.
    InvalidOpcode,
    /// #GP(0).
    Protection,
    /// #PF.
    Page {
        /// The linear address.
        va: u64,
        /// The error code.
        code: u32,
    },
}

impl Lp {
    /// Returns the registers that govern paging.
    pub fn paging(&self) -> Paging {
        let s = &self.vmcb.save;
        Paging {
            cr0: s.cr0,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.efer,
        }
    }

    /// Translates a linear address to a physical one.
    pub fn translate(&self, va: u64, write: bool) -> Result<u64, Fault> {
        let physical = self.physical();
        self.paging()
            .translate(va, write, |pa| physical.read(pa))
            .map_err(|PageFault(code)| Fault::Page { va, code })
    }

    /// Reads the software's linear memory.
    pub fn read(&self, va: u64, to: &mut [u8]) -> Result<(), Fault> {
        let mut done = 0;
        while done < to.len() {
            let at = va.wrapping_add(done as u64);
            let run = (PAGE - at as usize % PAGE).min(to.len() - done);
            let pa = self.translate(at, false)?;
            self.data().copy_from(pa, &mut to[done..done + run]);
            done += run;
        }
        Ok(())
    }

    /// Writes the software's linear memory. It writes nothing if a part of the range can't be written.
    pub fn write(&self, va: u64, from: &[u8]) -> Result<(), Fault> {
        self.translate(va.wrapping_add(from.len() as u64 - 1), true)?;
        let mut done = 0;
        while done < from.len() {
            let at = va.wrapping_add(done as u64);
            let run = (PAGE - at as usize % PAGE).min(from.len() - done);
            let pa = self.translate(at, true)?;
            self.data().copy_to(pa, &from[done..done + run]);
            done += run;
        }
        Ok(())
    }

    /// Reads a 64-bit word.
    pub fn read_u64(&self, va: u64) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        self.read(va, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Returns whether the processor executes 64-bit code.
    pub fn is_in_long_mode(&self) -> bool {
        let s = &self.vmcb.save;
        s.efer & efer::LMA != 0 && s.cs.attributes & Segment::LONG != 0
    }

    /// Returns the width of the current code: 16, 32 or 64 bits.
    pub fn bitness(&self) -> u32 {
        if self.is_in_long_mode() {
            64
        } else if self.vmcb.save.cs.attributes & Segment::BIG != 0 {
            32
        } else {
            16
        }
    }

    /// Returns the four bytes at the instruction pointer, if they are 64-bit code in the most recently read page.
    #[inline(always)]
    pub fn opcode(&self) -> Option<u32> {
        let va = self.vmcb.save.rip;
        let is_whole = va as usize % PAGE <= PAGE - size_of::<u32>();
        if !is_whole || !self.is_in_long_mode() {
            return None;
        }
        Some(insn::opcode(self.known_code(va)?, word))
    }

    /// Returns the bytes at the instruction pointer that can be read, and their number.
    pub fn code(&self) -> ([u8; MAX_INSTRUCTION], usize) {
        self.code_at(self.vmcb.save.rip)
    }

    /// Returns the bytes of code at `rip` that can be read, and their number.
    pub fn code_at(&self, rip: u64) -> ([u8; MAX_INSTRUCTION], usize) {
        let s = &self.vmcb.save;
        let va = if self.is_in_long_mode() {
            rip
        } else {
            s.cs.base.wrapping_add(rip)
        };
        let first = (PAGE - va as usize % PAGE).min(MAX_INSTRUCTION);
        if first == MAX_INSTRUCTION
            && self.is_in_long_mode()
            && let Some(pa) = self.known_code(va)
        {
            return (insn::bytes(pa, word), MAX_INSTRUCTION);
        }
        self.read_code_at(va, first)
    }

    #[inline(never)]
    fn read_code_at(&self, va: u64, first: usize) -> ([u8; MAX_INSTRUCTION], usize) {
        let mut bytes = [0; MAX_INSTRUCTION];
        if self.read_code(va, &mut bytes[..first]).is_err() {
            return (bytes, 0);
        }
        if first == MAX_INSTRUCTION {
            return (bytes, MAX_INSTRUCTION);
        }
        match self.read(va.wrapping_add(first as u64), &mut bytes[first..]) {
            Ok(()) => (bytes, MAX_INSTRUCTION),
            Err(_) => (bytes, first),
        }
    }

    /// Returns the physical address of 64-bit code in the most recently read page. The walk to that page is kept,
    /// because the next exit is often on the same page. As long as no memory has become private since, the software may
    /// still access all of the walk.
    #[inline(always)]
    fn known_code(&self, va: u64) -> Option<u64> {
        let (epoch, trail) = self.trail.get();
        (epoch == self.epoch)
            .then(|| trail.follow(&self.paging(), va, word))
            .flatten()
    }

    /// Reads code of one page, and records the walk to it.
    fn read_code(&self, va: u64, to: &mut [u8]) -> Result<(), Fault> {
        if !self.is_in_long_mode() {
            return self.read(va, to);
        }
        let (paging, physical) = (self.paging(), self.physical());
        let trail = Trail::walk(&paging, va, |pa| (pa, physical.read(pa)))
            .map_err(|PageFault(code)| Fault::Page { va, code })?;
        let pa = trail.follow(&paging, va, |pa| physical.read(pa));
        let Some(pa) = pa.filter(|&pa| physical.is_accessible(pa)) else {
            return self.read(va, to);
        };
        self.data().copy_from(pa, to);
        self.trail.set((self.epoch, trail));
        Ok(())
    }

    /// Decodes the instruction at the instruction pointer.
    pub fn instruction(&self) -> Option<Instruction> {
        let (bytes, length) = self.code();
        insn::decode(&bytes[..length], self.vmcb.save.rip, self.bitness())
    }

    /// Returns the linear address of a memory operand.
    pub fn operand_address(&self, instruction: &Instruction, operand: u32) -> Result<u64, Fault> {
        let bases = SegmentBases {
            fs: self.vmcb.save.fs.base,
            gs: self.vmcb.save.gs.base,
        };
        let va =
            insn::address(instruction, operand, &self.gprs, bases).ok_or(Fault::InvalidOpcode)?;
        let canonical = (va as i64) << 16 >> 16 == va as i64;
        if canonical {
            Ok(va)
        } else {
            Err(Fault::Protection)
        }
    }

    /// Injects the fault into the software.
    pub fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::InvalidOpcode => self.vmcb.inject_exception(vector::UD, None),
            Fault::Protection => self.vmcb.inject_exception(vector::GP, Some(0)),
            Fault::Page { va, code } => {
                self.vmcb.save.cr2 = va;
                self.vmcb.inject_exception(vector::PF, Some(code));
            }
        }
    }

    /// Ends a VMX instruction: sets the arithmetic flags, or returns the fault.
    pub fn finish_vmx(&mut self, outcome: Outcome) -> Result<(), Fault> {
        let flags = match outcome {
            Outcome::Succeed => 0,
            Outcome::FailInvalid => rflags::CF,
            Outcome::FailValid => rflags::ZF,
            Outcome::Ud => return Err(Fault::InvalidOpcode),
            Outcome::Gp => return Err(Fault::Protection),
        };
        let save = &mut self.vmcb.save;
        save.rflags = save.rflags & !rflags::ARITHMETIC | flags;
        Ok(())
    }
}

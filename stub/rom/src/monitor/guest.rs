//! Access to the software's memory and instructions on its behalf.
#![expect(unsafe_code, reason = "reads and writes memory of the software above")]

use iced_x86::Instruction;
use stub_module::hooks::Access;
use stub_rom::insn::{self, SegmentBases};
use stub_rom::personality::KEYID_MASK;
use stub_rom::vmx::{Memory, Outcome};
use stub_rom::walk::{PageFault, Paging, Trail};

use super::lp::{self, Lp};
use super::machine::SeamCpu;
use super::vmcb::{Segment, vector};
use super::{exits, world};
use crate::memory::PAGE;
use crate::report;

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

/// Returns whether the software may access the physical address. It must not lie in the SEAM range, have a KeyID,
/// belong to a private page, or be out of the monitor's own reach.
pub fn is_accessible(pa: u64) -> bool {
    pa < 1 << 47 && !is_in_seamrr(pa) && (world::get().npt.maps(pa) || !is_private(pa))
}

fn is_in_seamrr(pa: u64) -> bool {
    let (base, size) = world::get().seamrr;
    (base..base + size).contains(&pa)
}

fn is_private(pa: u64) -> bool {
    match (world::module(), lp::current()) {
        (Some(module), Some(lp)) => module.is_private(&SeamCpu::new(lp), pa),
        _ => false,
    }
}

/// Reports an access of the software on `lp` to memory that it must not access.
pub fn report_refused(lp: &Lp, pa: u64, access: Access) {
    let rip = lp.vmcb.save.rip;
    if is_in_seamrr(pa) {
        report::violation("seamrr_access", lp.number, rip, pa);
    } else if pa & KEYID_MASK != 0 {
        report::violation("keyid_alias", lp.number, rip, pa);
    } else if let Some(module) = world::module() {
        // The module classifies the access and records it.
        let machine = SeamCpu::new(lp);
        let _ = module.check_host_access(&machine, lp.number, pa, access, Some(rip));
        exits::report_violations(module);
    }
}

/// Returns whether an emulated instruction may access its operand. Reports the access if not.
fn admit(pa: u64, access: Access) -> bool {
    let admitted = is_accessible(pa);
    if !admitted && let Some(lp) = lp::current() {
        report_refused(lp, pa, access);
    }
    admitted
}

/// Physical memory of the software's page tables. Inaccessible memory reads as ones and ignores writes.
pub struct Physical;

/// Physical memory of an emulated instruction's operands. Like [`Physical`], but accesses to inaccessible memory are
/// reported.
pub struct Data;

impl Memory for Data {
    fn read(&self, pa: u64) -> u64 {
        if admit(pa, Access::Read) {
            Physical.read(pa)
        } else {
            u64::MAX
        }
    }

    fn write(&mut self, pa: u64, value: u64) {
        if admit(pa, Access::Write) {
            Physical.write(pa, value);
        }
    }
}

impl Memory for Physical {
    fn read(&self, pa: u64) -> u64 {
        if !is_accessible(pa) {
            return u64::MAX;
        }
        // SAFETY: identity-mapped memory of the software's own choice, none of the monitor's.
        unsafe { ((pa & !7) as *const u64).read_volatile() }
    }

    fn write(&mut self, pa: u64, value: u64) {
        if is_accessible(pa) {
            // SAFETY: as for `read`: the software could have written there itself.
            unsafe { ((pa & !7) as *mut u64).write_volatile(value) };
        }
    }
}

/// Reads a word on the walk to code. The software could access it when the walk was recorded, and still can.
fn word(pa: u64) -> u64 {
    // SAFETY: identity-mapped memory, which the caller has found to be the software's.
    unsafe { ((pa & !7) as *const u64).read_volatile() }
}

/// Copies from physical memory. The range lies inside one page.
pub fn read_physical(pa: u64, to: &mut [u8]) {
    if admit(pa, Access::Read) {
        // SAFETY: as for `Physical::read`; `to` is the monitor's and can't overlap the software's memory.
        unsafe { core::ptr::copy_nonoverlapping(pa as *const u8, to.as_mut_ptr(), to.len()) };
    } else {
        to.fill(0xFF);
    }
}

/// Copies to physical memory. The range lies inside one page.
pub fn write_physical(pa: u64, from: &[u8]) {
    if admit(pa, Access::Write) {
        // SAFETY: as for `Physical::write`.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), pa as *mut u8, from.len()) };
    }
}

/// Copies `line` to physical memory `times` times. All copies lie inside one page.
pub fn fill_physical(pa: u64, line: &[u8; 64], times: usize) {
    if !admit(pa, Access::Write) {
        return;
    }
    let to = pa as *mut u8;
    // SAFETY: as for `Physical::write`; the software's right to write is the same for the whole page.
    unsafe {
        if line.iter().all(|&byte| byte == 0) {
            to.write_bytes(0, times * line.len());
        } else {
            for at in 0..times {
                to.add(at * line.len()).copy_from(line.as_ptr(), line.len());
            }
        }
    }
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
        self.paging()
            .translate(va, write, |pa| Physical.read(pa))
            .map_err(|PageFault(code)| Fault::Page { va, code })
    }

    /// Reads the software's linear memory.
    pub fn read(&self, va: u64, to: &mut [u8]) -> Result<(), Fault> {
        let mut done = 0;
        while done < to.len() {
            let at = va.wrapping_add(done as u64);
            let run = (PAGE - at as usize % PAGE).min(to.len() - done);
            read_physical(self.translate(at, false)?, &mut to[done..done + run]);
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
            write_physical(self.translate(at, true)?, &from[done..done + run]);
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
        const EFER_LMA: u64 = 1 << 10;
        let s = &self.vmcb.save;
        s.efer & EFER_LMA != 0 && s.cs.attributes & Segment::LONG != 0
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
        let paging = self.paging();
        let trail = Trail::walk(&paging, va, |pa| (pa, Physical.read(pa)))
            .map_err(|PageFault(code)| Fault::Page { va, code })?;
        let pa = trail.follow(&paging, va, |pa| Physical.read(pa));
        let Some(pa) = pa.filter(|&pa| is_accessible(pa)) else {
            return self.read(va, to);
        };
        read_physical(pa, to);
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
        const CF: u64 = 1;
        const ZF: u64 = 1 << 6;
        /// CF, PF, AF, ZF, SF and OF.
        const ARITHMETIC: u64 = 0x8D5;
        let flags = match outcome {
            Outcome::Succeed => 0,
            Outcome::FailInvalid => CF,
            Outcome::FailValid => ZF,
            Outcome::Ud => return Err(Fault::InvalidOpcode),
            Outcome::Gp => return Err(Fault::Protection),
        };
        let rflags = &mut self.vmcb.save.rflags;
        *rflags = *rflags & !ARITHMETIC | flags;
        Ok(())
    }
}

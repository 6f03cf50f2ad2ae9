//! Single steps with a replaced page: an instruction sees a page of ones instead of memory that it must not access.
//!
//! The CPU executes the instruction, whatever it is, in a single step. Until it ends, only this processor sees the page
//! of ones. No interrupt can come in between.

use stub_rom::vmx::Memory;

use super::deliver_nmi;
use crate::monitor::guest::{Physical, is_accessible};
use crate::monitor::lp::{self, Lp};
use crate::monitor::npt;
use crate::monitor::vmcb::vector;
use crate::monitor::world;

/// A single step in progress.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The software's own trap and interrupt flags.
    flags: u64,
    dr6: u64,
    cr3: u64,
    over_memory: bool,
}

const TRAP_FLAG: u64 = 1 << 8;
const INTERRUPT_FLAG: u64 = 1 << 9;
const STEP_FLAGS: u64 = TRAP_FLAG | INTERRUPT_FLAG;
const DR6_SINGLE_STEP: u64 = 1 << 14;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// Returns whether a step over a forbidden page is in progress. Further faults then belong to the same instruction.
pub fn is_over_memory(lp: &Lp) -> bool {
    lp.step.is_some_and(|step| step.over_memory)
}

fn begin(lp: &mut Lp, over_memory: bool) {
    let save = &mut lp.vmcb.save;
    // A step already in progress, over an IRET that reads forbidden memory, holds the software's state.
    let before = lp.step.unwrap_or(Step {
        flags: save.rflags & STEP_FLAGS,
        dr6: save.dr6,
        cr3: save.cr3,
        over_memory,
    });
    lp.step = Some(Step {
        over_memory,
        ..before
    });
    // An interrupt must not come first: its handler would run with the page of ones in place. TCG ignores the interrupt
    // shadow of a VMCB, so IF is cleared.
    save.rflags = save.rflags & !INTERRUPT_FLAG | TRAP_FLAG;
    lp.vmcb.intercept_exceptions = u32::MAX;
}

fn begin_over_memory(lp: &mut Lp) {
    if !is_over_memory(lp) {
        begin(lp, true);
        lp.scratch.fill(u64::MAX);
        lp.detour.reset(world::get().npt.address());
        lp.vmcb.nested_cr3 = lp.detour.address();
    }
    lp.vmcb.tlb_control = 1;
}

fn scratch(lp: &Lp) -> u64 {
    core::ptr::from_ref::<[u64; 512]>(lp.scratch) as u64
}

/// Returns CR3 as the software has set it.
pub fn software_cr3(lp: &Lp) -> u64 {
    lp.step.map_or(lp.vmcb.save.cr3, |step| step.cr3)
}

/// Steps over the instruction with the page of ones at the physical address `pa`.
pub fn over_page(lp: &mut Lp, pa: u64) {
    begin_over_memory(lp);
    let scratch = scratch(lp);
    lp.detour.map(pa, scratch, world::get().npt.address());
}

/// Applies a change of the shared tables, which now map another page, to a step in progress.
pub fn follow(lp: &mut Lp) {
    lp.detour.refresh(world::get().npt.address());
    lp.vmcb.tlb_control = 1;
}

/// Steps over the instruction with the page of ones at the linear address `va`, whose translation carries a KeyID.
/// Returns false, with nothing changed, if the instruction accesses more such pages than there are tables for.
pub fn over_alias(lp: &mut Lp, va: u64) -> bool {
    let is_first = lp.vmcb.save.cr3 != lp.shadow_paging.root();
    if is_first {
        lp.shadow_paging.start(software_cr3(lp));
    }
    let scratch = scratch(lp);
    if !lp.shadow_paging.map(va, scratch) {
        return false;
    }
    begin_over_memory(lp);
    lp.vmcb.save.cr3 = lp.shadow_paging.root();
    for page in lp.shadow_paging.pages().chain([scratch]) {
        lp.detour.map(page, page, world::get().npt.address());
    }
    true
}

/// Steps over IRET, after which NMIs are no longer blocked.
#[inline(never)]
pub fn over_iret(lp: &mut Lp) {
    begin(lp, false);
}

/// Ends the step at exception `number`: its own trap, or a fault that the software gets.
#[inline(never)]
pub fn end(lp: &mut Lp, number: u32) {
    let Some(step) = lp.step.take() else { return };
    let (code, address) = (lp.vmcb.exit_info1, lp.vmcb.exit_info2);
    if !step.over_memory {
        lp.nmi_blocked = false;
    }
    let save = &mut lp.vmcb.save;
    save.cr3 = step.cr3;
    // An executed IRET has loaded its own flags. In all other cases the software's flags are restored.
    if step.over_memory || number != vector::DB {
        save.rflags = save.rflags & !STEP_FLAGS | step.flags;
    }
    lp.vmcb.intercept_exceptions = lp::exceptions(world::get().options.tdx);
    lp.vmcb.nested_cr3 = world::get().npt.address();
    lp.detour.clear();
    lp.vmcb.tlb_control = 1;
    if number == vector::DB {
        let causes = save_dr6(lp, step.dr6);
        if causes || step.flags & TRAP_FLAG != 0 {
            lp.vmcb.inject_exception(vector::DB, None);
        }
    } else {
        const WITH_ERROR_CODE: u32 = 1 << 8 | 0x1F << 10 | 1 << 17 | 1 << 21;
        if number == vector::PF {
            lp.vmcb.save.cr2 = address;
        }
        let error = (WITH_ERROR_CODE >> number & 1 != 0).then_some(code as u32);
        lp.vmcb.inject_exception(number, error);
    }
    deliver_nmi(lp);
}

/// Removes the single step from DR6. Returns whether another cause of a debug exception remains.
fn save_dr6(lp: &mut Lp, before: u64) -> bool {
    const BREAKPOINTS: u64 = 0xF;
    let dr6 = &mut lp.vmcb.save.dr6;
    let hit = *dr6 & BREAKPOINTS & !before != 0;
    *dr6 = *dr6 & !DR6_SINGLE_STEP | before & DR6_SINGLE_STEP;
    hit
}

/// Private copies of the software's page tables, with single pages mapped elsewhere.
pub struct ShadowPaging {
    /// The tables. The first is the root.
    tables: [&'static mut [u64; 512]; Self::TABLES],
    used: usize,
}

impl ShadowPaging {
    /// A root, and the tables of four pages on four different paths: two operands, each across a page boundary.
    pub const TABLES: usize = 1 + 4 * 3;

    pub fn new() -> Self {
        Self {
            tables: core::array::from_fn(|_| crate::memory::page()),
            used: 0,
        }
    }

    fn address(&self, table: usize) -> u64 {
        core::ptr::from_ref::<[u64; 512]>(self.tables[table]) as u64
    }

    fn root(&self) -> u64 {
        self.address(0)
    }

    fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let pages: [u64; Self::TABLES] = core::array::from_fn(|i| self.address(i));
        pages.into_iter()
    }

    /// Restarts from the tables at `cr3`.
    fn start(&mut self, cr3: u64) {
        const ROOT_SHIFT: u32 = 39;
        Source::Table(cr3 & ADDRESS).copy_to(self.tables[0], ROOT_SHIFT);
        self.used = 1;
    }

    /// Maps the page of `va` to the page `target`, and splits large pages on the way. Returns false if there are not
    /// enough tables.
    fn map(&mut self, va: u64, target: u64) -> bool {
        let mut at = 0;
        for shift in [39, 30, 21] {
            let index = (va >> shift & 0x1FF) as usize;
            let entry = self.tables[at][index];
            let own = (1..self.used)
                .find(|&i| entry & Source::PRESENT != 0 && self.address(i) == entry & ADDRESS);
            at = match own {
                Some(own) => own,
                None if self.used == Self::TABLES => return false,
                None => {
                    let next = self.used;
                    self.used += 1;
                    Source::behind(entry, shift).copy_to(self.tables[next], shift - 9);
                    self.tables[at][index] = npt::leaf(self.address(next));
                    next
                }
            };
        }
        self.tables[at][(va >> 12 & 0x1FF) as usize] = npt::leaf(target);
        true
    }
}

/// The source from which a level of page tables is copied.
enum Source {
    Table(u64),
    Large(u64),
    Nothing,
}

impl Source {
    const PRESENT: u64 = 1;
    const LARGE: u64 = 1 << 7;

    fn behind(entry: u64, shift: u32) -> Self {
        if entry & Self::PRESENT == 0 {
            Self::Nothing
        } else if shift < 39 && entry & Self::LARGE != 0 {
            Self::Large(entry)
        } else {
            Self::Table(entry & ADDRESS)
        }
    }

    /// Fills the table `to`, whose entries map 2^`shift` bytes.
    fn copy_to(&self, to: &mut [u64; 512], shift: u32) {
        for (i, entry) in (0..).zip(to) {
            *entry = match *self {
                Self::Table(at) if is_accessible(at) => Physical.read(at + i * 8),
                Self::Large(large) if shift == 12 => large & !Self::LARGE | i << shift,
                Self::Large(large) => large | i << shift,
                _ => 0,
            };
        }
    }
}

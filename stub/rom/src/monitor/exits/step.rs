//! One instruction with something else in place: a page of ones instead of what it may not touch.
//!
//! The instruction is executed by the CPU, whatever it is, in a single step. Until it ends only this processor sees
//! the page of ones; an interrupt can't come in between.

use stub_rom::vmx::Memory;

use super::deliver_nmi;
use crate::monitor::guest::{Physical, is_accessible};
use crate::monitor::lp::{self, Lp};
use crate::monitor::npt;
use crate::monitor::vmcb::vector;
use crate::monitor::world;

/// A single step under way.
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

/// Whether a step over a forbidden page is under way, so that its further faults belong to the same instruction.
pub fn is_over_memory(lp: &Lp) -> bool {
    lp.step.is_some_and(|step| step.over_memory)
}

fn begin(lp: &mut Lp, over_memory: bool) {
    let save = &mut lp.vmcb.save;
    lp.step = Some(Step {
        flags: save.rflags & STEP_FLAGS,
        dr6: save.dr6,
        cr3: save.cr3,
        over_memory,
    });
    // An interrupt must not come first: its handler would run with the page of ones in place. TCG does not heed the
    // interrupt shadow of a VMCB, hence the flag.
    save.rflags = save.rflags & !INTERRUPT_FLAG | TRAP_FLAG;
    lp.vmcb.intercept_exceptions = u32::MAX;
}

fn begin_over_memory(lp: &mut Lp) {
    if !is_over_memory(lp) {
        begin(lp, true);
        lp.scratch.fill(u64::MAX);
        lp.detour.reset(world::get().npt);
        lp.vmcb.nested_cr3 = lp.detour.address();
    }
    lp.vmcb.tlb_control = 1;
}

fn scratch(lp: &Lp) -> u64 {
    core::ptr::from_ref::<[u64; 512]>(lp.scratch) as u64
}

/// Executes the instruction with the page of ones at the physical address `pa`.
pub fn over_page(lp: &mut Lp, pa: u64) {
    begin_over_memory(lp);
    let scratch = scratch(lp);
    if !lp.detour.map(pa, scratch) {
        crate::monitor::panic::stop(format_args!(
            "one instruction touches too many hidden pages"
        ));
    }
}

/// Executes the instruction with the page of ones at the linear address `va`, whose translation carries a KeyID.
pub fn over_alias(lp: &mut Lp, va: u64) {
    begin_over_memory(lp);
    let scratch = scratch(lp);
    lp.shadow_paging.map(lp.vmcb.save.cr3, va, scratch);
    lp.vmcb.save.cr3 = lp.shadow_paging.root();
    let tables = lp.shadow_paging.pages();
    for page in tables.into_iter().chain([scratch]) {
        if !lp.detour.map(page, page) {
            crate::monitor::panic::stop(format_args!("one instruction touches too many aliases"));
        }
    }
}

/// Executes IRET, after which NMIs are no longer blocked.
pub fn over_iret(lp: &mut Lp) {
    begin(lp, false);
}

/// Exception `number` ends the step: its own trap, or a fault that the software gets.
pub fn end(lp: &mut Lp, number: u32) {
    let Some(step) = lp.step.take() else { return };
    let (code, address) = (lp.vmcb.exit_info1, lp.vmcb.exit_info2);
    if !step.over_memory {
        lp.nmi_blocked = false;
    }
    let save = &mut lp.vmcb.save;
    save.cr3 = step.cr3;
    // An IRET that was executed has loaded flags of its own; anything else keeps the software's.
    if step.over_memory || number != vector::DB {
        save.rflags = save.rflags & !STEP_FLAGS | step.flags;
    }
    lp.vmcb.intercept_exceptions = lp::exceptions(world::get().options.tdx);
    lp.vmcb.nested_cr3 = world::get().npt;
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

/// Takes the single step out of DR6; whether another cause of a debug exception remains.
fn save_dr6(lp: &mut Lp, before: u64) -> bool {
    const BREAKPOINTS: u64 = 0xF;
    let dr6 = &mut lp.vmcb.save.dr6;
    let hit = *dr6 & BREAKPOINTS & !before != 0;
    *dr6 = *dr6 & !DR6_SINGLE_STEP | before & DR6_SINGLE_STEP;
    hit
}

/// Private copies of the software's page tables along one path, whose leaf is somewhere else.
pub struct ShadowPaging {
    tables: [&'static mut [u64; 512]; 4],
}

impl ShadowPaging {
    pub fn new() -> Self {
        Self {
            tables: core::array::from_fn(|_| crate::memory::page()),
        }
    }

    fn root(&self) -> u64 {
        core::ptr::from_ref::<[u64; 512]>(self.tables[0]) as u64
    }

    fn pages(&self) -> [u64; 4] {
        core::array::from_fn(|i| core::ptr::from_ref::<[u64; 512]>(self.tables[i]) as u64)
    }

    /// Copies the four tables on the way from `cr3` to `va`, and lets the last one map it to the page `target`. What is
    /// on the way as a large page is split.
    fn map(&mut self, cr3: u64, va: u64, target: u64) {
        let mut source = Source::Table(cr3 & ADDRESS);
        let pages = self.pages();
        for (level, table) in self.tables.iter_mut().enumerate() {
            let shift = 39 - 9 * level;
            for (i, entry) in table.iter_mut().enumerate() {
                *entry = source.entry(i as u64, shift);
            }
            let entry = &mut table[(va >> shift & 0x1FF) as usize];
            source = Source::behind(*entry, shift);
            *entry = pages
                .get(level + 1)
                .map_or(npt::leaf(target), |&next| npt::leaf(next));
        }
    }
}

/// What a level of page tables is copied from.
enum Source {
    Table(u64),
    Large(u64),
    Nothing,
}

impl Source {
    const PRESENT: u64 = 1;
    const LARGE: u64 = 1 << 7;

    fn behind(entry: u64, shift: usize) -> Self {
        if entry & Self::PRESENT == 0 {
            Self::Nothing
        } else if shift < 39 && entry & Self::LARGE != 0 {
            Self::Large(entry)
        } else {
            Self::Table(entry & ADDRESS)
        }
    }

    /// Entry `index` of the table whose entries map 2^`shift` bytes.
    fn entry(&self, index: u64, shift: usize) -> u64 {
        match *self {
            Self::Table(at) if is_accessible(at) => Physical.read(at + index * 8),
            Self::Large(entry) if shift == 12 => entry & !Self::LARGE | index << shift,
            Self::Large(entry) => entry | index << shift,
            _ => 0,
        }
    }
}

//! Single steps with a replaced page: an instruction sees a page of ones instead of memory that it must not access.
//!
//! The CPU executes the instruction, whatever it is, in a single step. Until it ends, only this processor sees the page
//! of ones. No interrupt can come in between.

use super::deliver_nmi;
use crate::monitor::lp::{self, Lp, Step};
use crate::monitor::reach;
use seam::abi::x86::{dr6, rflags, vector};

const STEP_FLAGS: u64 = rflags::TF | rflags::IF;

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
    save.rflags = save.rflags & !rflags::IF | rflags::TF;
    lp.vmcb.intercept_exceptions = u32::MAX;
}

fn begin_over_memory(lp: &mut Lp) {
    if !is_over_memory(lp) {
        begin(lp, true);
        lp.scratch.fill(u64::MAX);
        lp.detour.reset(lp.world.npt.address());
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
    lp.detour.map(pa, scratch, lp.world.npt.address());
}

/// Steps over the instruction with the registers of the VT-d unit at the physical address `pa`, which is in their page.
pub fn over_registers(lp: &mut Lp, pa: u64) {
    begin_over_memory(lp);
    lp.detour.map(pa, pa, lp.world.npt.address());
}

/// Applies a change of the shared tables, which now map another page, to a step in progress.
pub fn follow(lp: &mut Lp) {
    lp.detour.refresh(lp.world.npt.address());
    lp.vmcb.tlb_control = 1;
}

/// Steps over the instruction with the page of ones at the linear address `va`, whose translation carries a KeyID.
/// Returns false, with nothing changed, if the instruction accesses more such pages than there are tables for.
pub fn over_alias(lp: &mut Lp, va: u64) -> bool {
    let physical = lp.physical();
    let is_first = lp.vmcb.save.cr3 != lp.shadow_paging.root();
    if is_first {
        let cr3 = software_cr3(lp);
        lp.shadow_paging.start(cr3, physical);
    }
    let scratch = scratch(lp);
    if !lp.shadow_paging.map(va, scratch, physical) {
        return false;
    }
    begin_over_memory(lp);
    lp.vmcb.save.cr3 = lp.shadow_paging.root();
    for page in lp.shadow_paging.pages().chain([scratch]) {
        lp.detour.map(page, page, lp.world.npt.address());
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
pub fn end(lp: &mut Lp, number: u8) {
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
    lp.vmcb.intercept_exceptions = lp::exceptions(lp.world.options.tdx);
    lp.vmcb.nested_cr3 = lp.world.npt.address();
    lp.detour.clear();
    lp.vmcb.tlb_control = 1;
    if step.over_memory {
        reach::check(lp);
    }
    if number == vector::DB {
        let causes = save_dr6(lp, step.dr6);
        if causes || step.flags & rflags::TF != 0 {
            lp.vmcb.inject_exception(vector::DB, None);
        }
    } else {
        if number == vector::PF {
            lp.vmcb.save.cr2 = address;
        }
        let error = vector::has_error_code(number).then_some(code as u32);
        lp.vmcb.inject_exception(number, error);
    }
    deliver_nmi(lp);
}

/// Removes the single step from DR6. Returns whether another cause of a debug exception remains.
fn save_dr6(lp: &mut Lp, before: u64) -> bool {
    let save = &mut lp.vmcb.save;
    let hit = save.dr6 & dr6::BREAKPOINTS & !before != 0;
    save.dr6 = save.dr6 & !dr6::SINGLE_STEP | before & dr6::SINGLE_STEP;
    hit
}

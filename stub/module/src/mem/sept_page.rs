//! Pages of the S-EPT: TDH.MEM.SEPT.ADD, TDH.MEM.SEPT.REMOVE.

use core::sync::atomic::Ordering;

use seam::abi::{Gprs, Leaf, NULL_PA, Operand, PAGE_MASK, PageSize, PageType, SeptState, Status};

use super::{NO_L2_PAGES, l2_pages, range, set_l2_pages, take_rcx_rdx};
use crate::call::Call;
use crate::lock::{Guard, Mode};
use crate::pamt::Held;
use crate::sept::{Entry, L2Entry, Slot, Target, l2_walk};
use crate::td::Td;
use crate::{Machine, Point, operand, ownership, pamt};

/// Flag in the TDR operand: an existing page table is not an error.
const ALLOW_EXISTING: u64 = 1 << 0;
/// Flag in a page operand on return: the page was not used.
const NOT_USED: u64 = 1 << 63;

/// TDH.MEM.SEPT.ADD: makes the page in R8 the page table that the entry of RCX's level points to. Version 1 also adds
/// page tables of nested VMs in R9 to R11, and marks the unused pages in all four registers.
pub fn sept_add<M: Machine>(cx: Call<'_, M>, version: u8, regs: &mut Gprs) -> Result<(), Status> {
    let (rcx, rdx) = take_rcx_rdx(regs);
    if version > 1 {
        return Err(Status::OPERAND_INVALID.with(Operand::RAX));
    }
    let mut given = Given::from(regs, version);
    let result = add_tables(cx, &mut given, rcx, rdx, regs);
    if version > 0 {
        regs.r8 = given.unused[0];
        set_l2_pages(regs, [given.unused[1], given.unused[2], given.unused[3]]);
    }
    if result == Err(Status::INTERRUPTED_RESUMABLE) {
        (regs.rcx, regs.rdx) = (rcx, rdx);
    }
    result
}

/// The pages that the host donated: for the TD itself, then for its nested VMs.
struct Given {
    version: u8,
    pages: [u64; 4],
    /// The unused pages, which return to the host in R8 to R11.
    unused: [u64; 4],
}

impl Given {
    fn from(regs: &Gprs, version: u8) -> Self {
        let [r9, r10, r11] = if version > 0 {
            l2_pages(regs)
        } else {
            NO_L2_PAGES
        };
        let pages = [regs.r8, r9, r10, r11].map(|pa| match pa {
            NULL_PA => pa,
            _ => pa & !NOT_USED,
        });
        Self {
            version,
            pages,
            unused: pages,
        }
    }
}

fn add_tables<M: Machine>(
    cx: Call<'_, M>,
    given: &mut Given,
    rcx: u64,
    rdx: u64,
    regs: &mut Gprs,
) -> Result<(), Status> {
    if rdx & !(PAGE_MASK | ALLOW_EXISTING) != 0 {
        return Err(Status::OPERAND_INVALID.with(Operand::RDX));
    }
    let allow_existing = rdx & ALLOW_EXISTING != 0;
    let td = Td::shared(cx, rdx & PAGE_MASK, Operand::RDX, Leaf::MemSeptAdd)?;
    let at = range(rcx, 1, td.tdcs.top_level())?;
    let target = Target::take(cx, &td, at, Mode::Shared, regs)?;
    target.require(Leaf::MemSeptAdd, regs)?;

    // Checks and locks everything before it changes anything.
    let exists = target.entry.state() == SeptState::NonLeafMapped;
    let mut own = None;
    if given.pages[0] == NULL_PA {
        if given.version == 0 {
            return Err(Status::OPERAND_INVALID.with(Operand::R8));
        }
        if !exists {
            return Err(target.refuse(Status::EPT_ENTRY_STATE_INCORRECT, regs));
        }
    } else if !exists {
        own = Some(new_table(cx, given.pages[0], Operand::R8)?);
    } else if allow_existing {
        given.unused[0] |= NOT_USED;
    } else {
        return Err(target.refuse(Status::EPT_ENTRY_STATE_INCORRECT, regs));
    }
    let mut nested: [Option<(Slot<'_>, Held<'_>)>; 3] = [const { None }; 3];
    let addition = Addition {
        cx,
        td: &td,
        target: &target,
        allow_existing,
    };
    for vm in 1..=3 {
        nested[vm - 1] = addition.check_nested(vm, given, regs)?;
    }

    let mut entry = target.entry;
    if let Some(page) = &own {
        fill_table(cx, &td, given.pages[0], Entry::FREE.0, page);
        entry = Entry::table(given.pages[0]);
        target.set(entry);
        given.unused[0] = NULL_PA;
    }
    let mut added = own.is_some();
    for (vm, nested) in (1..).zip(&nested) {
        let Some((slot, page)) = nested else {
            continue;
        };
        if added && cx.interrupt_pending() {
            return Err(Status::INTERRUPTED_RESUMABLE);
        }
        let pa = given.pages[vm];
        fill_table(cx, &td, pa, L2Entry::FREE.0, page);
        entry = entry.with_alias(vm as u32);
        target.set(entry);
        L2Entry::table(pa).store(*slot);
        given.unused[vm] = NULL_PA;
        added = true;
    }
    Ok(())
}

/// An addition of page tables to a TD.
struct Addition<'a, 'm, M> {
    cx: Call<'m, M>,
    td: &'a Td<'m, M>,
    target: &'a Target<'m>,
    /// An existing page table is not an error.
    allow_existing: bool,
}

impl<'m, M: Machine> Addition<'_, 'm, M> {
    /// Checks the page for nested VM `vm`. Returns `None` if there is nothing to add.
    fn check_nested(
        &self,
        vm: usize,
        given: &mut Given,
        regs: &mut Gprs,
    ) -> Result<Option<(Slot<'m>, Held<'m>)>, Status> {
        let Self {
            cx,
            td,
            target,
            allow_existing,
        } = *self;
        let pa = given.pages[vm];
        if pa == NULL_PA {
            return Ok(None);
        }
        let operand = Operand(Operand::R8.0 + vm as u32);
        let id = vm as u32;
        if !td.tdcs.l2_vms().contains(&id) {
            return Err(Status::OPERAND_INVALID.with(operand));
        }
        let mut refuse = |status: Status, entry: L2Entry, level: u8| {
            (regs.rcx, regs.rdx) = entry.describe(id, level, td.tdcs.is_debug());
            status.with_detail(id << 16 | u32::from(level))
        };
        let slot = l2_walk(cx.machine, &td.tdcs, id, target.gpa, target.level)
            .map_err(|(entry, level)| refuse(Status::L2_SEPT_WALK_FAILED, entry, level))?;
        let entry = L2Entry::load(slot);
        if entry.is_free() {
            return Ok(Some((slot, new_table(cx, pa, operand)?)));
        }
        if !allow_existing {
            return Err(refuse(Status::L2_SEPT_ENTRY_NOT_FREE, entry, target.level));
        }
        given.unused[vm] |= NOT_USED;
        Ok(None)
    }
}

fn new_table<M: Machine>(cx: Call<'_, M>, pa: u64, operand: Operand) -> Result<Held<'_>, Status> {
    operand::private_page(cx, pa, operand, Mode::Exclusive, PageType::Nda)
}

fn fill_table<'m, M: Machine>(
    cx: Call<'m, M>,
    td: &Td<'_, M>,
    pa: u64,
    value: u64,
    page: &Held<'m>,
) {
    ownership::take(cx, page, PageType::Ept, td.tdr.pa());
    page.entry().set_bepoch(0);
    cx.reached(Point::Movdir64b);
    cx.machine.fill_page(pa, value);
    td.tdr.add_children(1);
}

/// TDH.MEM.SEPT.REMOVE: removes the page table at RCX from the TD. RCX returns its address; version 1 returns those of
/// nested VMs in R9 to R11.
pub fn sept_remove<M: Machine>(
    cx: Call<'_, M>,
    version: u8,
    regs: &mut Gprs,
) -> Result<(), Status> {
    let (rcx, rdx) = take_rcx_rdx(regs);
    if version > 0 {
        set_l2_pages(regs, NO_L2_PAGES);
    }
    if version > 1 {
        return Err(Status::OPERAND_INVALID.with(Operand::RAX));
    }
    let td = Td::shared(cx, rdx, Operand::RDX, Leaf::MemSeptRemove)?;
    let at = range(rcx, 1, td.tdcs.top_level())?;
    let target = Target::take(cx, &td, at, Mode::Exclusive, regs)?;
    target.require(Leaf::MemSeptRemove, regs)?;
    let pa = target.entry.table_pa();
    let (_own, own) = pamt::lock_entry_of(cx, pa, PageSize::Size4K)?;
    target.check_tracked(&td, own.bepoch(), regs)?;
    let is_empty = cx
        .machine
        .page(pa)
        .iter()
        .all(|word| Entry(word.load(Ordering::Acquire)).state() == SeptState::Free);
    if !is_empty {
        return Err(target.refuse(Status::EPT_PAGE_NOT_FREE, regs));
    }
    let mut nested = [const { None }; 3];
    for vm in td.tdcs.l2_vms() {
        if target.entry.is_aliased(vm)
            && let Ok(slot) = l2_walk(cx.machine, &td.tdcs, vm, target.gpa, target.level)
        {
            let pa = L2Entry::load(slot).table_pa();
            let (guard, entry): (Guard<'_>, _) = pamt::lock_entry_of(cx, pa, PageSize::Size4K)?;
            nested[vm as usize - 1] = Some((slot, pa, guard, entry));
        }
    }

    let mut returned = l2_pages(regs);
    for (returned, nested) in returned.iter_mut().zip(&nested) {
        if let Some((slot, pa, _, entry)) = nested {
            L2Entry::FREE.store(*slot);
            td.tdr.remove_children(1);
            *returned = *pa | ownership::give_back(cx, *entry, ownership::page(*pa), &td.tdr);
        }
    }
    if version > 0 {
        set_l2_pages(regs, returned);
    }
    target.set(Entry::FREE);
    td.tdr.remove_children(1);
    let hint = ownership::give_back(cx, own, ownership::page(pa), &td.tdr);
    regs.rcx = pa | hint;
    Ok(())
}

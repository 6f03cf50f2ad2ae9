//! Merging and splitting of large pages: TDH.MEM.PAGE.PROMOTE, TDH.MEM.PAGE.DEMOTE.

use core::sync::atomic::Ordering;

use seam::abi::{
    GpaLevel, Gprs, Leaf, NULL_PA, Operand, PAGE_MASK, PageSize, PageType, SeptState, Status,
    level_bytes,
};

use super::{NO_L2_PAGES, l2_pages, page_size, range, set_l2_pages, take_rcx_rdx};
use crate::call::Call;
use crate::lock::{Guard, Mode};
use crate::ownership::{self, Taken};
use crate::pamt::{self, Held};
use crate::sept::{Entry, L2Entry, Slot, Target, l2_walk};
use crate::td::Td;
use crate::{Machine, PageWords, Point, operand};

/// Flag in the TDR operand of DEMOTE: page tables of nested VMs are added only where there was an alias.
const SPARSE: u64 = 1 << 0;
/// Flag in a page operand on return: the page was not used.
const NOT_USED: u64 = 1 << 63;

/// TDH.MEM.PAGE.DEMOTE: splits the page at RCX. R8 becomes the page table of the parts.
pub fn page_demote<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (rcx, rdx) = take_rcx_rdx(regs);
    restoring(regs, (rcx, rdx), |regs| demote(cx, rcx, rdx, regs))
}

/// TDH.MEM.PAGE.PROMOTE: merges the 512 pages below RCX into one. RCX returns their page table; version 1 returns those
/// of nested VMs in R9 to R11.
pub fn page_promote<M: Machine>(
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
    restoring(regs, (rcx, rdx), |regs| {
        promote(cx, version, rcx, rdx, regs)
    })
}

/// Restores the inputs of a call that was interrupted before it changed anything, so that it can be repeated.
fn restoring(
    regs: &mut Gprs,
    inputs: (u64, u64),
    leaf: impl FnOnce(&mut Gprs) -> Result<(), Status>,
) -> Result<(), Status> {
    let result = leaf(regs);
    if result == Err(Status::INTERRUPTED_RESTARTABLE) {
        (regs.rcx, regs.rdx) = inputs;
    }
    result
}

fn check_interrupt<M: Machine>(cx: Call<'_, M>) -> Result<(), Status> {
    if cx.interrupt_pending() {
        Err(Status::INTERRUPTED_RESTARTABLE)
    } else {
        Ok(())
    }
}

fn demote<'m, M: Machine>(
    cx: Call<'m, M>,
    rcx: u64,
    rdx: u64,
    regs: &mut Gprs,
) -> Result<(), Status> {
    if rdx & !(PAGE_MASK | SPARSE) != 0 {
        return Err(Status::OPERAND_INVALID.with(Operand::RDX));
    }
    let sparse = rdx & SPARSE != 0;
    let td = Td::shared(cx, rdx & PAGE_MASK, Operand::RDX, Leaf::MemPageDemote)?;
    let at = range(rcx, 1, 2)?;
    let target = Target::take(cx, &td, at, Mode::Shared, regs)?;
    target.require(Leaf::MemPageDemote, regs)?;
    let size = page_size(target.level);
    let whole = target.entry.without_accept_counter(target.level);
    let pa = whole.page_pa(target.level);
    target.check_tracked(&td, pamt::entry_of(cx, pa, size).bepoch(), regs)?;
    let table_pa = regs.r8;
    let table = operand::private_page(cx, table_pa, Operand::R8, Mode::Exclusive, PageType::Nda)?;
    let mut nested_pages = l2_pages(regs);
    let mut nested: [Option<Held<'m>>; 3] = [const { None }; 3];
    for vm in td.tdcs.l2_vms() {
        let index = vm as usize - 1;
        let operand = Operand(Operand::R8.0 + vm);
        let aliased = target.entry.is_aliased(vm);
        if nested_pages[index] == NULL_PA {
            if aliased {
                return Err(Status::L2_SEPT_PAGE_NOT_PROVIDED.with(operand));
            }
        } else if !sparse || aliased {
            let pa = nested_pages[index] & !NOT_USED;
            nested[index] = Some(operand::private_page(
                cx,
                pa,
                operand,
                Mode::Exclusive,
                PageType::Nda,
            )?);
        } else {
            nested_pages[index] |= NOT_USED;
        }
    }

    // The new page tables are not reachable yet, so an interrupted call leaves no effect of writes to them.
    let own = |page: &Held<'m>| Taken::take(cx, page, PageType::Ept, td.tdr.pa());
    let taken = own(&table);
    let taken_nested = nested.each_ref().map(|page| page.as_ref().map(&own));
    let part = whole.unblocked().unlocked();
    fill_with_parts(cx, table_pa, part.0, pa, target.level);
    let mut slots: [Option<Slot<'_>>; 3] = [None; 3];
    for (index, page) in nested.iter().enumerate() {
        if page.is_none() {
            continue;
        }
        check_interrupt(cx)?;
        let vm = index as u32 + 1;
        let slot = l2_walk(cx.machine, &td.tdcs, vm, target.gpa, target.level).map_err(
            |(entry, level)| {
                (regs.rcx, regs.rdx) = entry.describe(vm, level, td.tdcs.is_debug());
                Status::L2_SEPT_WALK_FAILED.with_detail(vm << 16 | u32::from(level))
            },
        )?;
        let nested_pa = nested_pages[index] & !NOT_USED;
        if target.entry.is_aliased(vm) {
            let entry = L2Entry::load(slot);
            let entry = if part.is_pending() {
                entry
            } else {
                entry.unblocked()
            };
            fill_with_parts(cx, nested_pa, entry.0, pa, target.level);
        } else {
            cx.reached(Point::Movdir64b);
            cx.machine.fill_page(nested_pa, L2Entry::FREE.0);
        }
        slots[index] = Some(slot);
    }
    check_interrupt(cx)?;
    let operands = [Operand::R12, Operand::R13];
    pamt::split(cx, pa, size, [regs.r12, regs.r13], operands)?;

    let mut entry = Entry::table(table_pa);
    target.set(entry);
    taken.keep();
    td.tdr.add_children(1);
    for (index, (slot, page)) in slots.into_iter().zip(taken_nested).enumerate() {
        if let (Some(slot), Some(page)) = (slot, page) {
            L2Entry::table(nested_pages[index] & !NOT_USED).store(slot);
            entry = entry.with_alias(index as u32 + 1);
            target.set(entry);
            page.keep();
            td.tdr.add_children(1);
        }
    }
    set_l2_pages(regs, nested_pages);
    Ok(())
}

/// Fills a page table with entries like `entry` for the 512 parts of the page at `pa` that an entry of `level` mapped.
fn fill_with_parts<M: Machine>(cx: Call<'_, M>, table: u64, entry: u64, pa: u64, level: u8) {
    cx.reached(Point::Movdir64b);
    let part = level_bytes(level - 1);
    for (i, word) in (0..).zip(cx.machine.page(table)) {
        word.store(Entry(entry).with_pa(pa + i * part).0, Ordering::Release);
    }
}

fn promote<M: Machine>(
    cx: Call<'_, M>,
    version: u8,
    rcx: u64,
    rdx: u64,
    regs: &mut Gprs,
) -> Result<(), Status> {
    let td = Td::shared(cx, rdx, Operand::RDX, Leaf::MemPagePromote)?;
    let at: GpaLevel = range(rcx, 1, 2)?;
    let target = Target::take(cx, &td, at, Mode::Shared, regs)?;
    target.require(Leaf::MemPagePromote, regs)?;
    let table_pa = target.entry.table_pa();
    let (_table, table) = pamt::lock_entry_of(cx, table_pa, PageSize::Size4K)?;
    target.check_tracked(&td, table.bepoch(), regs)?;
    let parts = Parts::lock(cx.machine.page(table_pa), target.level)
        .map_err(|status| target.refuse(status, regs))?;

    let mut nested = [const { None }; 3];
    for vm in td.tdcs.l2_vms().filter(|vm| target.entry.is_aliased(*vm)) {
        check_interrupt(cx)?;
        let Ok(slot) = l2_walk(cx.machine, &td.tdcs, vm, target.gpa, target.level) else {
            continue;
        };
        let pa = L2Entry::load(slot).table_pa();
        let (guard, entry): (Guard<'_>, _) = pamt::lock_entry_of(cx, pa, PageSize::Size4K)?;
        let words = cx.machine.page(pa);
        if !are_nested_parts_alike(words, target.level) {
            return Err(target.refuse(Status::EPT_INVALID_PROMOTE_CONDITIONS, regs));
        }
        nested[vm as usize - 1] = Some((slot, pa, guard, entry, words));
    }
    check_interrupt(cx)?;
    let pair = pamt::merge(
        cx,
        parts.first().page_pa(target.level - 1),
        page_size(target.level),
    )?;

    target.set(parts.first());
    // The page table belongs to the host from here on. Its entries need no unlocking.
    parts.forget();
    td.tdr.remove_children(1);
    let hint = ownership::give_back(cx, table, ownership::page(table_pa), &td.tdr);
    let mut returned = NO_L2_PAGES;
    for (returned, nested) in returned.iter_mut().zip(&nested) {
        if let Some((slot, pa, _, entry, words)) = nested {
            L2Entry(words[0].load(Ordering::Acquire)).store(*slot);
            td.tdr.remove_children(1);
            *returned = *pa | ownership::give_back(cx, *entry, ownership::page(*pa), &td.tdr);
        }
    }
    if version > 0 {
        set_l2_pages(regs, returned);
    }
    regs.rcx = table_pa | hint;
    if let Some(pair) = pair {
        [regs.r12, regs.r13] = pair;
    }
    Ok(())
}

/// The 512 entries of a page table to be merged into one page, locked until this is dropped.
struct Parts<'m> {
    words: &'m PageWords,
    locked: usize,
}

impl<'m> Parts<'m> {
    /// Locks the entries, and checks that they map 512 consecutive pages in the same state, which together form one
    /// aligned page for an entry of `level`.
    ///
    /// # Errors
    /// OPERAND_BUSY, EPT_INVALID_PROMOTE_CONDITIONS.
    fn lock(words: &'m PageWords, level: u8) -> Result<Self, Status> {
        let mut parts = Self { words, locked: 0 };
        let mut expected = None;
        for word in words {
            let slot = Slot(word);
            slot.try_lock().map_err(|_| Status::OPERAND_BUSY)?;
            parts.locked += 1;
            let entry = slot.load().without_accept_counter(level - 1);
            let matches = match expected {
                None => {
                    entry.page_pa(level - 1).is_multiple_of(level_bytes(level))
                        && matches!(entry.state(), SeptState::Mapped | SeptState::Pending)
                }
                Some(expected) => entry == expected,
            };
            if !matches {
                return Err(Status::EPT_INVALID_PROMOTE_CONDITIONS);
            }
            expected = Some(Entry(entry.0 + level_bytes(level - 1)));
        }
        Ok(parts)
    }

    /// Returns the first entry.
    fn first(&self) -> Entry {
        Slot(&self.words[0]).load()
    }

    /// Leaves the entries locked.
    fn forget(mut self) {
        self.locked = 0;
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        for word in &self.words[..self.locked] {
            Slot(word).unlock();
        }
    }
}

/// Returns whether the entries of a nested VM's page table are all free, or all map pages with the same rights.
fn are_nested_parts_alike(words: &PageWords, level: u8) -> bool {
    let mut entries = words
        .iter()
        .map(|word| L2Entry(word.load(Ordering::Acquire)));
    let Some(first) = entries.next() else {
        return false;
    };
    let aligned = Entry(first.0)
        .page_pa(level - 1)
        .is_multiple_of(level_bytes(level));
    if !(first.is_free() || aligned && first.is_leaf()) {
        return false;
    }
    entries.all(|entry| entry.with_pa(0) == first.with_pa(0))
}

//! Nested page tables of the host's software. Single pages are unmapped and mapped again while the software runs.
//!
//! Memory below the end of RAM is identity-mapped by pages of 2 MiB. Where only a part of such a region is unmapped, a
//! spare table maps the rest of it by pages of 4 KiB. Spare tables are a cache: when none is left, the whole region is
//! unmapped, and an access to the rest of it looks up the page's owner ([`Nested::fault`]). The mapping can therefore
//! always be rebuilt from the owners, and running out of tables only costs time.
//!
//! The processors walk these tables while they change. This has two consequences. An unmapped page is only out of reach
//! once every processor has flushed its TLB, which is unnecessary if no processor has used the page: the accessed bit
//! shows this. An unlinked table may only be reused after every processor has stopped walking it; it is retired until
//! the caller reports this ([`Nested::release`]).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

const PRESENT_WRITABLE_USER: u64 = 7;
const ACCESSED: u64 = 1 << 5;
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 1 << 12;
const REGION: u64 = 1 << 21;
const GIB: u64 = 1 << 30;
/// Size of memory that one table of the third level maps.
const REACH: u64 = 512 * GIB;
const ENTRIES: u64 = 512;

/// A table of any level. Processors set accessed bits in it.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Table([AtomicU64; ENTRIES as usize]);

impl Table {
    const fn empty() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    fn new() -> &'static Self {
        Box::leak(Box::new(Self::empty()))
    }

    fn many(count: u16) -> &'static [Self] {
        Box::leak((0..count).map(|_| Self::empty()).collect())
    }

    /// Returns its address, which is its physical address where memory is identity-mapped.
    pub fn address(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }

    fn link(&self) -> u64 {
        self.address() | PRESENT_WRITABLE_USER
    }
}

/// The mapping of a region of 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Region {
    /// The host owns all of it, and one page maps it.
    Open,
    /// None of it is mapped. A fault there looks up the owner.
    Closed,
    /// Pages of 4 KiB map it, in the spare table with that number.
    Split(u16),
    /// Permanently hidden, or next to a hidden range.
    Fixed,
}

/// A table for pages of 4 KiB.
#[derive(Debug)]
struct Spare {
    table: &'static Table,
    /// The region that it maps while it is linked.
    region: Option<usize>,
    /// Number of entries that map nothing.
    holes: u64,
}

/// The tables, for readers that query the mapping without a lock.
#[derive(Clone, Debug)]
pub struct View {
    directories: Vec<&'static Table>,
    spares: &'static [Table],
}

impl View {
    /// Returns whether `pa` is mapped at this moment. It is also `false` for pages near a hidden range.
    pub fn maps(&self, pa: u64) -> bool {
        let Some(directory) = self.directories.get((pa / GIB) as usize) else {
            return true;
        };
        let entry = directory.0[(pa / REGION % ENTRIES) as usize].load(Ordering::SeqCst);
        entry & LARGE != 0
            || self.spare(entry).is_some_and(|table| {
                // If the table has just been reused for another region, the address is one of that region.
                let entry = entry_of(table, pa).load(Ordering::SeqCst);
                entry & !(PAGE - 1) == pa & !(PAGE - 1) && entry & PRESENT_WRITABLE_USER != 0
            })
    }

    /// Returns whether one page maps the whole region of 2 MiB at `pa` at this moment.
    pub fn maps_region(&self, pa: u64) -> bool {
        let Some(directory) = self.directories.get((pa / GIB) as usize) else {
            return true;
        };
        let entry = directory.0[(pa / REGION % ENTRIES) as usize].load(Ordering::SeqCst);
        entry & LARGE != 0
    }

    /// Returns the spare table that `entry` links.
    fn spare(&self, entry: u64) -> Option<&'static Table> {
        let first = self.spares.first()?.address();
        let offset = (entry & !(PAGE - 1)).checked_sub(first)?;
        self.spares.get((offset / PAGE) as usize)
    }
}

/// The outcome of an access to unmapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is mapped now, and the access can be repeated.
    Mapped,
    /// The page does not belong to the host.
    Private,
    /// A table is needed. The access can be repeated once the tables of [`Nested::retire_some`] are released.
    NoTable,
    /// The address is not managed here.
    Foreign,
}

/// Unlinked tables that processors may still be walking.
#[derive(Debug, Default)]
#[must_use]
pub struct Retired(Vec<u16>);

/// The nested page tables.
#[derive(Debug)]
pub struct Nested {
    root: &'static Table,
    directories: Vec<&'static Table>,
    regions: Vec<Region>,
    spares: Vec<Spare>,
    tables: &'static [Table],
    free: Vec<u16>,
    retired: Vec<u16>,
    /// Start of the search for a table to retire.
    hand: usize,
}

impl Nested {
    /// Creates tables that map all of the first 512 GiB. Below `end_of_ram`, and at least below 4 GiB, pages can be
    /// unmapped. `spares` is the number of tables for regions that are partly unmapped. One instruction may need a few
    /// dozen of them at the same time, and can't complete with fewer.
    pub fn new(end_of_ram: u64, spares: u16) -> Self {
        let gibs = end_of_ram.clamp(4 * GIB, REACH).div_ceil(GIB);
        let root = Table::new();
        for (i, entry) in (0..).zip(&root.0) {
            entry.store((i * GIB) | PRESENT_WRITABLE_USER | LARGE, Ordering::Relaxed);
        }
        let directories: Vec<_> = (0..gibs)
            .map(|gib| {
                let directory = Table::new();
                for (i, entry) in (0..).zip(&directory.0) {
                    let pa = gib * GIB + i * REGION;
                    entry.store(pa | PRESENT_WRITABLE_USER | LARGE, Ordering::Relaxed);
                }
                root.0[gib as usize].store(directory.link(), Ordering::Release);
                directory
            })
            .collect();
        let tables = Table::many(spares);
        Self {
            root,
            directories,
            regions: alloc::vec![Region::Open; (gibs * ENTRIES) as usize],
            spares: tables
                .iter()
                .map(|table| Spare {
                    table,
                    region: None,
                    holes: 0,
                })
                .collect(),
            tables,
            free: (0..spares).rev().collect(),
            retired: Vec::new(),
            hand: 0,
        }
    }

    /// Returns the table whose entries map 1 GiB each.
    pub fn root(&self) -> &'static Table {
        self.root
    }

    /// Returns the view for readers without a lock.
    pub fn view(&self) -> View {
        View {
            directories: self.directories.clone(),
            spares: self.tables,
        }
    }

    /// Hides `size` bytes from `base`, multiples of 4 KiB, below 4 GiB, permanently. No processor uses the tables yet.
    pub fn hide(&mut self, base: u64, size: u64) {
        for pages in by_region(base..base + size) {
            let region = (pages.start / REGION) as usize;
            self.regions[region] = Region::Fixed;
            let slot = self.slot(region);
            if pages.end - pages.start == REGION {
                slot.store(0, Ordering::Release);
                continue;
            }
            let table = Table::new();
            for (pa, entry) in parts(region).zip(&table.0) {
                let mapped = if pages.contains(&pa) {
                    0
                } else {
                    pa | PRESENT_WRITABLE_USER
                };
                entry.store(mapped, Ordering::Relaxed);
            }
            slot.store(table.link(), Ordering::Release);
        }
    }

    /// Unmaps pages that the host has just lost. Returns whether every processor must flush its TLB before the host
    /// can't reach them any more.
    #[must_use]
    pub fn close(&mut self, pages: Range<u64>) -> bool {
        let mut stale = false;
        for pages in by_region(pages) {
            let region = (pages.start / REGION) as usize;
            stale |= if pages.end - pages.start == REGION {
                self.close_region(region)
            } else {
                pages
                    .step_by(PAGE as usize)
                    .fold(false, |stale, pa| self.close_page(region, pa) | stale)
            };
        }
        stale
    }

    /// Maps pages that have just become the host's.
    pub fn open(&mut self, pages: Range<u64>) {
        for pages in by_region(pages) {
            let region = (pages.start / REGION) as usize;
            if pages.end - pages.start == REGION {
                self.open_region(region);
            } else {
                for pa in pages.step_by(PAGE as usize) {
                    self.open_page(region, pa);
                }
            }
        }
    }

    /// Handles an access of the host to the unmapped address `pa`. Maps the page if, by `is_private`, it belongs to the
    /// host.
    pub fn fault(&mut self, pa: u64, is_private: impl Fn(u64) -> bool) -> Fault {
        let region = (pa / REGION) as usize;
        let Some(state) = self.regions.get(region).copied() else {
            return Fault::Foreign;
        };
        if state == Region::Fixed {
            return Fault::Foreign;
        }
        if is_private(pa) {
            return Fault::Private;
        }
        match state {
            Region::Open | Region::Fixed => Fault::Mapped,
            Region::Split(_) => {
                self.open_page(region, pa & !(PAGE - 1));
                Fault::Mapped
            }
            Region::Closed => self.look_up(region, is_private),
        }
    }

    /// Unlinks some of the linked tables, in rotation. Returns them together with those unlinked before.
    pub fn retire_some(&mut self) -> Retired {
        let at_once = (self.spares.len() / 16).max(1);
        let mut wanted = at_once.saturating_sub(self.retired.len());
        for _ in 0..self.spares.len() {
            if wanted == 0 {
                break;
            }
            self.hand = (self.hand + 1) % self.spares.len();
            if let Some(region) = self.spares[self.hand].region {
                self.slot(region).store(0, Ordering::SeqCst);
                self.regions[region] = Region::Closed;
                self.retire(self.hand as u16);
                wanted -= 1;
            }
        }
        self.take_retired()
    }

    /// Takes the tables that were unlinked.
    pub fn take_retired(&mut self) -> Retired {
        Retired(core::mem::take(&mut self.retired))
    }

    /// Makes these tables available again. Every processor has flushed its TLB since they were taken.
    pub fn release(&mut self, tables: Retired) {
        self.free.extend(tables.0);
    }

    fn slot(&self, region: usize) -> &'static AtomicU64 {
        let directory: &'static Table = self.directories[region / ENTRIES as usize];
        &directory.0[region % ENTRIES as usize]
    }

    fn retire(&mut self, spare: u16) {
        self.spares[usize::from(spare)].region = None;
        self.retired.push(spare);
    }

    fn close_region(&mut self, region: usize) -> bool {
        let old = match self.regions.get(region) {
            None | Some(Region::Fixed) => return false,
            Some(old) => *old,
        };
        let entry = self.slot(region).swap(0, Ordering::SeqCst);
        self.regions[region] = Region::Closed;
        match old {
            Region::Open => entry & ACCESSED != 0,
            Region::Split(spare) => {
                self.retire(spare);
                true
            }
            // The use of the region before it was closed is unknown.
            Region::Closed | Region::Fixed => true,
        }
    }

    fn close_page(&mut self, region: usize, pa: u64) -> bool {
        let spare = match self.regions.get(region) {
            None | Some(Region::Fixed) => return false,
            Some(Region::Closed) => return true,
            Some(Region::Split(spare)) => *spare,
            Some(Region::Open) => return self.split_without(region, pa),
        };
        let Spare { table, holes, .. } = &mut self.spares[usize::from(spare)];
        let old = entry_of(table, pa).swap(0, Ordering::SeqCst);
        if old == 0 {
            // A processor that faulted there found the page to be private. The use of an earlier mapping is unknown.
            return true;
        }
        *holes += 1;
        let stale = old & ACCESSED != 0;
        if stale {
            // The flush that is due covers all of them.
            for entry in &table.0 {
                entry.fetch_and(!ACCESSED, Ordering::SeqCst);
            }
        }
        if *holes == ENTRIES {
            self.slot(region).store(0, Ordering::SeqCst);
            self.regions[region] = Region::Closed;
            self.retire(spare);
        }
        stale
    }

    /// Maps the rest of an open region, if a table is available.
    fn split_without(&mut self, region: usize, pa: u64) -> bool {
        let Some(number) = self.free.pop() else {
            let entry = self.slot(region).swap(0, Ordering::SeqCst);
            self.regions[region] = Region::Closed;
            return entry & ACCESSED != 0;
        };
        let table = self.spares[usize::from(number)].table;
        for (part, entry) in parts(region).zip(&table.0) {
            let mapped = if part == pa {
                0
            } else {
                part | PRESENT_WRITABLE_USER
            };
            entry.store(mapped, Ordering::Relaxed);
        }
        self.link(region, number, 1) & ACCESSED != 0
    }

    /// Links a filled table with this number of holes. Returns the previous entry.
    fn link(&mut self, region: usize, number: u16, holes: u64) -> u64 {
        let spare = &mut self.spares[usize::from(number)];
        (spare.region, spare.holes) = (Some(region), holes);
        let link = spare.table.link();
        self.regions[region] = Region::Split(number);
        self.slot(region).swap(link, Ordering::SeqCst)
    }

    /// Maps a closed region according to its pages' owners.
    fn look_up(&mut self, region: usize, is_private: impl Fn(u64) -> bool) -> Fault {
        let Some(number) = self.free.pop() else {
            return Fault::NoTable;
        };
        let table = self.spares[usize::from(number)].table;
        let mut holes = 0;
        for (pa, entry) in parts(region).zip(&table.0) {
            // A TLB may hold translations from before the region was closed.
            let mapped = if is_private(pa) {
                holes += 1;
                0
            } else {
                pa | PRESENT_WRITABLE_USER | ACCESSED
            };
            entry.store(mapped, Ordering::Relaxed);
        }
        if holes == 0 {
            self.free.push(number);
            self.open_region(region);
        } else {
            self.link(region, number, holes);
        }
        Fault::Mapped
    }

    fn open_region(&mut self, region: usize) {
        let old = match self.regions.get(region) {
            None | Some(Region::Fixed | Region::Open) => return,
            Some(old) => *old,
        };
        let whole = (region as u64 * REGION) | PRESENT_WRITABLE_USER | LARGE | ACCESSED;
        self.slot(region).store(whole, Ordering::SeqCst);
        self.regions[region] = Region::Open;
        if let Region::Split(spare) = old {
            self.retire(spare);
        }
    }

    fn open_page(&mut self, region: usize, pa: u64) {
        let Some(Region::Split(number)) = self.regions.get(region).copied() else {
            return;
        };
        let Spare { table, holes, .. } = &mut self.spares[usize::from(number)];
        let entry = entry_of(table, pa);
        if entry.load(Ordering::SeqCst) != 0 {
            return;
        }
        entry.store(pa | PRESENT_WRITABLE_USER, Ordering::SeqCst);
        *holes -= 1;
        if *holes == 0 {
            self.open_region(region);
        }
    }
}

/// Returns the 4 KiB pages of a region.
fn parts(region: usize) -> impl Iterator<Item = u64> {
    let start = region as u64 * REGION;
    (start..start + REGION).step_by(PAGE as usize)
}

fn entry_of(table: &'static Table, pa: u64) -> &'static AtomicU64 {
    &table.0[(pa / PAGE % ENTRIES) as usize]
}

/// Splits pages at the boundaries of regions.
fn by_region(pages: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = pages.start;
    core::iter::from_fn(move || {
        let end = (at / REGION + 1) * REGION;
        let part = at..end.min(pages.end);
        at = part.end;
        (part.start < part.end).then_some(part)
    })
}

#[cfg(test)]
mod tests;

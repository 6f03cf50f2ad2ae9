//! Taking a claimed item that no CPU uses any more, or putting it back.

use core::ops::Range;

use seam::abi::{PAGE_1G, PageSize};
use seam::address::{Gpa, Level};
use seam::call::SeamCall;
use seam::error::{Cause, Rejected};
use seam::page::{Donated, Page};
use seam::retry::Wait;

use super::batch::{Items, Removal, page_at};
use crate::private::claim::{Item, Large, empty_directory, empty_upper};
use crate::private::mirror::{Boxed, Entry, Epoch, Leaf, PageTable, Place, Upper, Was, start};
use crate::private::pool::Pool;

impl<C: SeamCall, W: Wait, P: Pool> Removal<'_, C, W, P> {
    /// Takes an item that no CPU uses any more. A table that becomes empty is claimed into `emptied`.
    pub fn take(&mut self, item: Item, emptied: &mut Items) {
        match item {
            Item::Pages { gpa, table, part } => self.take_pages(gpa, table, part, emptied),
            Item::Large(large) => self.take_large(large, emptied),
            Item::Table {
                gpa,
                mut table,
                since,
            } => {
                table.sept = self.take_sept(gpa, Level::Pd, table.sept.take());
                if table.sept.is_none() {
                    self.op.map.mirror.put_block(gpa, Entry::Free);
                    self.empty_above_block(gpa, emptied);
                } else {
                    self.put_back(Item::Table { gpa, table, since });
                }
            }
            Item::Directory {
                gpa,
                mut directory,
                since,
            } => {
                directory.sept = self.take_sept(gpa, Level::Pdpt, directory.sept.take());
                if directory.sept.is_none() {
                    self.free_gib(gpa, emptied);
                } else {
                    self.put_back(Item::Directory {
                        gpa,
                        directory,
                        since,
                    });
                }
            }
            Item::Upper { place, page, since } => {
                match self.take_sept(place.gpa, place.level, Some(page)) {
                    None => {
                        let uppers = &self.op.map.mirror.uppers;
                        uppers.put(place, Upper::Free);
                        if let Some(above) = uppers.above(place) {
                            uppers.unpin(above);
                            self.claim_empty(above, emptied);
                        }
                    }
                    Some(page) => self.put_back(Item::Upper { place, page, since }),
                }
            }
        }
    }

    fn take_pages(
        &mut self,
        gpa: Gpa,
        mut table: Boxed<PageTable>,
        part: Range<usize>,
        emptied: &mut Items,
    ) {
        for at in part {
            let Some(leaf) = table.take(at) else { continue };
            let (was, since) = (leaf.was(), leaf.blocked_since());
            if let Some(page) = self.take_page(page_at(gpa, at), leaf.into_page()) {
                table.put(at, leaf_of(page, was, since));
            }
            if self.gives_up() {
                break;
            }
        }
        if table.used() > 0 {
            self.op.map.mirror.put_block(gpa, Entry::Table(table));
        } else {
            let since = None;
            emptied.push(Item::Table { gpa, table, since });
        }
    }

    fn take_large(&mut self, large: Large, emptied: &mut Items) {
        let Large { gpa, page, .. } = large;
        let size = page.size();
        match self.take_page(gpa, page) {
            Some(page) => self.put_back(Item::Large(Large { page, ..large })),
            None if size == PageSize::Size1G => self.free_gib(gpa, emptied),
            None => {
                self.op.map.mirror.put_block(gpa, Entry::Free);
                self.empty_above_block(gpa, emptied);
            }
        }
    }

    /// Frees a GiB that holds nothing any more. The table above it is claimed into `emptied` if it becomes empty.
    fn free_gib(&mut self, gpa: Gpa, emptied: &mut Items) {
        self.op.map.mirror.put_gib(gpa.0 / PAGE_1G, Entry::Free);
        let place = Place::pdpt(gpa);
        self.op.map.mirror.uppers.unpin(place);
        self.claim_empty(place, emptied);
    }

    fn claim_empty(&self, place: Place, emptied: &mut Items) {
        if let Ok(Some(item)) = empty_upper(&self.op.map.mirror, place) {
            emptied.push(item);
        }
    }

    /// Claims the directory above a freed block, if it is empty now.
    fn empty_above_block(&self, gpa: Gpa, emptied: &mut Items) {
        let claimed = self
            .op
            .map
            .mirror
            .with(gpa.0 / PAGE_1G, |entry| match entry {
                Entry::Table(table) if table.used() == 0 => entry.claim().ok(),
                _ => None,
            });
        if let Ok(Some(entry)) = claimed
            && let Some(item) = empty_directory(start(gpa, PAGE_1G), entry)
        {
            emptied.push(item);
        }
    }

    /// TDH.MEM.PAGE.REMOVE and the steps after it. Returns the page if the module does not release it.
    fn take_page(&mut self, gpa: Gpa, page: Page<Donated>) -> Option<Page<Donated>> {
        let size = page.size();
        match self
            .op
            .cpu
            .tdh
            .mem_page_remove(self.op.live.tdr(), gpa, page)
        {
            Ok(page) => {
                self.op.map.stock.remove_pages(size, 1);
                self.taken.pages[size as usize] += 1;
                let home = self.op.map.bring_home(self.op.cpu, page, &mut self.home);
                self.note(home);
                None
            }
            Err(rejected) => {
                let doubtful = self.refused(rejected);
                if doubtful.is_none() {
                    self.op.map.stock.remove_pages(size, 1);
                }
                doubtful
            }
        }
    }

    /// TDH.MEM.SEPT.REMOVE and the steps after it. Returns the page if the module does not release it.
    fn take_sept(
        &mut self,
        gpa: Gpa,
        level: Level,
        page: Option<Page<Donated>>,
    ) -> Option<Page<Donated>> {
        let tdh = self.op.cpu.tdh;
        match tdh.mem_sept_remove(self.op.live.tdr(), gpa, level, page?) {
            Ok(page) => {
                self.op.map.stock.remove_sept(1);
                self.taken.sept += 1;
                let home = self.op.map.bring_home(self.op.cpu, page, &mut self.home);
                self.note(home);
                None
            }
            Err(rejected) => {
                let doubtful = self.refused(rejected);
                if doubtful.is_none() {
                    self.op.map.stock.remove_sept(1);
                }
                doubtful
            }
        }
    }

    /// Records why the module did not release a page. If it released a different one, the page's owner is unknown, and
    /// the page is quarantined.
    fn refused(&mut self, rejected: Rejected<Page<Donated>>) -> Option<Page<Donated>> {
        let (error, page) = rejected.into_parts();
        self.note(Err(error.into()));
        if matches!(error.cause(), Cause::WrongPage { .. }) {
            self.op.cpu.pool.quarantine(page);
            return None;
        }
        Some(page)
    }

    /// Ends a claim without taking anything.
    pub fn put_back(&self, item: Item) {
        let mirror = &self.op.map.mirror;
        match item {
            Item::Pages { gpa, table, .. } => mirror.put_block(gpa, Entry::Table(table)),
            Item::Large(Large {
                gpa,
                page,
                was,
                since,
            }) => match page.size() {
                PageSize::Size1G => {
                    let leaf = leaf_of(page, was, since);
                    mirror.put_gib(gpa.0 / PAGE_1G, Entry::Leaf(leaf));
                }
                _ => mirror.put_block(gpa, Entry::Leaf(leaf_of(page, was, since))),
            },
            Item::Table { gpa, table, since } => mirror.put_block(gpa, table_of(table, since)),
            Item::Directory {
                gpa,
                directory,
                since,
            } => mirror.put_gib(gpa.0 / PAGE_1G, table_of(directory, since)),
            Item::Upper { place, page, since } => {
                let upper = match since {
                    Some(since) => Upper::Blocked { page, since },
                    None => Upper::Linked { page, pins: 0 },
                };
                mirror.uppers.put(place, upper);
            }
        }
    }
}

fn leaf_of(page: Page<Donated>, was: Was, since: Option<Epoch>) -> Leaf {
    match since {
        Some(since) => Leaf::Blocked { page, since, was },
        None => Leaf::usable(page, was),
    }
}

fn table_of<T>(table: Boxed<T>, since: Option<Epoch>) -> Entry<T> {
    match since {
        Some(since) => Entry::BlockedTable { table, since },
        None => Entry::Table(table),
    }
}

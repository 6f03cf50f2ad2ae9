//! Dynamic removal: taking memory from a TD that has its key, while it may run.
//!
//! A range is removed in batches. The entries of a batch are claimed and blocked one by one; one tracking round ensures
//! that no CPU uses any of them; then each page is removed, written back, cleared and freed. Tables that are empty
//! after that are blocked together with the entries of the next batch, and share its round. A large page is removed
//! whole; it is split only where the range ends inside it.

use core::ops::Range;

use arrayvec::ArrayVec;
use seam::abi::{PAGE_1G, PAGE_4K, PageSize};
use seam::address::{Gpa, Level};
use seam::call::SeamCall;
use seam::error::{Cause, Rejected};
use seam::page::{Cached, Donated, Page};
use seam::retry::Wait;

use super::claim::{Found, Item, empty_directory, empty_upper, find};
use super::error::Error;
use super::mirror::{Boxed, Entry, Epoch, Leaf, PageTable, Place, Upper, Was, start};
use super::pool::{Home, Pool, clear_all};
use super::reclaim::{Clearing, Left};
use super::root::Mode;
use super::{Cpu, Kick, Op, PrivateMap};

/// Memory taken from a TD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Private pages of 4 KiB, 2 MiB and 1 GiB.
    pub pages: [u64; 3],
    /// Pages of the S-EPT.
    pub sept: u64,
    /// Batches, each with at most one tracking round.
    pub batches: u64,
}

/// Outcome of a request to take memory from a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The memory was removed.
    Removed(Taken),
    /// The TD is being terminated, and the request is queued. Either the termination takes everything or, if the TD
    /// survives, [`PrivateMap::run_queued`] runs the request.
    Queued,
    /// The TD has no key: bulk reclaim takes everything.
    LeftToReclaim,
}

/// Maximum number of entries and tables in a batch.
const MAX_ITEMS: usize = 16;
/// Number of 4 KiB pages that makes a batch full.
const MAX_SMALL: usize = 512;

type Items = ArrayVec<Item, MAX_ITEMS>;

impl PrivateMap {
    /// Removes everything in `range` from the TD, and the tables that become empty. Unmapped parts of the range are
    /// skipped; a range that was removed in part can simply be removed again.
    ///
    /// # Errors
    /// [`Error::BadRange`] when `range` is not aligned to 4 KiB; [`Error`]. Pages removed before the error stay
    /// removed. No page is lost, and a blocked page stays blocked until the next removal, or until [`Self::unblock`].
    pub fn remove<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        range: Range<u64>,
        kick: &dyn Kick,
    ) -> Result<Outcome, Error> {
        self.remove_while(cpu, range, kick, &|| true)
    }

    /// Like [`Self::remove`], for as long as `goes_on`, called before each batch, returns true. Otherwise nothing stays
    /// claimed, and the request is queued as it is while the HKID is released.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn remove_while<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        range: Range<u64>,
        kick: &dyn Kick,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Outcome, Error> {
        let until = range.end;
        self.remove_and_tidy(cpu, range, until, kick, goes_on)
    }

    /// Like [`Self::remove_while`], but also removes empty tables up to `until`.
    pub(super) fn remove_and_tidy<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        range: Range<u64>,
        until: u64,
        kick: &dyn Kick,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Outcome, Error> {
        if !range.start.is_multiple_of(PAGE_4K) || !range.end.is_multiple_of(PAGE_4K) {
            return Err(Error::BadRange);
        }
        let removed = self.change(cpu, kick, |op| {
            self.settle(cpu)?;
            Removal::new(op).run(&range, until, goes_on)
        });
        match removed {
            Ok(taken) => Ok(Outcome::Removed(taken)),
            Err(Error::Terminated) => match self.mode() {
                // The CPU that wanted to close the map has given up.
                Mode::Keyed if goes_on() => Err(Error::Busy),
                Mode::Keyless => Ok(Outcome::LeftToReclaim),
                _ if self.stock.queue(range) => Ok(Outcome::Queued),
                _ => Err(Error::NoHeap),
            },
            Err(error) => Err(error),
        }
    }

    /// Runs the queued requests, as [`Self::remove_while`] does.
    ///
    /// # Errors
    /// As [`Self::remove`]; a request that failed is queued again.
    pub fn run_queued<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        kick: &dyn Kick,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        while let Some(range) = self.stock.next_queued() {
            match self.remove_while(cpu, range.clone(), kick, goes_on) {
                Ok(Outcome::Removed(_)) => {}
                // The request is in the queue again, or no longer matters.
                Ok(Outcome::Queued | Outcome::LeftToReclaim) => return Ok(()),
                Err(error) => {
                    self.stock.queue(range);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Writes back the pages that left the TD and could not be written back then. [`Self::remove`] does so first.
    ///
    /// # Errors
    /// [`Error::Seam`]; the remaining pages are kept for the next call.
    pub fn settle<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
    ) -> Result<(), Error> {
        let mut home = Home::new(cpu.pool);
        while let Some(page) = self.stock.next_stranded() {
            self.bring_home(cpu, page, &mut home)?;
        }
        Ok(())
    }

    /// Writes back a page that left the TD, clears or keeps it according to the map's [`Clearing`], and frees it.
    ///
    /// # Errors
    /// [`Error::Seam`]; the page is kept for [`Self::settle`].
    pub(super) fn bring_home<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        page: Page<Cached>,
        home: &mut Home<'_, P>,
    ) -> Result<(), Error> {
        match cpu.tdh.phymem_page_wbinvd(page, self.keyid) {
            Ok(page) => {
                match self.clearing {
                    Clearing::Clear => home.push(clear_all(cpu.pool, page)),
                    Clearing::Leave => home.push(page.clear(&Left)),
                    Clearing::Keep => {
                        if let Err(page) = cpu.pool.keep(page) {
                            home.push(clear_all(cpu.pool, page));
                        }
                    }
                }
                Ok(())
            }
            Err(Rejected { error, given }) => {
                if let Err(page) = self.stock.strand(given) {
                    cpu.pool.quarantine(page);
                }
                Err(error.into())
            }
        }
    }
}

/// A removal in progress.
struct Removal<'a, C, W, P: Pool> {
    op: Op<'a, C, W, P>,
    home: Home<'a, P>,
    taken: Taken,
    /// The first error.
    end: Result<(), Error>,
}

impl<'a, C: SeamCall, W: Wait, P: Pool> Removal<'a, C, W, P> {
    const fn new(op: Op<'a, C, W, P>) -> Self {
        Self {
            home: Home::new(op.cpu.pool),
            op,
            taken: Taken {
                pages: [0; 3],
                sept: 0,
                batches: 0,
            },
            end: Ok(()),
        }
    }

    fn run(
        mut self,
        range: &Range<u64>,
        until: u64,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Taken, Error> {
        let mut at = range.start;
        let mut items = Items::new();
        loop {
            if self.end.is_ok() && !goes_on() {
                self.end = Err(Error::Terminated);
            }
            if self.end.is_ok() {
                self.end = self.collect(&mut items, &mut at, range, until);
            }
            if items.is_empty() {
                break;
            }
            self.taken.batches += 1;
            let quiet = self.quiesce(&mut items);
            let mut emptied = Items::new();
            for item in items.drain(..) {
                if quiet.is_ok() && !self.gives_up() {
                    self.take(item, &mut emptied);
                } else {
                    self.put_back(item);
                }
            }
            self.note(quiet);
            items = emptied;
            // The empty tables stay for the next removal.
            if self.gives_up() {
                for item in items.drain(..) {
                    self.put_back(item);
                }
            }
        }
        self.end.map(|()| self.taken)
    }

    /// Claims the next items until the batch is full.
    fn collect(
        &self,
        items: &mut Items,
        at: &mut u64,
        range: &Range<u64>,
        until: u64,
    ) -> Result<(), Error> {
        let mut small = 0;
        while *at < until && !items.is_full() && small < MAX_SMALL {
            let gpa = Gpa(*at);
            let gib = start(gpa, PAGE_1G);
            if items.iter().any(|item| item.is_directory(gib)) {
                *at = gib.0 + PAGE_1G;
                continue;
            }
            match find(&self.op.map.mirror, gpa, range)? {
                Found::GoOn(next) => *at = next,
                Found::Split(size) => {
                    let gpa = start(gpa, size.bytes());
                    self.op.demote_live(gpa, size)?;
                }
                Found::Unblock => self.op.unblock_live(gpa)?,
                Found::Item(item) => {
                    if let Item::Pages { part, .. } = &item {
                        small += part.len();
                    }
                    *at = item.end(gpa);
                    items.push(item);
                }
            }
        }
        Ok(())
    }

    /// Blocks all items of the batch, and ensures that no CPU uses them, if the TD can run.
    fn quiesce(&self, items: &mut Items) -> Result<(), Error> {
        if !self.op.live.is_finalized() {
            return Ok(());
        }
        let mut latest = None;
        for item in items {
            let since = self.block(item)?;
            if since.is_some_and(|since| !self.op.map.tracker.is_tracked(since)) {
                latest = since;
            }
        }
        // A round covers everything blocked before it.
        self.op.track(latest)
    }

    /// Blocks an item unless it is blocked. Returns the latest epoch at which it was blocked.
    fn block(&self, item: &mut Item) -> Result<Option<Epoch>, Error> {
        match item {
            Item::Pages { gpa, table, part } => {
                let mut latest = None;
                for at in part.clone() {
                    if table.page(at).is_none() {
                        continue;
                    }
                    if table.blocked_since(at).is_none() {
                        self.block_range(page_at(*gpa, at), Level::Pt)?;
                        table.block(at, self.op.map.tracker.now());
                    }
                    latest = table.blocked_since(at);
                }
                Ok(latest)
            }
            Item::Large {
                gpa, page, since, ..
            } => self.block_once(*gpa, page.size().into(), since),
            Item::Table { gpa, since, .. } => self.block_once(*gpa, Level::Pd, since),
            Item::Directory { gpa, since, .. } => self.block_once(*gpa, Level::Pdpt, since),
            Item::Upper { place, since, .. } => self.block_once(place.gpa, place.level, since),
        }
    }

    fn block_once(
        &self,
        gpa: Gpa,
        level: Level,
        since: &mut Option<Epoch>,
    ) -> Result<Option<Epoch>, Error> {
        if since.is_none() {
            self.block_range(gpa, level)?;
            *since = Some(self.op.map.tracker.now());
        }
        Ok(*since)
    }

    fn block_range(&self, gpa: Gpa, level: Level) -> Result<(), Error> {
        let tdh = self.op.cpu.tdh;
        tdh.mem_range_block(self.op.live.tdr(), gpa, level)?;
        Ok(())
    }

    /// Takes an item that no CPU uses any more. A table that becomes empty is claimed into `emptied`.
    fn take(&mut self, item: Item, emptied: &mut Items) {
        match item {
            Item::Pages { gpa, table, part } => self.take_pages(gpa, table, part, emptied),
            Item::Large {
                gpa,
                page,
                was,
                since,
            } => self.take_large(gpa, page, was, since, emptied),
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

    fn take_large(
        &mut self,
        gpa: Gpa,
        page: Page<Donated>,
        was: Was,
        since: Option<Epoch>,
        emptied: &mut Items,
    ) {
        let size = page.size();
        match self.take_page(gpa, page) {
            Some(page) => self.put_back(Item::Large {
                gpa,
                page,
                was,
                since,
            }),
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

    fn note(&mut self, result: Result<(), Error>) {
        if self.end.is_ok() {
            self.end = result;
        }
    }

    /// Returns whether further calls would be in vain.
    const fn gives_up(&self) -> bool {
        matches!(self.end, Err(Error::Seam(_) | Error::NoAnswer(_)))
    }

    /// Ends a claim without taking anything.
    fn put_back(&self, item: Item) {
        let mirror = &self.op.map.mirror;
        match item {
            Item::Pages { gpa, table, .. } => mirror.put_block(gpa, Entry::Table(table)),
            Item::Large {
                gpa,
                page,
                was,
                since,
            } => match page.size() {
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

const fn page_at(table: Gpa, at: usize) -> Gpa {
    Gpa(table.0 + at as u64 * PAGE_4K)
}

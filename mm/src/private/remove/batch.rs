//! A removal: it claims and blocks the items of a batch, ensures that no CPU uses them, and takes them.

use arrayvec::ArrayVec;
use seam::abi::{PAGE_1G, PAGE_4K};
use seam::address::{Gpa, Level};
use seam::call::SeamCall;
use seam::retry::Wait;

use super::{Request, Taken};
use crate::private::Op;
use crate::private::claim::{Item, Large, Next, find};
use crate::private::error::Error;
use crate::private::mirror::{Epoch, start};
use crate::private::pool::{Home, Pool};

/// Maximum number of entries and tables in a batch.
const MAX_ITEMS: usize = 16;
/// Number of 4 KiB pages that makes a batch full.
const MAX_SMALL: usize = 512;

pub type Items = ArrayVec<Item, MAX_ITEMS>;

/// A removal in progress.
pub struct Removal<'a, C, W, P: Pool> {
    pub op: Op<'a, C, W, P>,
    request: &'a Request,
    pub home: Home<'a, P>,
    pub taken: Taken,
    /// The first error.
    end: Result<(), Error>,
}

impl<'a, C: SeamCall, W: Wait, P: Pool> Removal<'a, C, W, P> {
    /// Creates a removal that has taken nothing yet.
    pub const fn new(op: Op<'a, C, W, P>, request: &'a Request) -> Self {
        Self {
            home: Home::new(op.cpu.pool),
            op,
            request,
            taken: Taken {
                pages: [0; 3],
                sept: 0,
                batches: 0,
            },
            end: Ok(()),
        }
    }

    /// Takes everything, batch by batch, for as long as `goes_on` returns true.
    pub fn run(mut self, goes_on: &dyn Fn() -> bool) -> Result<Taken, Error> {
        let mut at = self.request.range.start;
        let mut items = Items::new();
        loop {
            if self.end.is_ok() && !goes_on() {
                self.end = Err(Error::Terminated);
            }
            if self.end.is_ok() {
                self.end = self.collect(&mut items, &mut at);
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
    fn collect(&self, items: &mut Items, at: &mut u64) -> Result<(), Error> {
        let Request { range, until } = self.request;
        let mut small = 0;
        while *at < *until && !items.is_full() && small < MAX_SMALL {
            let gpa = Gpa(*at);
            let gib = start(gpa, PAGE_1G);
            if items.iter().any(|item| item.is_directory(gib)) {
                *at = gib.0 + PAGE_1G;
                continue;
            }
            match find(&self.op.map.mirror, gpa, range)? {
                Next::GoOn(next) => *at = next,
                Next::Split(size) => {
                    let gpa = start(gpa, size.bytes());
                    self.op.demote_live(gpa, size)?;
                }
                Next::Unblock => self.op.unblock_live(gpa)?,
                Next::Item(item) => {
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
            Item::Large(Large {
                gpa, page, since, ..
            }) => self.block_once(*gpa, page.size().into(), since),
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

    /// Records the first error.
    pub fn note(&mut self, result: Result<(), Error>) {
        if self.end.is_ok() {
            self.end = result;
        }
    }

    /// Returns whether further calls would be in vain.
    pub const fn gives_up(&self) -> bool {
        matches!(self.end, Err(Error::Seam(_) | Error::NoAnswer(_)))
    }
}

/// Returns the address of page `at` of the table at `table`.
pub const fn page_at(table: Gpa, at: usize) -> Gpa {
    Gpa(table.0 + at as u64 * PAGE_4K)
}

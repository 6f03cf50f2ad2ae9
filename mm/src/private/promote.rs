//! Promotion: 512 pages made one.

use core::ops::Range;

use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K, PageSize, SeptState};
use seam::address::{Gpa, Level};
use seam::call::SeamCall;
use seam::error::Rejected;
use seam::page::{Donated, Page, Run};
use seam::retry::Wait;

use super::error::Error;
use super::mirror::{Block, Boxed, ENTRIES, Entry, Epoch, Leaf, PageTable, Parts, is_aligned};
use super::pool::{Home, Pool};
use super::{Cpu, Kick, Op, PrivateMap};

/// The pages of a table and its S-EPT page, taken out to be made one page.
type Taken = (Run<Donated>, Page<Donated>);

impl PrivateMap {
    /// TDH.MEM.PAGE.PROMOTE: makes one page of `size`, 2 MiB or 1 GiB, of the 512 at `gpa`. All of them must be mapped,
    /// accepted by the guest, and parts of one frame.
    ///
    /// # Errors
    /// [`Error::NotWhole`] when they are not; [`Error`]. The pages are unchanged, and usable unless the module also
    /// refuses to unblock them.
    pub fn promote<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        gpa: Gpa,
        size: PageSize,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        if !is_aligned(gpa, size) {
            return Err(Error::BadRange);
        }
        self.change(cpu, kick, |op| match size {
            PageSize::Size4K => Err(Error::BadRange),
            PageSize::Size2M => {
                let (entry, result) = match self.mirror.claim_block(gpa)? {
                    Entry::Table(table) => op.join_table(gpa, table),
                    Entry::BlockedTable { table, since } => {
                        (Entry::BlockedTable { table, since }, Err(Error::Blocked))
                    }
                    other => (other, Err(Error::NotMapped)),
                };
                self.mirror.put_block(gpa, entry);
                result
            }
            PageSize::Size1G => {
                let gib = gpa.0 / PAGE_1G;
                let (entry, result) = match self.mirror.claim_gib(gib)? {
                    Entry::Table(table) => {
                        op.join_parts(gpa, table, |_| op.is_directory_accepted(gpa))
                    }
                    Entry::BlockedTable { table, since } => {
                        (Entry::BlockedTable { table, since }, Err(Error::Blocked))
                    }
                    other => (other, Err(Error::NotMapped)),
                };
                self.mirror.put_gib(gib, entry);
                result
            }
        })
    }

    /// Promotes everything in `range` that can be made one page: first to 2 MiB, then to 1 GiB. Returns the number of
    /// pages made, by size.
    ///
    /// # Errors
    /// [`Error::BadRange`] when `range` is not aligned to 4 KiB; [`Error`]. Parts that another CPU works on or that are
    /// not whole are no error; they stay as they are.
    pub fn promote_all<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        range: Range<u64>,
        kick: &dyn Kick,
    ) -> Result<[u64; 3], Error> {
        if !range.start.is_multiple_of(PAGE_4K) || !range.end.is_multiple_of(PAGE_4K) {
            return Err(Error::BadRange);
        }
        let mut joined = [0; 3];
        for size in [PageSize::Size2M, PageSize::Size1G] {
            let bytes = size.bytes();
            let mut at = range.start.next_multiple_of(bytes);
            while range.end.saturating_sub(at) >= bytes {
                match self.promote(cpu, Gpa(at), size, kick) {
                    Ok(()) => joined[size as usize] += 1,
                    Err(Error::NotWhole | Error::NotMapped | Error::Occupied | Error::Busy) => {}
                    // The rest of the range is outside the map.
                    Err(Error::BadRange) => break,
                    Err(error) => return Err(error),
                }
                at += bytes;
            }
        }
        Ok(joined)
    }
}

impl<C: SeamCall, W: Wait, P: Pool> Op<'_, C, W, P> {
    /// Joins the pages of a page table into one page.
    pub(super) fn join_table(
        &self,
        gpa: Gpa,
        table: Boxed<PageTable>,
    ) -> (Block, Result<(), Error>) {
        self.join_parts(gpa, table, |table| self.ask(gpa, table, ENTRIES).map(drop))
    }

    fn is_directory_accepted(&self, gpa: Gpa) -> Result<(), Error> {
        (0..ENTRIES as u64).try_for_each(|at| {
            let page = Gpa(gpa.0 + at * PAGE_2M);
            self.is_accepted(page, Level::Pd)
        })
    }

    /// Joins the pages of a table into one page, unless `ask` fails.
    fn join_parts<T: Parts>(
        &self,
        gpa: Gpa,
        mut table: Boxed<T>,
        ask: impl FnOnce(&mut T) -> Result<(), Error>,
    ) -> (Entry<T>, Result<(), Error>) {
        let refuse = |table, error| (Entry::Table(table), Err(error));
        if !table.is_whole() {
            return refuse(table, Error::NotWhole);
        }
        if let Err(error) = ask(&mut table) {
            return refuse(table, error);
        }
        let since = match self.quiesce_table(gpa, T::LEVEL) {
            Ok(since) => since,
            Err((None, error)) => return refuse(table, error),
            Err((Some(since), error)) => {
                return (Entry::BlockedTable { table, since }, Err(error));
            }
        };
        let Some(parts) = run_of(table.take_parts()) else {
            return refuse(table, Error::NotWhole);
        };
        let Some(sept) = table.sept().take() else {
            return refuse(table, Error::NotWhole);
        };
        match self.join(gpa, (parts, sept)) {
            Ok(page) => (Entry::Leaf(Leaf::Mapped(page)), Ok(())),
            Err(((parts, sept), error)) => {
                for (at, page) in parts.enumerate() {
                    table.put_part(at, Leaf::Mapped(page));
                }
                *table.sept() = Some(sept);
                let entry = self.usable_table(gpa, T::LEVEL, table, since);
                (entry, Err(error))
            }
        }
    }

    /// Asks the module for up to `most` pages of a table whether the guest has accepted them. Returns `false` when
    /// there are more to ask about.
    ///
    /// # Errors
    /// [`Error::NotWhole`] when the guest has not accepted a page; [`Error`].
    pub(super) fn ask(&self, gpa: Gpa, table: &mut PageTable, most: usize) -> Result<bool, Error> {
        let mut asked = 0;
        for at in table.by_doubt() {
            if table.is_accepted(at) {
                continue;
            }
            if asked == most {
                return Ok(false);
            }
            let page = Gpa(gpa.0 + at as u64 * PAGE_4K);
            self.is_accepted(page, Level::Pt)?;
            table.note_accepted(at);
            asked += 1;
        }
        Ok(true)
    }

    /// Checks that the guest has accepted the page at `gpa`. It stays accepted from then on, and the module can join
    /// it.
    fn is_accepted(&self, gpa: Gpa, level: Level) -> Result<(), Error> {
        let entry = self.cpu.tdh.mem_sept_rd(self.live.tdr(), gpa, level)?;
        if entry.state == SeptState::Mapped as u8 {
            Ok(())
        } else {
            Err(Error::NotWhole)
        }
    }

    /// Blocks the range of a table and ensures that no CPU uses it, if the TD can run. Returns the epoch of the block.
    /// The error holds it too if only the tracking failed.
    fn quiesce_table(
        &self,
        gpa: Gpa,
        level: Level,
    ) -> Result<Option<Epoch>, (Option<Epoch>, Error)> {
        if !self.live.is_finalized() {
            return Ok(None);
        }
        if let Err(error) = self.cpu.tdh.mem_range_block(self.live.tdr(), gpa, level) {
            return Err((None, error.into()));
        }
        let since = Some(self.map.tracker.now());
        match self.track(since) {
            Ok(()) => Ok(since),
            Err(error) => Err((since, error)),
        }
    }

    fn join(&self, gpa: Gpa, (parts, sept): Taken) -> Result<Page<Donated>, (Taken, Error)> {
        match self
            .cpu
            .tdh
            .mem_page_promote(self.live.tdr(), gpa, parts, sept)
        {
            Ok(promoted) => {
                let page = promoted.page;
                self.cpu.pool.merge(page.hpa(), page.size());
                self.map.stock.merge(page.size());
                self.map.stock.remove_sept(1);
                // A page that cannot be written back now is kept for the next removal.
                _ = self
                    .map
                    .bring_home(self.cpu, promoted.sept, &mut Home::new(self.cpu.pool));
                Ok(page)
            }
            Err(Rejected { error, given }) => Err((given, error.into())),
        }
    }
}

/// Returns the pages of the leaves of a whole table, as a run.
fn run_of(mut leaves: impl Iterator<Item = Leaf>) -> Option<Run<Donated>> {
    let mut run = Run::from(leaves.next()?.into_page());
    for leaf in leaves {
        run.push(leaf.into_page()).ok()?;
    }
    Some(run)
}

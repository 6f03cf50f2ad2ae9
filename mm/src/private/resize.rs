//! Large pages split into 512 smaller ones, and made whole again; and what was blocked for that made usable.

use core::ops::Range;

use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K, PageSize, SeptState};
use seam::address::{Gpa, Level};
use seam::call::SeamCall;
use seam::error::Rejected;
use seam::page::{Donated, Page, Run};
use seam::retry::Wait;
use seam::tdh::Demoted;

use super::error::Error;
use super::mirror::{
    Block, Boxed, Directory, ENTRIES, Entry, Epoch, Gib, Leaf, PageTable, Place, Upper, index,
    is_aligned, start,
};
use super::pool::{Home, Pool};
use super::root::Live;
use super::{Cpu, Kick, PrivateMap};

/// What a table maps, taken out to be made one page.
type Parts = (Run<Donated>, Page<Donated>);

impl PrivateMap {
    /// TDH.MEM.PAGE.DEMOTE: splits the page of `size` at `gpa`, 2 MiB or 1 GiB.
    ///
    /// # Errors
    /// [`Error`]; the page is whole, and usable unless the module refuses that, too.
    pub fn demote<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        gpa: Gpa,
        size: PageSize,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        self.root
            .keyed(|live| self.demote_live(cpu, live, gpa, size, kick))?;
        // Who splits a page that nothing is taken from has a guest that accepts it in parts.
        if size == PageSize::Size2M {
            self.note_joinable(gpa);
        }
        Ok(())
    }

    pub(super) fn demote_live<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        size: PageSize,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        if !is_aligned(gpa, size) {
            return Err(Error::BadRange);
        }
        match size {
            PageSize::Size4K => Err(Error::BadRange),
            PageSize::Size2M => {
                let (entry, result) = match self.mirror.claim_block(gpa)? {
                    Entry::Leaf(leaf) => self.split_2m(cpu, live, gpa, leaf, kick),
                    other => (other, Err(Error::NotMapped)),
                };
                self.mirror.put_block(gpa, entry);
                result
            }
            PageSize::Size1G => {
                let gib = gpa.0 / PAGE_1G;
                let (entry, result) = match self.mirror.claim_gib(gib)? {
                    Entry::Leaf(leaf) => self.split_1g(cpu, live, gpa, leaf, kick),
                    other => (other, Err(Error::NotMapped)),
                };
                self.mirror.put_gib(gib, entry);
                result
            }
        }
    }

    fn split_2m<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        leaf: Leaf,
        kick: &dyn Kick,
    ) -> (Block, Result<(), Error>) {
        let was = leaf.was();
        let mut table = match Boxed::new(PageTable::new()) {
            Ok(table) => table,
            Err(error) => return (Entry::Leaf(leaf), Err(error)),
        };
        match self.split(cpu, live, gpa, leaf, kick) {
            Ok(Demoted { pages, sept }) => {
                for (at, page) in pages.enumerate() {
                    table.put(at, Leaf::usable(page, was));
                }
                table.sept = Some(sept);
                (Entry::Table(table), Ok(()))
            }
            Err((leaf, error)) => (Entry::Leaf(leaf), Err(error)),
        }
    }

    fn split_1g<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        leaf: Leaf,
        kick: &dyn Kick,
    ) -> (Gib, Result<(), Error>) {
        let was = leaf.was();
        let mut directory = match Boxed::new(Directory::new()) {
            Ok(directory) => directory,
            Err(error) => return (Entry::Leaf(leaf), Err(error)),
        };
        match self.split(cpu, live, gpa, leaf, kick) {
            Ok(Demoted { pages, sept }) => {
                for (at, page) in pages.enumerate() {
                    directory.fill(at, Leaf::usable(page, was));
                }
                directory.sept = Some(sept);
                (Entry::Table(directory), Ok(()))
            }
            Err((leaf, error)) => (Entry::Leaf(leaf), Err(error)),
        }
    }

    fn split<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        leaf: Leaf,
        kick: &dyn Kick,
    ) -> Result<Demoted, (Leaf, Error)> {
        let sept = match self.take_frame(cpu, PageSize::Size4K) {
            Ok(sept) => sept,
            Err(error) => return Err((leaf, error)),
        };
        let (leaf, quiet) = self.quiesce(cpu, live, gpa, leaf, kick);
        if let Err(error) = quiet {
            cpu.pool.give(core::iter::once(sept));
            return Err((self.usable(cpu, live, gpa, leaf), error));
        }
        let (was, since) = (leaf.was(), leaf.blocked_since());
        let page = leaf.into_page();
        let (hpa, size) = (page.hpa(), page.size());
        match cpu.tdh.mem_page_demote(live.tdr(), gpa, page, sept) {
            Ok(demoted) => {
                cpu.pool.split(hpa, size);
                self.stock.split(size);
                self.stock.add_sept();
                Ok(demoted)
            }
            Err(Rejected {
                error,
                given: (page, sept),
            }) => {
                cpu.pool.give(core::iter::once(sept));
                let leaf = match since {
                    Some(since) => Leaf::Blocked { page, since, was },
                    None => Leaf::usable(page, was),
                };
                Err((self.usable(cpu, live, gpa, leaf), error.into()))
            }
        }
    }

    /// Blocks a page and makes sure that no CPU uses it, if the TD can run.
    fn quiesce<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        leaf: Leaf,
        kick: &dyn Kick,
    ) -> (Leaf, Result<(), Error>) {
        if !live.is_finalized() {
            return (leaf, Ok(()));
        }
        let leaf = match leaf.blocked_since() {
            Some(_) => leaf,
            None => match cpu.tdh.mem_range_block(live.tdr(), gpa, leaf.size().into()) {
                Ok(_) => leaf.blocked(self.tracker.now()),
                Err(error) => return (leaf, Err(error.into())),
            },
        };
        let tracked = self.track(cpu, live, leaf.blocked_since(), kick);
        (leaf, tracked)
    }

    /// Makes sure that no CPU uses what was blocked at `since`.
    pub(super) fn track<C: SeamCall, W: Wait, P>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        since: Option<Epoch>,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        match since {
            Some(since) if !self.tracker.is_tracked(since) => {
                self.tracker.round(cpu.tdh, live, kick)
            }
            _ => Ok(()),
        }
    }

    /// Takes the block from a page, if it has one that can be taken.
    fn usable<C: SeamCall, W: Wait, P>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        leaf: Leaf,
    ) -> Leaf {
        match leaf.blocked_since() {
            Some(since) if self.tracker.is_tracked(since) => {
                let level = leaf.size().into();
                match cpu.tdh.mem_range_unblock(live.tdr(), gpa, level) {
                    Ok(()) => leaf.unblocked(),
                    Err(_) => leaf,
                }
            }
            _ => leaf,
        }
    }

    /// TDH.MEM.PAGE.PROMOTE: makes one page of `size`, 2 MiB or 1 GiB, of the 512 at `gpa`. All of them are there, the guest
    /// has accepted them, and they are one frame's.
    ///
    /// # Errors
    /// [`Error::NotWhole`] when they are not; [`Error`]. The pages are as they were, and usable unless the module refuses
    /// that, too.
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
        self.root.keyed(|live| match size {
            PageSize::Size4K => Err(Error::BadRange),
            PageSize::Size2M => {
                let (entry, result) = match self.mirror.claim_block(gpa)? {
                    Entry::Table(table) => self.join_table(cpu, live, gpa, table, kick),
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
                    Entry::Table(directory) => self.join_directory(cpu, live, gpa, directory, kick),
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

    /// Promotes everything in `range` that can be made one page: parts that all came back after a split, and then what
    /// these are parts of. Pages made, by size.
    ///
    /// # Errors
    /// [`Error::BadRange`] when `range` is not aligned to 4 KiB; [`Error`], but for parts that another CPU works on or
    /// that are not whole: these stay as they are.
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
                    // Nothing at all is mapped there, or could be.
                    Err(Error::BadRange) => break,
                    Err(error) => return Err(error),
                }
                at += bytes;
            }
        }
        Ok(joined)
    }

    pub(super) fn join_table<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        mut table: Boxed<PageTable>,
        kick: &dyn Kick,
    ) -> (Block, Result<(), Error>) {
        let refuse = |table, error| (Entry::Table(table), Err(error));
        if !is_one_frame((0..ENTRIES).map(|at| table.page(at)), PageSize::Size2M) {
            return refuse(table, Error::NotWhole);
        }
        if let Err(error) = self.ask(cpu, live, gpa, &mut table, ENTRIES) {
            return refuse(table, error);
        }
        let since = match self.quiesce_table(cpu, live, gpa, Level::Pd, kick) {
            Ok(since) => since,
            Err((None, error)) => return refuse(table, error),
            Err((Some(since), error)) => {
                return (Entry::BlockedTable { table, since }, Err(error));
            }
        };
        let Some(parts) = run_of(table.drain()) else {
            return refuse(table, Error::NotWhole);
        };
        let Some(sept) = table.sept.take() else {
            return refuse(table, Error::NotWhole);
        };
        match self.join(cpu, live, gpa, (parts, sept)) {
            Ok(page) => (Entry::Leaf(Leaf::Mapped(page)), Ok(())),
            Err(((parts, sept), error)) => {
                for (at, page) in parts.enumerate() {
                    table.put(at, Leaf::Mapped(page));
                }
                table.sept = Some(sept);
                let entry = self.usable_table(cpu, live, gpa, Level::Pd, table, since);
                (entry, Err(error))
            }
        }
    }

    fn join_directory<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        mut directory: Boxed<Directory>,
        kick: &dyn Kick,
    ) -> (Gib, Result<(), Error>) {
        let refuse = |directory, error| (Entry::Table(directory), Err(error));
        let page = |at| match directory.entry(at) {
            Entry::Leaf(leaf) => Some(leaf.page()),
            _ => None,
        };
        if !is_one_frame((0..ENTRIES).map(page), PageSize::Size1G) {
            return refuse(directory, Error::NotWhole);
        }
        for at in 0..ENTRIES {
            let page = Gpa(gpa.0 + at as u64 * PAGE_2M);
            if let Err(error) = self.is_accepted(cpu, live, page, Level::Pd) {
                return refuse(directory, error);
            }
        }
        let since = match self.quiesce_table(cpu, live, gpa, Level::Pdpt, kick) {
            Ok(since) => since,
            Err((None, error)) => return refuse(directory, error),
            Err((Some(since), error)) => {
                let table = directory;
                return (Entry::BlockedTable { table, since }, Err(error));
            }
        };
        let leaves = directory.drain().filter_map(|entry| match entry {
            Entry::Leaf(leaf) => Some(leaf),
            _ => None,
        });
        let Some(parts) = run_of(leaves) else {
            return refuse(directory, Error::NotWhole);
        };
        let Some(sept) = directory.sept.take() else {
            return refuse(directory, Error::NotWhole);
        };
        match self.join(cpu, live, gpa, (parts, sept)) {
            Ok(page) => (Entry::Leaf(Leaf::Mapped(page)), Ok(())),
            Err(((parts, sept), error)) => {
                for (at, page) in parts.enumerate() {
                    directory.fill(at, Leaf::Mapped(page));
                }
                directory.sept = Some(sept);
                let entry = self.usable_table(cpu, live, gpa, Level::Pdpt, directory, since);
                (entry, Err(error))
            }
        }
    }

    /// Asks the module of `most` pages of a table whether the guest has accepted them. `false` when there are more to
    /// ask about.
    ///
    /// # Errors
    /// [`Error::NotWhole`] when the guest has not; [`Error`].
    pub(super) fn ask<C: SeamCall, W: Wait, P>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        table: &mut PageTable,
        most: usize,
    ) -> Result<bool, Error> {
        let mut asked = 0;
        for at in table.by_doubt() {
            if table.is_accepted(at) {
                continue;
            }
            if asked == most {
                return Ok(false);
            }
            let page = Gpa(gpa.0 + at as u64 * PAGE_4K);
            self.is_accepted(cpu, live, page, Level::Pt)?;
            table.note_accepted(at);
            asked += 1;
        }
        Ok(true)
    }

    /// Whether the guest has accepted what is at `gpa`: from then on it stays so, and the module can join it.
    fn is_accepted<C: SeamCall, W: Wait, P>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        level: Level,
    ) -> Result<(), Error> {
        let entry = cpu.tdh.mem_sept_rd(live.tdr(), gpa, level)?;
        if entry.state == SeptState::Mapped as u8 {
            Ok(())
        } else {
            Err(Error::NotWhole)
        }
    }

    /// Blocks what a table maps and makes sure that no CPU uses it, if the TD can run. When it was blocked; the same with
    /// the error when only the second failed.
    fn quiesce_table<C: SeamCall, W: Wait, P>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        level: Level,
        kick: &dyn Kick,
    ) -> Result<Option<Epoch>, (Option<Epoch>, Error)> {
        if !live.is_finalized() {
            return Ok(None);
        }
        if let Err(error) = cpu.tdh.mem_range_block(live.tdr(), gpa, level) {
            return Err((None, error.into()));
        }
        let since = Some(self.tracker.now());
        match self.track(cpu, live, since, kick) {
            Ok(()) => Ok(since),
            Err(error) => Err((since, error)),
        }
    }

    fn join<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        (parts, sept): Parts,
    ) -> Result<Page<Donated>, (Parts, Error)> {
        match cpu.tdh.mem_page_promote(live.tdr(), gpa, parts, sept) {
            Ok(promoted) => {
                let page = promoted.page;
                cpu.pool.merge(page.hpa(), page.size());
                self.stock.merge(page.size());
                self.stock.remove_sept(1);
                // A page that can't be written back now is kept for the next removal.
                _ = self.bring_home(cpu, promoted.sept, &mut Home::new(cpu.pool));
                Ok(page)
            }
            Err(Rejected { error, given }) => Err((given, error.into())),
        }
    }

    /// Takes the block from a table, if it has one that can be taken.
    fn usable_table<T, C: SeamCall, W: Wait, P>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        level: Level,
        table: Boxed<T>,
        since: Option<Epoch>,
    ) -> Entry<T> {
        match since {
            None => Entry::Table(table),
            Some(since)
                if self.tracker.is_tracked(since)
                    && cpu.tdh.mem_range_unblock(live.tdr(), gpa, level).is_ok() =>
            {
                Entry::Table(table)
            }
            Some(since) => Entry::BlockedTable { table, since },
        }
    }

    /// Makes usable again what failed work left blocked on the way to `gpa`, and there.
    ///
    /// # Errors
    /// [`Error`]; what is still blocked stays so until the next time.
    pub fn unblock<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        gpa: Gpa,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        self.root
            .keyed(|live| self.unblock_live(cpu, live, gpa, kick))
    }

    pub(super) fn unblock_live<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        let pdpt = Place::pdpt(gpa);
        let uppers = [self.mirror.uppers.above(pdpt), Some(pdpt)];
        for place in uppers.into_iter().flatten() {
            self.unblock_upper(cpu, live, place, kick)?;
        }
        let gib = gpa.0 / PAGE_1G;
        let (entry, result) = self.unblock_entry(
            cpu,
            live,
            start(gpa, PAGE_1G),
            self.mirror.claim_gib(gib)?,
            kick,
        );
        let goes_on = matches!(entry, Entry::Table(_));
        self.mirror.put_gib(gib, entry);
        result?;
        if !goes_on {
            return Ok(());
        }
        let block = start(gpa, PAGE_2M);
        let claimed = self.mirror.claim_block(gpa)?;
        let (mut entry, mut result) = self.unblock_entry(cpu, live, block, claimed, kick);
        if let (Entry::Table(table), Ok(())) = (&mut entry, &result) {
            let at = index(gpa, PAGE_4K);
            if let Some(leaf) = table.take(at) {
                result = self.track(cpu, live, leaf.blocked_since(), kick);
                let leaf = self.usable(cpu, live, start(gpa, PAGE_4K), leaf);
                table.put(at, leaf);
            }
        }
        self.mirror.put_block(block, entry);
        result
    }

    pub(super) fn unblock_entry<T, C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        entry: Entry<T>,
        kick: &dyn Kick,
    ) -> (Entry<T>, Result<(), Error>)
    where
        Entry<T>: AtLevel,
    {
        match entry {
            Entry::Leaf(leaf) => {
                let tracked = self.track(cpu, live, leaf.blocked_since(), kick);
                (Entry::Leaf(self.usable(cpu, live, gpa, leaf)), tracked)
            }
            Entry::BlockedTable { table, since } => {
                let tracked = self.track(cpu, live, Some(since), kick);
                let level = <Entry<T>>::LEVEL;
                let entry = self.usable_table(cpu, live, gpa, level, table, Some(since));
                (entry, tracked)
            }
            other => (other, Ok(())),
        }
    }

    fn unblock_upper<C: SeamCall, W: Wait, P>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        place: Place,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        let uppers = &self.mirror.uppers;
        let blocked = uppers.with(place, |upper| match core::mem::take(upper) {
            Upper::Blocked { page, since } => {
                *upper = Upper::Claimed;
                Some((page, since))
            }
            other => {
                *upper = other;
                None
            }
        })?;
        let Some((page, since)) = blocked else {
            return Ok(());
        };
        let unblocked = self.track(cpu, live, Some(since), kick).and_then(|()| {
            Ok(cpu
                .tdh
                .mem_range_unblock(live.tdr(), place.gpa, place.level)?)
        });
        let upper = match &unblocked {
            Ok(()) => Upper::Linked { page, pins: 0 },
            Err(_) => Upper::Blocked { page, since },
        };
        uppers.put(place, upper);
        unblocked
    }
}

/// The level of the S-EPT entry that an entry of the mirror stands for.
pub(super) trait AtLevel {
    const LEVEL: Level;
}

impl AtLevel for Block {
    const LEVEL: Level = Level::Pd;
}

impl AtLevel for Gib {
    const LEVEL: Level = Level::Pdpt;
}

/// Whether 512 usable pages are, in order, those of one frame of `size`.
fn is_one_frame<'a>(
    parts: impl Iterator<Item = Option<&'a Page<Donated>>>,
    size: PageSize,
) -> bool {
    let mut expected = None;
    let mut count = 0;
    for part in parts {
        let Some(page) = part else { return false };
        let hpa = page.hpa().0;
        if expected.unwrap_or(hpa.next_multiple_of(size.bytes())) != hpa {
            return false;
        }
        expected = Some(hpa + page.size().bytes());
        count += 1;
    }
    count == ENTRIES
}

/// The pages of leaves that [`is_one_frame`] has looked at.
fn run_of(mut leaves: impl Iterator<Item = Leaf>) -> Option<Run<Donated>> {
    let mut run = Run::from(leaves.next()?.into_page());
    for leaf in leaves {
        run.push(leaf.into_page()).ok()?;
    }
    Some(run)
}

//! A unit of work, on which one CPU at a time performs a step: a few pages of the mirror are reclaimed and cleared.

mod refused;

use core::ops::Range;

use arrayvec::ArrayVec;
use seam::abi::{Leaf as SeamLeaf, PAGE_2M, PageSize};
use seam::call::SeamCall;
use seam::error::Rejected;
use seam::page::{Clean, Dirty, Donated, Page, Run};
use seam::retry::Wait;
use seam::tdh::{Keyless, Tdr};

use super::clearing::{Clearing, Left};
use super::home::Homeward;
use super::report::{Clock, Reclaimed};
use super::{Control, Shared};
use crate::private::error::Error;
use crate::private::mirror::{Boxed, Directory, ENTRIES, Entry, Gib, Leaf, PageTable};
use crate::private::pool::Pool;
use crate::private::{Cpu, PrivateMap};
use sync::atomic::Ordering::SeqCst;

/// Maximum number of pages that one step asks the module for.
pub const MAX_CALLS: usize = 8;
/// Number of times that a page can be split.
const MAX_SPLITS: usize = 2;
/// Maximum number of bytes cleared in one step.
const MAX_CLEARED: u64 = PAGE_2M;

/// The pages that a unit covers.
#[derive(Debug)]
pub enum Work {
    /// The page that maps a whole GiB, or the 2 MiB pages among these entries of its directory.
    Large { gib: u32, entries: Range<usize> },
    /// Everything below these entries of a directory.
    Small {
        gib: u32,
        entries: Range<usize>,
        open: Option<Open>,
    },
    /// Directories and tables above them, control pages, stranded pages: by number.
    Rest { items: Range<usize> },
}

/// A page table taken out of its directory.
#[derive(Debug)]
pub struct Open {
    index: usize,
    table: Boxed<PageTable>,
    /// True once the module was asked for the table's own page.
    asked: bool,
    /// Index of its next page.
    next: usize,
}

/// Origin of a page.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Gib(u32),
    Block(u32, usize),
    /// A page of the open table.
    Page(usize),
    /// The open table's own page.
    Table,
    Directory(u32),
    Upper(usize),
    Control(usize),
    /// A part of a page that the module has in smaller pages than the mirror had.
    Part,
}

/// A page that was found.
enum Piece {
    /// A page that the module owns.
    Donated(Origin, Page<Donated>),
    /// A page that left the TD before.
    Dirty(Page<Dirty>),
}

/// A unit of work and its progress.
#[derive(Debug)]
pub struct Job {
    work: Work,
    /// Reclaimed pages that are not cleared yet.
    came: ArrayVec<Page<Dirty>, MAX_CALLS>,
    /// A page of 1 GiB that is being cleared.
    whole: Option<Whole>,
    /// The parts of pages that the module has in smaller pages than the mirror had: 2 MiB, then 4 KiB.
    parts: ArrayVec<Run<Donated>, MAX_SPLITS>,
    clean: Homeward<Clean>,
    kept: Homeward<Dirty>,
    /// Pages that left the mirror in this unit.
    took: Reclaimed,
    /// Number of pages that are still there.
    left: u64,
    /// False once the module has refused a page for as long as the retry policy waits: the other pages are tried once
    /// each, and again in the next pass.
    is_patient: bool,
}

/// Everything that a job works with.
pub struct Context<'a, C, W, P> {
    /// State shared by all jobs.
    pub shared: &'a Shared,
    /// The TD's map.
    pub map: &'a PrivateMap,
    /// The TD.
    pub tdr: &'a Tdr<Keyless>,
    /// The CPU that performs the step.
    pub cpu: Cpu<'a, C, W, P>,
}

impl Job {
    pub fn new(work: Work) -> Self {
        Self {
            work,
            came: ArrayVec::new_const(),
            whole: None,
            parts: ArrayVec::new_const(),
            clean: Homeward::<Clean>::new(PageSize::Size1G),
            // TDs request no larger ones.
            kept: Homeward::<Dirty>::new(PageSize::Size2M),
            took: Reclaimed::default(),
            left: 0,
            is_patient: true,
        }
    }

    /// Returns the counts of pages that left the mirror, and the number of pages that did not.
    pub const fn result(&self) -> (&Reclaimed, u64) {
        (&self.took, self.left)
    }

    /// Performs a step. Returns its counts, and whether it was the last.
    pub fn step<C: SeamCall, W: Wait, P: Pool>(
        &mut self,
        context: &Context<'_, C, W, P>,
        clock: &impl Clock,
    ) -> (Reclaimed, bool) {
        let cpu = context.cpu;
        let mut step = Reclaimed::default();
        let begun = clock.ns();
        let calls = || cpu.tdh.counters().leaf(SeamLeaf::PhymemPageReclaim).calls;
        let before = calls();
        // Pages from the previous step are cleared first.
        let found_all =
            self.came.is_empty() && self.whole.is_none() && self.take(context, &mut step);
        step.reclaim_calls = calls() - before;
        let taken = clock.ns();
        step.reclaim_ns = taken - begun;
        self.dispose(context.shared.clearing, cpu.pool, &mut step);
        let is_over = found_all && self.came.is_empty() && self.whole.is_none();
        if is_over {
            self.clean.go(cpu.pool);
            step.cleared += self.kept.go(cpu.pool);
        }
        step.clear_ns = clock.ns() - taken;
        (step, is_over)
    }

    /// Reclaims as many pages as a step may, up to the first that the module refuses. Returns whether none are left.
    fn take<C: SeamCall, W: Wait, P: Pool>(
        &mut self,
        context: &Context<'_, C, W, P>,
        step: &mut Reclaimed,
    ) -> bool {
        for _ in 0..MAX_CALLS {
            match self.find(context) {
                None => return true,
                Some(Piece::Dirty(page)) => self.came.push(page),
                Some(Piece::Donated(origin, page))
                    if context.shared.is_written_off.load(SeqCst) =>
                {
                    self.put_away(context, origin, page, Error::ShutDown);
                }
                Some(Piece::Donated(origin, page)) => {
                    let size = page.size();
                    let (page, was_refused) = match self.reclaim(context, origin, page) {
                        Ok(page) => (Some(page), false),
                        Err(rejected) => (self.refused(context, origin, rejected), true),
                    };
                    if let Some(page) = page {
                        self.came.push(page);
                        match origin {
                            Origin::Part => step.pages[size as usize] += 1,
                            _ => count(step, origin, size),
                        }
                        count(&mut self.took, origin, size);
                    }
                    if was_refused {
                        return false;
                    }
                }
            }
        }
        false
    }

    fn reclaim<C: SeamCall, W: Wait, P>(
        &self,
        context: &Context<'_, C, W, P>,
        origin: Origin,
        page: Page<Donated>,
    ) -> Result<Page<Dirty>, Rejected<Page<Donated>>> {
        let Context { tdr, cpu, .. } = context;
        if self.is_patient || matches!(origin, Origin::Part) {
            cpu.tdh.phymem_page_reclaim(tdr, page)
        } else {
            cpu.tdh.once().phymem_page_reclaim(tdr, page)
        }
    }

    /// Clears as many reclaimed pages as a step may, and frees them.
    fn dispose<P: Pool>(&mut self, clearing: Clearing, pool: &P, step: &mut Reclaimed) {
        while step.cleared < MAX_CLEARED {
            if let Some(whole) = self.whole.take() {
                step.cleared += PAGE_2M;
                match whole.step(pool) {
                    Ok(page) => self.clean.add(pool, page),
                    Err(whole) => self.whole = Some(whole),
                }
                continue;
            }
            let Some(next) = self.came.first().map(|page| page.size().bytes()) else {
                break;
            };
            let is_whole = next > MAX_CLEARED;
            if clearing == Clearing::Clear && !is_whole && step.cleared + next > MAX_CLEARED {
                break;
            }
            let page = self.came.remove(0);
            match clearing {
                Clearing::Clear => match Whole::new(page) {
                    Ok(whole) => self.whole = Some(whole),
                    Err(page) => {
                        step.cleared += next;
                        self.clean.add(pool, pool.clear(page));
                    }
                },
                Clearing::Leave => self.clean.add(pool, page.clear(&Left)),
                Clearing::Keep => step.cleared += self.kept.add(pool, page),
            }
        }
    }

    /// Takes the next page out of the mirror.
    fn find<C, W, P>(&mut self, context: &Context<'_, C, W, P>) -> Option<Piece> {
        let map = context.map;
        while let Some(parts) = self.parts.last_mut() {
            if let Some(page) = parts.next() {
                return Some(Piece::Donated(Origin::Part, page));
            }
            self.parts.pop();
        }
        match &mut self.work {
            Work::Large { gib, entries } => {
                let (origin, leaf) = find_large(map, *gib, entries)?;
                Some(Piece::Donated(origin, leaf.into_page()))
            }
            Work::Small { gib, entries, open } => {
                let (origin, page) = find_small(map, *gib, entries, open)?;
                Some(Piece::Donated(origin, page))
            }
            Work::Rest { items } => items.find_map(|number| find_rest(context, number)),
        }
    }
}

fn count(counts: &mut Reclaimed, origin: Origin, size: PageSize) {
    match origin {
        Origin::Gib(_) | Origin::Block(..) | Origin::Page(_) => counts.pages[size as usize] += 1,
        Origin::Table | Origin::Directory(_) | Origin::Upper(_) => counts.sept += 1,
        Origin::Control(_) => counts.control += 1,
        // The page that it is a part of was counted when it left the mirror.
        Origin::Part => {}
    }
}

/// A page of 1 GiB, cleared 2 MiB at a time.
#[derive(Debug)]
struct Whole {
    dirty: Run<Dirty>,
    clean: Option<Run<Clean>>,
}

impl Whole {
    /// Takes a page of 1 GiB; returns any other.
    fn new(page: Page<Dirty>) -> Result<Self, Page<Dirty>> {
        if page.size() != PageSize::Size1G {
            return Err(page);
        }
        let dirty = page.split()?;
        Ok(Self { dirty, clean: None })
    }

    /// Clears 2 MiB. Returns the page once all of it is clean.
    fn step<P: Pool>(mut self, pool: &P) -> Result<Page<Clean>, Self> {
        if let Some(part) = self.dirty.next() {
            let part = pool.clear(part);
            match &mut self.clean {
                None => self.clean = Some(Run::from(part)),
                Some(run) => {
                    let follows = run.push(part);
                    debug_assert!(follows.is_ok(), "they come in order");
                }
            }
        }
        match self.clean.take().map(Run::join) {
            Some(Ok(page)) => Ok(page),
            Some(Err(run)) => {
                self.clean = Some(run);
                Err(self)
            }
            None => Err(self),
        }
    }
}

fn in_gib<R: Default>(map: &PrivateMap, gib: u32, look: impl FnOnce(&mut Gib) -> R) -> R {
    map.mirror.with(gib.into(), look).unwrap_or_default()
}

/// Returns the directory of a GiB, blocked or not.
fn directory(entry: &mut Gib) -> Option<&mut Boxed<Directory>> {
    match entry {
        Entry::Table(table) | Entry::BlockedTable { table, .. } => Some(table),
        _ => None,
    }
}

fn find_large(map: &PrivateMap, gib: u32, entries: &mut Range<usize>) -> Option<(Origin, Leaf)> {
    in_gib(map, gib, |entry| {
        if let Some(directory) = directory(entry) {
            return entries.find_map(|index| {
                let leaf = directory.take_leaf(index)?;
                Some((Origin::Block(gib, index), leaf))
            });
        }
        // A page of 1 GiB is in the unit that begins with it.
        if !entries.contains(&0) {
            return None;
        }
        *entries = entries.end..entries.end;
        match core::mem::replace(entry, Entry::Free) {
            Entry::Leaf(leaf) => Some((Origin::Gib(gib), leaf)),
            other => {
                *entry = other;
                None
            }
        }
    })
}

fn find_small(
    map: &PrivateMap,
    gib: u32,
    entries: &mut Range<usize>,
    open: &mut Option<Open>,
) -> Option<(Origin, Page<Donated>)> {
    loop {
        if let Some(current) = open {
            // The table's own frame was allocated just before those of its pages, and is often adjacent to them.
            if !current.asked {
                current.asked = true;
                if let Some(page) = current.table.sept.take() {
                    return Some((Origin::Table, page));
                }
            }
            while current.next < ENTRIES {
                let index = current.next;
                current.next += 1;
                if let Some(leaf) = current.table.take(index) {
                    return Some((Origin::Page(index), leaf.into_page()));
                }
            }
        }
        if let Some(Open { index, table, .. }) = open.take()
            && (table.used() > 0 || table.sept.is_some())
        {
            in_gib(map, gib, |entry| {
                if let Some(directory) = directory(entry) {
                    directory.put_table(index, table);
                }
            });
        }
        *open = Some(in_gib(map, gib, |entry| {
            let directory = directory(entry)?;
            entries.find_map(|index| {
                let table = directory.take_table(index)?;
                Some(Open {
                    index,
                    table,
                    asked: false,
                    next: 0,
                })
            })
        })?);
    }
}

fn find_rest<C, W, P>(context: &Context<'_, C, W, P>, number: usize) -> Option<Piece> {
    let Context {
        shared, map, tdr, ..
    } = *context;
    match shared.rest.at(number) {
        Control::Directory(at) => {
            let gib = *shared.gibs.get(at)?;
            let page = in_gib(map, gib, |entry| directory(entry)?.sept.take())?;
            Some(Piece::Donated(Origin::Directory(gib), page))
        }
        Control::Upper(at) => {
            let page = map.mirror.uppers.take(at)?;
            Some(Piece::Donated(Origin::Upper(at), page))
        }
        Control::Page(at) => {
            let page = shared.control.get(at)?.lock().take()?;
            Some(Piece::Donated(Origin::Control(at), page))
        }
        Control::Stranded => {
            let page = map.stock.next_stranded()?;
            Some(Piece::Dirty(page.outlived(tdr)))
        }
    }
}

//! Split pages made whole again, by whoever has time for it.
//!
//! That the parts of a page may all be there is noted where the last one is mapped, or where the page is split for a
//! guest that accepts it in parts: a bit in the directory, under a lock that is held there anyway. A search follows the
//! notes, step by step. The guest does not tell the host what it accepts, so each note is followed a few times, and then
//! given up until the next one.

use core::ops::ControlFlow;

use seam::abi::{PAGE_1G, PAGE_2M};
use seam::address::Gpa;
use seam::call::SeamCall;
use seam::retry::Wait;

use super::error::Error;
use super::mirror::{Block, Entry};
use super::pool::Pool;
use super::{Cpu, Kick, Op, PrivateMap};
use sync::atomic::Ordering::SeqCst;

/// Searches that follow a note at most.
const TRIES: u8 = 4;
/// Pages of which a step asks whether the guest has accepted them.
const ASKED: usize = 64;

/// How far a search for what can be made one page has come. Of one map there is at most one search.
#[derive(Debug, Default)]
pub struct Search {
    /// Where it goes on, once it has begun.
    at: Option<u64>,
    /// What it saw and another one is to look at.
    is_left: bool,
}

impl Search {
    /// Whether it goes on where it is.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        self.at.is_some()
    }
}

/// What a step of a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The search is over, or there is nothing to search for.
    Nothing,
    /// It goes on.
    More,
    /// A page of 2 MiB was made; it goes on.
    Whole,
}

impl PrivateMap {
    /// Whether a search may find something.
    pub fn is_joinable(&self) -> bool {
        self.joinable.load(SeqCst)
    }

    /// Pages of 2 MiB that searches made, since the TD was built.
    pub fn made_whole(&self) -> u64 {
        self.stock.made_whole()
    }

    /// Notes that the parts of the page of 2 MiB around `gpa` may all be there.
    pub(super) fn note_joinable(&self, gpa: Gpa) {
        self.mirror.note_joinable(gpa, TRIES);
        self.joinable.store(true, SeqCst);
    }

    /// A step of a search: asks of 64 pages whether the guest has accepted them (TDH.MEM.SEPT.RD), and, when none is left
    /// to ask about, makes one page of 512, with one TDH.MEM.RANGE.BLOCK, tracking round, TDH.MEM.PAGE.PROMOTE and
    /// TDH.PHYMEM.PAGE.WBINVD.
    ///
    /// # Errors
    /// [`Error::Seam`], [`Error::NoAnswer`]: pages could not be made one. They are as they were, and usable unless
    /// the module refuses that too; the search goes on.
    pub fn search<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        search: &mut Search,
        kick: &dyn Kick,
    ) -> Result<Found, Error> {
        let from = match search.at {
            Some(at) => at,
            None if self.is_joinable() => {
                // What is noted from here on is for this search or the next.
                self.joinable.store(false, SeqCst);
                0
            }
            None => return Ok(Found::Nothing),
        };
        let Some((gpa, seen)) = self.mirror.next_joinable(from) else {
            self.end(search);
            return Ok(Found::Nothing);
        };
        if seen.is_err() {
            search.is_left = true;
            search.at = Some(gpa.0 + PAGE_1G);
            return Ok(Found::More);
        }
        search.at = Some(gpa.0 + PAGE_2M);
        match self.change(cpu, kick, |op| op.follow(gpa)) {
            Ok(ControlFlow::Continue(())) => {
                search.at = Some(gpa.0);
                Ok(Found::More)
            }
            Ok(ControlFlow::Break(())) => {
                self.stock.add_made_whole();
                Ok(Found::Whole)
            }
            Err(Error::Terminated) => {
                // It may live on.
                search.is_left = true;
                self.end(search);
                Ok(Found::Nothing)
            }
            Err(error) => {
                search.is_left = true;
                match error {
                    Error::Seam(_) | Error::NoAnswer(_) => Err(error),
                    _ => Ok(Found::More),
                }
            }
        }
    }

    fn end(&self, search: &mut Search) {
        if search.is_left {
            self.joinable.store(true, SeqCst);
        }
        *search = Search::default();
    }
}

impl<C: SeamCall, W: Wait, P: Pool> Op<'_, C, W, P> {
    /// Follows the note on the 2 MiB at `gpa`: [`ControlFlow::Break`] when they are one page now, the other when it is to
    /// be gone on with.
    fn follow(&self, gpa: Gpa) -> Result<ControlFlow<()>, Error> {
        let (mut entry, result) = match self.map.mirror.claim_block(gpa)? {
            Entry::Table(table) if !table.is_whole() => (Entry::Table(table), Err(Error::NotWhole)),
            Entry::Table(mut table) => match self.ask(gpa, &mut table, ASKED) {
                Ok(true) => {
                    let (entry, joined) = self.join_table(gpa, table);
                    (entry, joined.map(ControlFlow::Break))
                }
                Ok(false) => (Entry::Table(table), Ok(ControlFlow::Continue(()))),
                Err(error) => (Entry::Table(table), Err(error)),
            },
            // What failed work left blocked is made usable, and joined by the next search.
            blocked @ Entry::BlockedTable { .. } => {
                let (entry, usable) = self.unblock_entry(gpa, blocked);
                (entry, usable.and(Err(Error::Blocked)))
            }
            other => (other, Err(Error::NotMapped)),
        };
        let again = match result {
            Ok(ControlFlow::Break(())) => false,
            Ok(ControlFlow::Continue(())) => true,
            Err(_) => is_worth_another_try(&mut entry),
        };
        self.map.mirror.put_tried(gpa, entry, again);
        result
    }
}

/// Counts a try that failed.
fn is_worth_another_try(entry: &mut Block) -> bool {
    match entry {
        Entry::Table(table) | Entry::BlockedTable { table, .. } => {
            table.tries = table.tries.saturating_sub(1);
            table.tries > 0 && table.is_whole()
        }
        _ => false,
    }
}

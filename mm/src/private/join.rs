//! Joining of split pages in idle time.
//!
//! When the last part of a page is mapped, or a page is split for a guest that accepts it in parts, a bit in the
//! directory notes that all parts may be there. The GiB's lock protects it. A search follows the notes step by step.
//! The guest does not tell the host which pages it accepts, so each note is followed a few times, and then dropped
//! until the next one.

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

/// Maximum number of searches that follow a note.
const TRIES: u8 = 4;
/// Maximum number of pages that one step asks about.
const ASKED: usize = 64;

/// Progress of a search for pages to join. A map has at most one search at a time.
#[derive(Debug, Default)]
pub struct Search {
    /// Address at which it continues, once it has begun.
    at: Option<u64>,
    /// True if it saw something that another search must look at.
    is_left: bool,
}

impl Search {
    /// Returns whether the search has begun and not ended.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        self.at.is_some()
    }
}

/// Result of a search step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The search is over, or there is nothing to search for.
    Nothing,
    /// The search continues.
    More,
    /// A page of 2 MiB was made; the search continues.
    Whole,
}

impl PrivateMap {
    /// Returns whether a search may find something.
    pub fn is_joinable(&self) -> bool {
        self.joinable.load(SeqCst)
    }

    /// Returns the number of 2 MiB pages that searches have made since the TD was built.
    pub fn made_whole(&self) -> u64 {
        self.stock.made_whole()
    }

    /// Notes that all parts of the page of 2 MiB around `gpa` may be there.
    pub(super) fn note_joinable(&self, gpa: Gpa) {
        self.mirror.note_joinable(gpa, TRIES);
        self.joinable.store(true, SeqCst);
    }

    /// Performs a step of a search. It asks for up to 64 pages whether the guest has accepted them (TDH.MEM.SEPT.RD).
    /// When no page is left to ask about, it makes one page of 512, with one TDH.MEM.RANGE.BLOCK, tracking round,
    /// TDH.MEM.PAGE.PROMOTE and TDH.PHYMEM.PAGE.WBINVD.
    ///
    /// # Errors
    /// [`Error::Seam`], [`Error::NoAnswer`]: pages could not be joined. They are unchanged, and usable unless the
    /// module also refuses to unblock them. The search continues.
    pub fn search<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        search: &mut Search,
        kick: &dyn Kick,
    ) -> Result<Found, Error> {
        let from = match search.at {
            Some(at) => at,
            None if self.is_joinable() => {
                // Notes made from here on are for this search or the next.
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
                // The TD may survive.
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
    /// Follows the note on the 2 MiB at `gpa`. Returns [`ControlFlow::Break`] when they are one page now, and
    /// [`ControlFlow::Continue`] when there are more pages to ask about.
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
            // Failed work left the table blocked. It is unblocked now, and the next search joins it.
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

/// Counts a failed try. Returns whether another try makes sense.
fn is_worth_another_try(entry: &mut Block) -> bool {
    match entry {
        Entry::Table(table) | Entry::BlockedTable { table, .. } => {
            table.tries = table.tries.saturating_sub(1);
            table.tries > 0 && table.is_whole()
        }
        _ => false,
    }
}

//! Dynamic removal: taking memory from a TD that has its key, while it may run.
//!
//! A range is removed in batches. The entries of a batch are claimed and blocked one by one; one tracking round ensures
//! that no CPU uses any of them; then each page is removed, written back, cleared and freed. Tables that are empty
//! after that are blocked together with the entries of the next batch, and share its round. A large page is removed
//! whole; it is split only where the range ends inside it.

mod batch;
mod take;

use core::ops::Range;

use seam::abi::PAGE_4K;
use seam::call::SeamCall;
use seam::error::Rejected;
use seam::page::{Cached, Page};
use seam::retry::Wait;

use super::error::Error;
use super::pool::{Home, Pool, clear_all};
use super::reclaim::{Clearing, Left};
use super::root::Mode;
use super::{Cpu, Kick, PrivateMap};
use batch::Removal;

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

/// A request to take memory from a TD.
pub(super) struct Request {
    /// The memory.
    pub range: Range<u64>,
    /// The address up to which empty tables are removed too.
    pub until: u64,
}

impl Request {
    const fn of(range: Range<u64>) -> Self {
        let until = range.end;
        Self { range, until }
    }
}

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
        self.remove_and_tidy(cpu, Request::of(range), kick, goes_on)
    }

    /// Like [`Self::remove_while`], but also removes empty tables behind the range.
    pub(super) fn remove_and_tidy<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        request: Request,
        kick: &dyn Kick,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Outcome, Error> {
        let range = &request.range;
        if !range.start.is_multiple_of(PAGE_4K) || !range.end.is_multiple_of(PAGE_4K) {
            return Err(Error::BadRange);
        }
        let removed = self.change(cpu, kick, |op| {
            self.settle(cpu)?;
            Removal::new(op, &request).run(goes_on)
        });
        match removed {
            Ok(taken) => Ok(Outcome::Removed(taken)),
            Err(Error::Terminated) => match self.mode() {
                // The CPU that wanted to close the map has given up.
                Mode::Keyed if goes_on() => Err(Error::Busy),
                Mode::Keyless => Ok(Outcome::LeftToReclaim),
                _ if self.stock.queue(request.range) => Ok(Outcome::Queued),
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

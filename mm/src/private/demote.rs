//! Demotion: a large page split into 512 smaller ones.

use seam::abi::{PAGE_1G, PageSize};
use seam::address::Gpa;
use seam::call::SeamCall;
use seam::error::Rejected;
use seam::retry::Wait;
use seam::tdh::Demoted;

use super::error::Error;
use super::mirror::{Boxed, Entry, Leaf, Parts, is_aligned};
use super::pool::Pool;
use super::{Cpu, Kick, Op, PrivateMap};

impl PrivateMap {
    /// TDH.MEM.PAGE.DEMOTE: splits the page of `size` at `gpa`, 2 MiB or 1 GiB.
    ///
    /// # Errors
    /// [`Error`]; the page is whole, and usable unless the module also refuses to unblock it.
    pub fn demote<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        gpa: Gpa,
        size: PageSize,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        self.change(cpu, kick, |op| op.demote_live(gpa, size))?;
        // A page that nothing is taken from is split for a guest that accepts it in parts.
        if size == PageSize::Size2M {
            self.note_joinable(gpa);
        }
        Ok(())
    }
}

impl<C: SeamCall, W: Wait, P: Pool> Op<'_, C, W, P> {
    pub(super) fn demote_live(&self, gpa: Gpa, size: PageSize) -> Result<(), Error> {
        if !is_aligned(gpa, size) {
            return Err(Error::BadRange);
        }
        match size {
            PageSize::Size4K => Err(Error::BadRange),
            PageSize::Size2M => {
                let (entry, result) = match self.map.mirror.claim_block(gpa)? {
                    Entry::Leaf(leaf) => self.split_into(gpa, leaf),
                    other => (other, Err(Error::NotMapped)),
                };
                self.map.mirror.put_block(gpa, entry);
                result
            }
            PageSize::Size1G => {
                let gib = gpa.0 / PAGE_1G;
                let (entry, result) = match self.map.mirror.claim_gib(gib)? {
                    Entry::Leaf(leaf) => self.split_into(gpa, leaf),
                    other => (other, Err(Error::NotMapped)),
                };
                self.map.mirror.put_gib(gib, entry);
                result
            }
        }
    }

    /// Splits a page into the parts of a new table.
    fn split_into<T: Parts>(&self, gpa: Gpa, leaf: Leaf) -> (Entry<T>, Result<(), Error>) {
        let was = leaf.was();
        let mut table = match Boxed::new(T::empty()) {
            Ok(table) => table,
            Err(error) => return (Entry::Leaf(leaf), Err(error)),
        };
        match self.split(gpa, leaf) {
            Ok(Demoted { pages, sept }) => {
                for (at, page) in pages.enumerate() {
                    table.put_part(at, Leaf::usable(page, was));
                }
                *table.sept() = Some(sept);
                (Entry::Table(table), Ok(()))
            }
            Err((leaf, error)) => (Entry::Leaf(leaf), Err(error)),
        }
    }

    fn split(&self, gpa: Gpa, leaf: Leaf) -> Result<Demoted, (Leaf, Error)> {
        let sept = match self.take_sept() {
            Ok(sept) => sept,
            Err(error) => return Err((leaf, error)),
        };
        let (leaf, quiet) = self.quiesce(gpa, leaf);
        if let Err(error) = quiet {
            self.give_sept(sept);
            return Err((self.usable(gpa, leaf), error));
        }
        let (was, since) = (leaf.was(), leaf.blocked_since());
        let page = leaf.into_page();
        let (hpa, size) = (page.hpa(), page.size());
        match self
            .cpu
            .tdh
            .mem_page_demote(self.live.tdr(), gpa, page, sept)
        {
            Ok(demoted) => {
                self.cpu.pool.split(hpa, size);
                self.map.stock.split(size);
                Ok(demoted)
            }
            Err(Rejected {
                error,
                given: (page, sept),
            }) => {
                self.give_sept(sept);
                let leaf = match since {
                    Some(since) => Leaf::Blocked { page, since, was },
                    None => Leaf::usable(page, was),
                };
                Err((self.usable(gpa, leaf), error.into()))
            }
        }
    }

    /// Blocks a page and ensures that no CPU uses it, if the TD can run.
    fn quiesce(&self, gpa: Gpa, leaf: Leaf) -> (Leaf, Result<(), Error>) {
        if !self.live.is_finalized() {
            return (leaf, Ok(()));
        }
        let leaf = match leaf.blocked_since() {
            Some(_) => leaf,
            None => match self
                .cpu
                .tdh
                .mem_range_block(self.live.tdr(), gpa, leaf.size().into())
            {
                Ok(_) => leaf.blocked(self.map.tracker.now()),
                Err(error) => return (leaf, Err(error.into())),
            },
        };
        let tracked = self.track(leaf.blocked_since());
        (leaf, tracked)
    }
}

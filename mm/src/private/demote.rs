//! Large pages split into 512 smaller ones.

use seam::abi::{PAGE_1G, PageSize};
use seam::address::Gpa;
use seam::call::SeamCall;
use seam::error::Rejected;
use seam::retry::Wait;
use seam::tdh::Demoted;

use super::error::Error;
use super::mirror::{Boxed, Entry, Epoch, Leaf, Parts, is_aligned};
use super::pool::Pool;
use super::root::Live;
use super::{Cpu, Kick, PrivateMap};

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
                    Entry::Leaf(leaf) => self.split_into(cpu, live, gpa, leaf, kick),
                    other => (other, Err(Error::NotMapped)),
                };
                self.mirror.put_block(gpa, entry);
                result
            }
            PageSize::Size1G => {
                let gib = gpa.0 / PAGE_1G;
                let (entry, result) = match self.mirror.claim_gib(gib)? {
                    Entry::Leaf(leaf) => self.split_into(cpu, live, gpa, leaf, kick),
                    other => (other, Err(Error::NotMapped)),
                };
                self.mirror.put_gib(gib, entry);
                result
            }
        }
    }

    /// Splits a page into the parts of a new table.
    fn split_into<T: Parts, C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        leaf: Leaf,
        kick: &dyn Kick,
    ) -> (Entry<T>, Result<(), Error>) {
        let was = leaf.was();
        let mut table = match Boxed::new(T::empty()) {
            Ok(table) => table,
            Err(error) => return (Entry::Leaf(leaf), Err(error)),
        };
        match self.split(cpu, live, gpa, leaf, kick) {
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
}

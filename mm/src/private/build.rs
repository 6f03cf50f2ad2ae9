//! Adding memory to a TD: the measured image page by page, the rest in pages as large as possible.

use core::ops::Range;

use seam::abi::{PAGE_2M, PAGE_4K, PageSize};
use seam::address::{Gpa, Hpa};
use seam::call::SeamCall;
use seam::error::{Handover, Rejected};
use seam::page::{Clean, Page};
use seam::retry::Wait;

use super::error::Error;
use super::kick::NoneRuns;
use super::mirror::{Entry, Leaf, index, is_aligned};
use super::pool::Pool;
use super::remove::Request;
use super::{Cpu, Op, PrivateMap};
use tdvf::chunks;

/// Memory that was mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Pages of 4 KiB, 2 MiB and 1 GiB.
    pub pages: [u64; 3],
}

impl PrivateMap {
    /// TDH.MEM.PAGE.ADD and, if `is_measured`, TDH.MR.EXTEND: adds a page of the TD's image at `gpa`, with the content
    /// of the host's page at `source`. Possible until the TD is finalised.
    ///
    /// # Errors
    /// [`Error::Finalized`]; [`Error`]. The page and the S-EPT pages made for it are returned to the host. If
    /// [`Error::Seam`] comes from TDH.MR.EXTEND, the page's address has been measured all the same, and the TD can no
    /// longer get its intended measurement.
    pub fn add<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        gpa: Gpa,
        source: Hpa,
        is_measured: bool,
    ) -> Result<(), Error> {
        let mut until = gpa.0;
        let added = self.change(cpu, &NoneRuns, |op| {
            let tdr = op.live.tdr();
            if op.live.is_finalized() {
                return Err(Error::Finalized);
            }
            op.map_4k(gpa, |page| {
                let added = cpu.tdh.mem_page_add(tdr, gpa, page, source);
                added.map(Leaf::Mapped)
            })?;
            until += PAGE_4K;
            if is_measured {
                for chunk in chunks(gpa) {
                    cpu.tdh.mr_extend(tdr, chunk)?;
                }
            }
            Ok(())
        });
        self.or_undone(cpu, gpa.0..until, added)
    }

    /// Maps all of `range`, which is free, for the guest to accept: 2 MiB at a time where it fits and a frame of that
    /// size is available, 4 KiB elsewhere. No vCPU of the TD runs.
    ///
    /// # Errors
    /// [`Error`]; the pages mapped so far are returned to the host. If the module refuses that too, they stay in the
    /// map.
    pub fn populate<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        range: Range<u64>,
    ) -> Result<Given, Error> {
        if !range.start.is_multiple_of(PAGE_4K) || !range.end.is_multiple_of(PAGE_4K) {
            return Err(Error::BadRange);
        }
        let mut given = Given::default();
        let mut at = range.start;
        while at < range.end {
            let fits = at.is_multiple_of(PAGE_2M) && range.end - at >= PAGE_2M;
            let size = if fits {
                PageSize::Size2M
            } else {
                PageSize::Size4K
            };
            let mapped = match self.map(cpu, Gpa(at), size) {
                Err(Error::NoFrames(PageSize::Size2M)) => self
                    .map(cpu, Gpa(at), PageSize::Size4K)
                    .map(|()| PageSize::Size4K),
                other => other.map(|()| size),
            };
            match mapped {
                Ok(size) => {
                    given.pages[size as usize] += 1;
                    at += size.bytes();
                }
                // This call has mapped nothing at `at`.
                Err(error) => return self.or_undone(cpu, range.start..at, Err(error)),
            }
        }
        Ok(given)
    }

    /// Maps one page of `size` at `gpa` for the guest to accept.
    ///
    /// # Errors
    /// [`Error`]; the frame is freed. S-EPT pages linked for it stay for the next try.
    pub fn map<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        gpa: Gpa,
        size: PageSize,
    ) -> Result<(), Error> {
        if !is_aligned(gpa, size) {
            return Err(Error::BadRange);
        }
        self.change(cpu, &NoneRuns, |op| {
            let aug = |page| {
                let augmented = cpu.tdh.mem_page_aug(op.live.tdr(), gpa, page);
                augmented.map(Leaf::Pending)
            };
            match size {
                PageSize::Size4K => op.map_4k(gpa, aug),
                PageSize::Size2M => op.map_2m(gpa, aug),
                // TDH.MEM.PAGE.AUG takes at most 2 MiB; larger pages are made by TDH.MEM.PAGE.PROMOTE.
                PageSize::Size1G => Err(Error::BadRange),
            }
        })
    }

    /// If `result` is an error, removes the pages mapped in `range`, and the tables linked for the page after it.
    fn or_undone<R, C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        range: Range<u64>,
        result: Result<R, Error>,
    ) -> Result<R, Error> {
        if result.is_err() {
            // The original error is returned. Pages that could not be removed stay in the map.
            let until = range.end + 1;
            _ = self.remove_and_tidy(cpu, Request { range, until }, &NoneRuns, &|| true);
        }
        result
    }
}

impl<C: SeamCall, W: Wait, P: Pool> Op<'_, C, W, P> {
    fn map_4k(
        &self,
        gpa: Gpa,
        call: impl FnOnce(Page<Clean>) -> Handover<Leaf, Page<Clean>>,
    ) -> Result<(), Error> {
        if !is_aligned(gpa, PageSize::Size4K) {
            return Err(Error::BadRange);
        }
        self.link_table(gpa)?;
        let place = self.map.mirror.in_linked(gpa, |directory| {
            let table = directory.table(index(gpa, PAGE_2M)).ok_or(Error::Busy)?;
            let at = index(gpa, PAGE_4K);
            table.claim_free(at).map(|()| table.place_of(at))
        })??;
        match self.hand_over(PageSize::Size4K, place, call) {
            Ok(leaf) => {
                if self.map.mirror.put_page(gpa, Some(leaf)) && self.live.is_finalized() {
                    self.map.note_joinable(gpa);
                }
                Ok(())
            }
            Err(error) => {
                self.map.mirror.put_page(gpa, None);
                Err(error)
            }
        }
    }

    fn map_2m(
        &self,
        gpa: Gpa,
        call: impl FnOnce(Page<Clean>) -> Handover<Leaf, Page<Clean>>,
    ) -> Result<(), Error> {
        self.link_directory(gpa)?;
        self.map.mirror.in_linked(gpa, |directory| {
            let at = index(gpa, PAGE_2M);
            match directory.entry(at) {
                Entry::Free => directory.claim(at).map(drop),
                Entry::Claimed => Err(Error::Busy),
                Entry::BlockedTable { .. } => Err(Error::Blocked),
                Entry::Leaf(_) | Entry::Table(_) => Err(Error::Occupied),
            }
        })??;
        match self.hand_over(PageSize::Size2M, None, call) {
            Ok(leaf) => {
                self.map.mirror.put_block(gpa, Entry::Leaf(leaf));
                Ok(())
            }
            Err(error) => {
                self.map.mirror.put_block(gpa, Entry::Free);
                Err(error)
            }
        }
    }

    /// Takes a frame, the one at `place` if available, and gives it to the TD by `call`. It is freed when the module
    /// refuses.
    fn hand_over(
        &self,
        size: PageSize,
        place: Option<Hpa>,
        call: impl FnOnce(Page<Clean>) -> Handover<Leaf, Page<Clean>>,
    ) -> Result<Leaf, Error> {
        let frame = match place.and_then(|place| self.cpu.pool.take_at(place, size)) {
            Some(frame) => frame,
            None => self.take_frame(size)?,
        };
        match call(frame) {
            Ok(leaf) => {
                self.map.stock.add_page(size);
                Ok(leaf)
            }
            Err(Rejected { error, given }) => {
                self.cpu.pool.give(core::iter::once(given));
                Err(error.into())
            }
        }
    }
}

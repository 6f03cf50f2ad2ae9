//! TDH.MEM.PAGE.*, TDH.MEM.RANGE.*, TDH.MEM.TRACK, TDH.MEM.RD: a TD's private pages.

use super::phymem::wrong_page;
use super::td::{Keyed, Tdr};
use super::{Tdh, rcx, rcx_rdx};
use crate::abi::{GpaLevel, Gprs, Leaf, NULL_PA, PAGE_MASK, PageSize, Status};
use crate::address::{Gpa, Hpa, Level};
use crate::call::SeamCall;
use crate::error::{Cause, Error, Handover, Rejected};
use crate::page::{Cached, Clean, Donated, Page, Run};
use crate::retry::Wait;

/// The result of TDH.MEM.RANGE.BLOCK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeBlock {
    /// The range is now blocked. Tracking starts here.
    Blocked,
    /// The range was already blocked.
    Already,
}

/// The result of TDH.MEM.PAGE.DEMOTE.
#[derive(Debug)]
#[must_use = "it owns pages"]
pub struct Demoted {
    /// The 512 pages of the former large page.
    pub pages: Run<Donated>,
    /// The S-EPT page that maps them.
    pub sept: Page<Donated>,
}

/// The result of TDH.MEM.PAGE.PROMOTE.
#[derive(Debug)]
#[must_use = "it owns pages"]
pub struct Promoted {
    /// The large page.
    pub page: Page<Donated>,
    /// The S-EPT page that mapped the small pages.
    pub sept: Page<Cached>,
}

/// The result of TDH.MEM.PAGE.RELOCATE.
#[derive(Debug)]
#[must_use = "it owns pages"]
pub struct Relocated {
    /// The page that is now mapped.
    pub new: Page<Donated>,
    /// The page that was mapped before.
    pub old: Page<Cached>,
}

/// Returns the operands of TDH.MEM.PAGE.DEMOTE without a pair of PAMT pages, which only a dynamic PAMT needs.
pub(super) fn demote_operands(
    tdr: &Tdr<Keyed>,
    gpa: Gpa,
    page: &Page<Donated>,
    sept: &Page<Clean>,
) -> Gprs {
    Gprs {
        r8: sept.hpa().0,
        r9: NULL_PA,
        r10: NULL_PA,
        r11: NULL_PA,
        ..rcx_rdx(at(gpa, page.size().into()), tdr.hpa().0)
    }
}

/// Returns the error for pages that are not a run of 512.
pub(super) const fn no_run() -> Error {
    let cause = Cause::Status(Status::EPT_INVALID_PROMOTE_CONDITIONS);
    Error::new(Leaf::MemPagePromote, cause, [0; 5])
}

/// Returns the pages that were joined to `page`, which the module refused.
pub(super) fn parts_of(page: Page<Donated>) -> Run<Donated> {
    page.split().unwrap_or_else(Run::from)
}

pub(super) fn at(gpa: Gpa, level: Level) -> u64 {
    GpaLevel::new(gpa.0, level as u8).0
}

impl<C: SeamCall, W: Wait> Tdh<'_, C, W> {
    /// TDH.MEM.PAGE.ADD: maps a 4 KiB page at `gpa` with a copy of the host page at `source`, and measures its address.
    /// Only before the TD is finalised.
    ///
    /// # Errors
    /// EPT_WALK_FAILED if an S-EPT table is missing; EPT_ENTRY_STATE_INCORRECT if a page is already mapped.
    pub fn mem_page_add(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        page: Page<Clean>,
        source: Hpa,
    ) -> Handover<Page<Donated>, Page<Clean>> {
        let operands = Gprs {
            r8: page.hpa().0,
            r9: source.0,
            ..rcx_rdx(at(gpa, page.size().into()), tdr.hpa().0)
        };
        match self.run(Leaf::MemPageAdd, operands) {
            Ok(_) => Ok(page.turn(Donated)),
            Err(error) => Err(Rejected::new(error, page)),
        }
    }

    /// TDH.MEM.PAGE.AUG: maps a 4 KiB or 2 MiB page at `gpa`, for the guest to accept.
    ///
    /// # Errors
    /// EPT_WALK_FAILED if an S-EPT table is missing; EPT_ENTRY_STATE_INCORRECT if something is already mapped.
    pub fn mem_page_aug(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        page: Page<Clean>,
    ) -> Handover<Page<Donated>, Page<Clean>> {
        let operands = Gprs {
            r8: page.hpa().0,
            ..rcx_rdx(at(gpa, page.size().into()), tdr.hpa().0)
        };
        match self.run(Leaf::MemPageAug, operands) {
            Ok(_) => Ok(page.turn(Donated)),
            Err(error) => Err(Rejected::new(error, page)),
        }
    }

    /// TDH.MEM.PAGE.REMOVE: unmaps `page` at `gpa`. If the TD is finalised, the page must be blocked and tracked.
    ///
    /// # Errors
    /// GPA_RANGE_NOT_BLOCKED, TLB_TRACKING_NOT_DONE if an earlier step is missing.
    pub fn mem_page_remove(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        page: Page<Donated>,
    ) -> Handover<Page<Cached>, Page<Donated>> {
        let operands = rcx_rdx(at(gpa, page.size().into()), tdr.hpa().0);
        self.take_back(Leaf::MemPageRemove, operands, tdr, page)
    }

    /// TDH.MEM.PAGE.RELOCATE: moves the 4 KiB page at `gpa` from `old` to `new`, with its content. If the TD is
    /// finalised, the page must be blocked and tracked.
    ///
    /// # Errors
    /// As [`Self::mem_page_remove`].
    pub fn mem_page_relocate(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        old: Page<Donated>,
        new: Page<Clean>,
    ) -> Handover<Relocated, (Page<Donated>, Page<Clean>)> {
        let operands = Gprs {
            r8: new.hpa().0,
            ..rcx_rdx(at(gpa, old.size().into()), tdr.hpa().0)
        };
        match self.take_back(Leaf::MemPageRelocate, operands, tdr, old) {
            Ok(old) => Ok(Relocated {
                new: new.turn(Donated),
                old,
            }),
            Err(Rejected { error, given }) => Err(Rejected::new(error, (given, new))),
        }
    }

    /// TDH.MEM.PAGE.DEMOTE: splits the large `page` at `gpa` into 512 unblocked pages, mapped by `sept`. If the TD is
    /// finalised, the page must be blocked and tracked. An interrupt stops the call with nothing done, and it is
    /// repeated.
    ///
    /// # Errors
    /// As [`Self::mem_page_remove`].
    pub fn mem_page_demote(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        page: Page<Donated>,
        sept: Page<Clean>,
    ) -> Handover<Demoted, (Page<Donated>, Page<Clean>)> {
        let operands = demote_operands(tdr, gpa, &page, &sept);
        match self.split_page(operands, page) {
            Ok(pages) => Ok(Demoted {
                pages,
                sept: sept.turn(Donated),
            }),
            Err(Rejected { error, given }) => Err(Rejected::new(error, (given, sept))),
        }
    }

    /// Calls TDH.MEM.PAGE.DEMOTE for `page`.
    pub(super) fn split_page(
        &self,
        operands: Gprs,
        page: Page<Donated>,
    ) -> Handover<Run<Donated>, Page<Donated>> {
        let leaf = Leaf::MemPageDemote;
        if let Err(error) = self.run(leaf, operands) {
            return Err(Rejected::new(error, page));
        }
        // The module refuses the level of a 4 KiB page, so `split` does not fail here.
        page.split()
            .map_err(|page| Rejected::new(wrong_page(leaf, page.hpa(), page.hpa()), page))
    }

    /// TDH.MEM.PAGE.PROMOTE: joins the 512 pages at `gpa`, mapped by `sept`, into one. If the TD is finalised, the
    /// range must be blocked and tracked. An interrupt stops the call with nothing done, and it is repeated.
    ///
    /// # Errors
    /// EPT_INVALID_PROMOTE_CONDITIONS if the pages are not all in the same state; the errors of
    /// [`Self::mem_page_remove`]. EPT_INVALID_PROMOTE_CONDITIONS is also returned, without a call, if `pages` is not a
    /// run of 512.
    pub fn mem_page_promote(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        pages: Run<Donated>,
        sept: Page<Donated>,
    ) -> Handover<Promoted, (Run<Donated>, Page<Donated>)> {
        let leaf = Leaf::MemPagePromote;
        let page = match pages.join() {
            Ok(page) => page,
            Err(pages) => return Err(Rejected::new(no_run(), (pages, sept))),
        };
        let operands = rcx_rdx(at(gpa, page.size().into()), tdr.hpa().0);
        match self.take_back(leaf, operands, tdr, sept) {
            Ok(sept) => Ok(Promoted { page, sept }),
            Err(Rejected { error, given }) => Err(Rejected::new(error, (parts_of(page), given))),
        }
    }

    /// TDH.MEM.RANGE.BLOCK: blocks the range that the entry of `level` at `gpa` maps. No CPU can start to use it from
    /// now on; [`Self::mem_track`] and an exit of every vCPU ensure that none still does.
    ///
    /// # Errors
    /// EPT_ENTRY_STATE_INCORRECT if nothing is mapped; OPERAND_BUSY on SEPT_TREE if another CPU works on the S-EPT.
    pub fn mem_range_block(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        level: Level,
    ) -> Result<RangeBlock, Error> {
        let operands = rcx_rdx(at(gpa, level), tdr.hpa().0);
        let done = self.run(Leaf::MemRangeBlock, operands)?;
        if done.status.code() == Status::GPA_RANGE_ALREADY_BLOCKED {
            Ok(RangeBlock::Already)
        } else {
            Ok(RangeBlock::Blocked)
        }
    }

    /// TDH.MEM.RANGE.UNBLOCK: unblocks a range after tracking.
    ///
    /// # Errors
    /// EPT_ENTRY_STATE_INCORRECT if the range is not blocked; TLB_TRACKING_NOT_DONE.
    pub fn mem_range_unblock(&self, tdr: &Tdr<Keyed>, gpa: Gpa, level: Level) -> Result<(), Error> {
        self.run(Leaf::MemRangeUnblock, rcx_rdx(at(gpa, level), tdr.hpa().0))?;
        Ok(())
    }

    /// TDH.MEM.TRACK: starts the TD's next TLB epoch. A range blocked before it is tracked as soon as every vCPU that
    /// was in the guest has left it.
    ///
    /// # Errors
    /// PREVIOUS_TLB_EPOCH_BUSY if a vCPU has been in the guest since before the last call; it must exit first.
    pub fn mem_track(&self, tdr: &Tdr<Keyed>) -> Result<(), Error> {
        self.run(Leaf::MemTrack, rcx(tdr.hpa().0))?;
        Ok(())
    }

    /// TDH.MEM.RD: reads 8 bytes of the memory of a debuggable TD, at a multiple of 8.
    ///
    /// # Errors
    /// TD_NON_DEBUG.
    pub fn mem_rd(&self, tdr: &Tdr<Keyed>, gpa: Gpa) -> Result<u64, Error> {
        let done = self.run(Leaf::MemRd, rcx_rdx(gpa.0, tdr.hpa().0))?;
        Ok(done.regs.r8)
    }

    /// Calls a leaf that returns `page` to the host and reports its address in RCX.
    pub(super) fn take_back(
        &self,
        leaf: Leaf,
        operands: Gprs,
        tdr: &Tdr<Keyed>,
        page: Page<Donated>,
    ) -> Handover<Page<Cached>, Page<Donated>> {
        let told = match self.run(leaf, operands) {
            Ok(done) => Hpa(done.regs.rcx & PAGE_MASK),
            Err(error) => return Err(Rejected::new(error, page)),
        };
        if told != page.hpa() {
            return Err(Rejected::new(wrong_page(leaf, page.hpa(), told), page));
        }
        Ok(page.returned(tdr.hkid()))
    }
}

const _: () = assert!(PageSize::Size2M as u8 == Level::Pd as u8);

//! TDH.MEM.PAGE.*, TDH.MEM.RANGE.*, TDH.MEM.TRACK, TDH.MEM.RD: a TD's private pages.

use super::phymem::wrong_page;
use super::td::{Keyed, Tdr};
use super::{Tdh, rcx, rcx_rdx};
use crate::abi::{GpaLevel, Gprs, Leaf, NULL_PA, PAGE_MASK, PageSize, Status};
use crate::address::{Gpa, Hpa, Level};
use crate::call::SeamCall;
use crate::error::{Error, Handover, Rejected};
use crate::page::{Cached, Clean, Donated, Page, Run};
use crate::retry::Wait;

/// What TDH.MEM.RANGE.BLOCK found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeBlock {
    /// The range is now blocked, and is tracked from here on.
    Blocked,
    /// It was blocked before.
    Already,
}

/// What a large page became by TDH.MEM.PAGE.DEMOTE.
#[derive(Debug)]
#[must_use = "it owns pages"]
pub struct Demoted {
    /// The 512 pages that it was.
    pub pages: Run<Donated>,
    /// The page of the S-EPT that maps them.
    pub sept: Page<Donated>,
}

/// What 512 pages became by TDH.MEM.PAGE.PROMOTE.
#[derive(Debug)]
#[must_use = "it owns pages"]
pub struct Promoted {
    /// The large page.
    pub page: Page<Donated>,
    /// The page of the S-EPT that mapped them.
    pub sept: Page<Cached>,
}

/// What TDH.MEM.PAGE.RELOCATE gave.
#[derive(Debug)]
#[must_use = "it owns pages"]
pub struct Relocated {
    /// The page that is mapped now.
    pub new: Page<Donated>,
    /// The page that was.
    pub old: Page<Cached>,
}

pub(super) fn at(gpa: Gpa, level: Level) -> u64 {
    GpaLevel::new(gpa.0, level as u8).0
}

impl<C: SeamCall, W: Wait> Tdh<'_, C, W> {
    /// TDH.MEM.PAGE.ADD: maps the 4 KiB page at `gpa`, with a copy of the host's page at `source`, and measures its address.
    /// Until the TD is finalised.
    ///
    /// # Errors
    /// EPT_WALK_FAILED when the S-EPT does not reach there; EPT_ENTRY_STATE_INCORRECT when a page is mapped already.
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

    /// TDH.MEM.PAGE.AUG: maps a page of 4 KiB or 2 MiB at `gpa`, for the guest to accept.
    ///
    /// # Errors
    /// EPT_WALK_FAILED when the S-EPT does not reach there; EPT_ENTRY_STATE_INCORRECT when something is mapped already.
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

    /// TDH.MEM.PAGE.REMOVE: unmaps `page`, which is at `gpa`, blocked and tracked if the TD was finalised.
    ///
    /// # Errors
    /// GPA_RANGE_NOT_BLOCKED, TLB_TRACKING_NOT_DONE when a step before it is missing.
    pub fn mem_page_remove(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        page: Page<Donated>,
    ) -> Handover<Page<Cached>, Page<Donated>> {
        let operands = rcx_rdx(at(gpa, page.size().into()), tdr.hpa().0);
        self.take_back(Leaf::MemPageRemove, operands, tdr, page)
    }

    /// TDH.MEM.PAGE.RELOCATE: moves the 4 KiB page at `gpa`, blocked and tracked if the TD was finalised, from `old` to
    /// `new`, which holds the content in clear afterwards as the old one did.
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

    /// TDH.MEM.PAGE.DEMOTE: splits the large `page` at `gpa`, blocked and tracked if the TD was finalised, into 512 which
    /// `sept` maps, unblocked. An interrupt stops it with nothing done, and it is called again.
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
        let operands = Gprs {
            r8: sept.hpa().0,
            r9: NULL_PA,
            r10: NULL_PA,
            r11: NULL_PA,
            ..rcx_rdx(at(gpa, page.size().into()), tdr.hpa().0)
        };
        match self.run(Leaf::MemPageDemote, operands) {
            // A page of 4 KiB never gets here: the module refuses its level.
            Ok(_) => match page.split() {
                Ok(pages) => Ok(Demoted {
                    pages,
                    sept: sept.turn(Donated),
                }),
                Err(page) => {
                    let error = wrong_page(Leaf::MemPageDemote, page.hpa(), page.hpa());
                    Err(Rejected::new(error, (page, sept)))
                }
            },
            Err(error) => Err(Rejected::new(error, (page, sept))),
        }
    }

    /// TDH.MEM.PAGE.PROMOTE: makes one page of the 512 at `gpa`, which `sept` maps; the range is blocked and tracked if the TD
    /// was finalised. An interrupt stops it with nothing done, and it is called again.
    ///
    /// # Errors
    /// EPT_INVALID_PROMOTE_CONDITIONS when they are not all in the same state; and as [`Self::mem_page_remove`]. Pages that
    /// are no run of 512 are not worth a call: that is EPT_INVALID_PROMOTE_CONDITIONS too, from here.
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
            Err(pages) => {
                let status = Status::EPT_INVALID_PROMOTE_CONDITIONS;
                let cause = crate::error::Cause::Status(status);
                let error = Error::new(leaf, cause, [0; 5]);
                return Err(Rejected::new(error, (pages, sept)));
            }
        };
        let operands = rcx_rdx(at(gpa, page.size().into()), tdr.hpa().0);
        match self.take_back(leaf, operands, tdr, sept) {
            Ok(sept) => Ok(Promoted { page, sept }),
            Err(Rejected { error, given }) => {
                let pages = match page.split() {
                    Ok(pages) => pages,
                    Err(page) => page.into(),
                };
                Err(Rejected::new(error, (pages, given)))
            }
        }
    }

    /// TDH.MEM.RANGE.BLOCK: blocks what the entry of `level` at `gpa` maps. No CPU can start to use it from then on;
    /// [`Self::mem_track`] and an exit of every vCPU make sure that none still does.
    ///
    /// # Errors
    /// EPT_ENTRY_STATE_INCORRECT when nothing is mapped; OPERAND_BUSY on SEPT_TREE when another CPU works on the S-EPT.
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

    /// TDH.MEM.RANGE.UNBLOCK: takes a block back, after tracking.
    ///
    /// # Errors
    /// EPT_ENTRY_STATE_INCORRECT when the range is not blocked; TLB_TRACKING_NOT_DONE.
    pub fn mem_range_unblock(&self, tdr: &Tdr<Keyed>, gpa: Gpa, level: Level) -> Result<(), Error> {
        self.run(Leaf::MemRangeUnblock, rcx_rdx(at(gpa, level), tdr.hpa().0))?;
        Ok(())
    }

    /// TDH.MEM.TRACK: starts the TD's next TLB epoch. What was blocked before it is tracked as soon as every vCPU
    /// that was in the guest has left it.
    ///
    /// # Errors
    /// PREVIOUS_TLB_EPOCH_BUSY when a vCPU is in the guest since before the last time; it must leave first.
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

    /// Calls a leaf that gives `page` back and says so in RCX.
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

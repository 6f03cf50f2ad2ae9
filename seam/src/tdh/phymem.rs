//! TDH.PHYMEM.*: physical pages and caches, and the return of pages when a TD ends.

use super::resume::PageWriteBack;
use super::td::{Keyless, Tdr};
use super::{Tdh, rcx};
use crate::abi::{Gprs, Leaf, PAGE_MASK, PageSize, PageType, Status};
use crate::address::{Hpa, KeyIdPosition};
use crate::call::SeamCall;
use crate::error::{Cause, Error, Handover, Rejected};
use crate::page::{Cached, Dirty, Donated, Page, Run};
use crate::retry::Wait;

/// The PAMT's information about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageMetadata {
    /// Type of the page; `None` for a type that module 1.5 does not have.
    pub page_type: Option<PageType>,
    /// TDR of the TD that owns the page. A free page still has its last owner.
    pub owner: Hpa,
    /// Size of the page; `None` for an undefined code.
    pub size: Option<PageSize>,
    /// TLB epoch of the TD when the page was last blocked.
    pub blocked_epoch: u64,
    /// The pages with the entries of the smaller pages, if this is a range of 2 MiB of a dynamic PAMT that has them.
    pub pair: Option<[Hpa; 2]>,
}

impl PageMetadata {
    /// Decodes the registers of TDH.PHYMEM.PAGE.RDMD.
    pub(super) fn of(regs: &Gprs) -> Self {
        const NON_LEAF: u64 = 1 << 63;
        let is_split = regs.rcx & NON_LEAF != 0;
        Self {
            page_type: PageType::from_number(regs.rcx as u8),
            owner: Hpa(regs.rdx),
            size: PageSize::from_level(regs.r8 as u8),
            blocked_epoch: regs.r9,
            pair: is_split.then_some([Hpa(regs.r10), Hpa(regs.r11)]),
        }
    }
}

/// A page that TDH.PHYMEM.PAGE.RECLAIM refused, as the module has it in its own books.
#[derive(Debug)]
pub enum Reconsidered {
    /// Nobody's: the module released it before.
    Free(Page<Dirty>),
    /// Smaller pages, some of which the TD still owns or owned last.
    Parts(Run<Donated>),
    /// As in the host's books, or not the TD's, or the module does not say.
    Kept(Page<Donated>),
}

/// The start mode of TDH.PHYMEM.CACHE.WB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheWbStart {
    /// Starts a new write-back, for all HKIDs that need it now.
    New,
    /// Resumes the interrupted write-back of this package.
    Resume,
}

/// The result of TDH.PHYMEM.CACHE.WB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheWb {
    /// The package's caches hold no line of the HKIDs that needed the write-back when it started.
    Done,
    /// No HKID needed a write-back.
    NothingToDo,
    /// An interrupt is pending on this CPU: serve it and resume.
    Interrupted,
}

impl<C: SeamCall, W: Wait> Tdh<'_, C, W> {
    /// TDH.PHYMEM.PAGE.RDMD: reads the PAMT's information about the 4 KiB page at `hpa`.
    ///
    /// # Errors
    /// OPERAND_ADDR_RANGE_ERROR if the page is in no TDMR.
    pub fn phymem_page_rdmd(&self, hpa: Hpa) -> Result<PageMetadata, Error> {
        let regs = self.run(Leaf::PhymemPageRdmd, rcx(hpa.0))?.regs;
        Ok(PageMetadata::of(&regs))
    }

    /// TDH.PHYMEM.PAGE.RECLAIM: reclaims a page of any type from a TD without a key. [`Self::phymem_page_reclaim_tdr`]
    /// reclaims the root page.
    ///
    /// # Errors
    /// [`Cause::WrongPage`] if the page belonged to another TD; [`Cause::WrongSize`] if only a part of it was released.
    /// [`Self::phymem_page_reconsider`] finds out what the module makes of a page that it refused.
    pub fn phymem_page_reclaim(
        &self,
        tdr: &Tdr<Keyless>,
        page: Page<Donated>,
    ) -> Handover<Page<Dirty>, Page<Donated>> {
        let leaf = Leaf::PhymemPageReclaim;
        let regs = match self.run(leaf, rcx(page.hpa().0)) {
            Ok(done) => done.regs,
            Err(error) => return Err(Rejected::new(error, page)),
        };
        let owner = Hpa(regs.rdx & PAGE_MASK);
        if owner != tdr.hpa() {
            return Err(Rejected::new(wrong_page(leaf, tdr.hpa(), owner), page));
        }
        let (expected, told) = (page.size(), PageSize::from_level(regs.r8 as u8));
        if told < Some(expected) {
            let cause = Cause::WrongSize { expected, told };
            return Err(Rejected::new(Error::new(leaf, cause, [0; 5]), page));
        }
        Ok(page.turn(Dirty))
    }

    /// Asks the module (TDH.PHYMEM.PAGE.RDMD) about a page that it refused to reclaim as the host has it in its books.
    /// The TD without a key proves that no cache holds a line of a page that the module released before.
    pub fn phymem_page_reconsider(&self, tdr: &Tdr<Keyless>, page: Page<Donated>) -> Reconsidered {
        let Ok(found) = self.phymem_page_rdmd(page.hpa()) else {
            return Reconsidered::Kept(page);
        };
        if found.owner != tdr.hpa() {
            return Reconsidered::Kept(page);
        }
        let is_free = found.page_type == Some(PageType::Nda);
        if is_free && page.size() == PageSize::Size4K {
            return Reconsidered::Free(page.turn(Dirty));
        }
        if is_free || found.size.is_some_and(|size| size < page.size()) {
            return page
                .split()
                .map_or_else(Reconsidered::Kept, Reconsidered::Parts);
        }
        Reconsidered::Kept(page)
    }

    /// TDH.PHYMEM.PAGE.RECLAIM of a TD's root page, the last one. The module used it under its own key `global_hkid`,
    /// which stays in use, so caches may hold lines of it.
    ///
    /// # Errors
    /// TD_ASSOCIATED_PAGES_EXIST if the TD has other pages left.
    pub fn phymem_page_reclaim_tdr(
        &self,
        tdr: Tdr<Keyless>,
        global_hkid: u16,
    ) -> Handover<Page<Cached>, Tdr<Keyless>> {
        match self.run(Leaf::PhymemPageReclaim, rcx(tdr.hpa().0)) {
            Ok(_) => Ok(tdr.page.returned(global_hkid)),
            Err(error) => Err(Rejected::new(error, tdr)),
        }
    }

    /// TDH.PHYMEM.PAGE.WBINVD: writes back a page's cache lines under the key that it was used with. A page larger than
    /// 4 KiB takes one call per 4 KiB; [`PageWriteBack`] returns control between them.
    ///
    /// # Errors
    /// PAGE_METADATA_INCORRECT if the page belongs to a TD.
    pub fn phymem_page_wbinvd(
        &self,
        page: Page<Cached>,
        position: KeyIdPosition,
    ) -> Handover<Page<Dirty>, Page<Cached>> {
        let mut work = PageWriteBack::new(page);
        loop {
            if let Err(error) = work.step(self, position) {
                return Err(Rejected::new(error, work.into_page()));
            }
            work = match work.finish() {
                Ok(page) => return Ok(page),
                Err(work) => work,
            };
        }
    }

    pub(super) fn write_back_4k(
        &self,
        hpa: Hpa,
        hkid: u16,
        position: KeyIdPosition,
    ) -> Result<(), Error> {
        let operands = rcx(position.keyed(hpa, hkid));
        self.run(Leaf::PhymemPageWbinvd, operands)?;
        Ok(())
    }

    /// TDH.PHYMEM.CACHE.WB: writes back the caches of the calling CPU's package for the HKIDs of all blocked TDs.
    /// [`super::resume::CacheWbRound`] calls it until it is done.
    ///
    /// # Errors
    /// OPERAND_BUSY on WBCACHE if another CPU of the package executes it; WBCACHE_RESUME_ERROR if nothing was
    /// interrupted.
    pub fn phymem_cache_wb(&self, start: CacheWbStart) -> Result<CacheWb, Error> {
        let operands = rcx(u64::from(start == CacheWbStart::Resume));
        match self.run(Leaf::PhymemCacheWb, operands) {
            Ok(done) if done.status.code() == Status::NO_HKID_READY_TO_WBCACHE => {
                Ok(CacheWb::NothingToDo)
            }
            Ok(_) => Ok(CacheWb::Done),
            Err(error) if error.is(Status::INTERRUPTED_RESUMABLE) => Ok(CacheWb::Interrupted),
            Err(error) => Err(error),
        }
    }
}

/// Returns the error for a call in which the module worked on `told` where the host meant `expected`.
pub(super) const fn wrong_page(leaf: Leaf, expected: Hpa, told: Hpa) -> Error {
    Error::new(leaf, Cause::WrongPage { expected, told }, [0; 5])
}

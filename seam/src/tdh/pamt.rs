//! Dynamic PAMTs: TDH.PHYMEM.PAMT.ADD and REMOVE, and the operands of other leafs that only a dynamic PAMT gives a
//! meaning.
//!
//! In a dynamic PAMT the entries of the 4 KiB pages of a range of 2 MiB are in two pages, its pair, which the host adds
//! before it gives the module a 4 KiB page of the range. A module with DYNAMIC_PAMT keeps one if
//! [`Tdh::sys_config_with_dynamic_pamt`] asked for it; otherwise each leaf here is refused.

use super::phymem::wrong_page;
use super::td::{Keyed, Tdr};
use super::{PageMetadata, Tdh, mem, rcx, rcx_rdx};
use crate::abi::{GpaLevel, Gprs, Leaf, PAGE_MASK, PageSize};
use crate::address::{Gpa, Hpa};
use crate::call::SeamCall;
use crate::error::{Error, Handover, Rejected};
use crate::hkid::Hkid;
use crate::page::{Cached, Clean, Donated, Page, Run, State};
use crate::retry::Wait;

/// The pages with the entries of the 4 KiB pages of 2 MiB.
pub type PamtPair<S> = [Page<S>; 2];

/// The pages that a page of 2 MiB needs when it is split: its S-EPT page, and the pair of its range. After a join, they
/// are free again.
#[derive(Debug)]
#[must_use = "it owns pages"]
pub struct Tables<S: State> {
    /// The S-EPT page that maps the 512 pages.
    pub sept: Page<S>,
    /// Their PAMT entries.
    pub pamt: PamtPair<S>,
}

/// A page of 2 MiB that was split.
#[derive(Debug)]
#[must_use = "it owns pages"]
pub struct Split {
    /// The 512 pages.
    pub pages: Run<Donated>,
    /// The pages that they need.
    pub tables: Tables<Donated>,
}

/// A page of 2 MiB that was joined.
#[derive(Debug)]
#[must_use = "it owns pages"]
pub struct Joined {
    /// The page.
    pub page: Page<Donated>,
    /// The pages that are not needed any more.
    pub tables: Tables<Cached>,
}

impl<C: SeamCall, W: Wait> Tdh<'_, C, W> {
    /// TDH.SYS.CONFIG with the flag for dynamic PAMTs; otherwise as [`Self::sys_config`]. Each PAMT of 4 KiB pages is a
    /// bitmap with PAMT_PAGE_BITMAP_ENTRY_BITS for each page. Only for a module with DYNAMIC_PAMT: an older one ignores
    /// or refuses the flag.
    ///
    /// # Errors
    /// Those of [`Self::sys_config`]; OPERAND_INVALID on R8 if the HKIDs have too few bits.
    pub fn sys_config_with_dynamic_pamt(
        &self,
        list: Hpa,
        count: u64,
        global: &Hkid,
    ) -> Result<(), Error> {
        const DYNAMIC_PAMT: u64 = 1 << 16;
        self.configure(list, count, u64::from(global.number()) | DYNAMIC_PAMT)
    }

    /// TDH.PHYMEM.PAMT.ADD: gives the module the pair of the 2 MiB at `range`. The pair may lie in that range.
    ///
    /// # Errors
    /// OPERAND_INVALID on RAX without a dynamic PAMT; HPA_RANGE_NOT_FREE if the range has a pair or is in use as a whole;
    /// PAGE_NOT_FREE if a page of the pair is in use.
    pub fn phymem_pamt_add(
        &self,
        range: Hpa,
        pair: PamtPair<Clean>,
    ) -> Handover<PamtPair<Donated>, PamtPair<Clean>> {
        let [first, second] = addresses(&pair);
        let operands = Gprs {
            r8: second.0,
            ..rcx_rdx(range_2m(range), first.0)
        };
        match self.run(Leaf::PhymemPamtAdd, operands) {
            Ok(_) => Ok(pair.map(|page| page.turn(Donated))),
            Err(error) => Err(Rejected::new(error, pair)),
        }
    }

    /// TDH.PHYMEM.PAMT.REMOVE: takes the pair of the 2 MiB at `range` back. The module wrote it under its own key
    /// `global_hkid`, so caches may hold lines of it.
    ///
    /// # Errors
    /// NO_PAMT_PAGE_PAIR if the range has none; PAMT_PAGE_NOT_EMPTY if a 4 KiB page of the range is in use;
    /// [`crate::error::Cause::WrongPage`] if the pair was another.
    pub fn phymem_pamt_remove(
        &self,
        range: Hpa,
        pair: PamtPair<Donated>,
        global_hkid: u16,
    ) -> Handover<PamtPair<Cached>, PamtPair<Donated>> {
        let leaf = Leaf::PhymemPamtRemove;
        let told = match self.run(leaf, rcx(range_2m(range))) {
            Ok(done) => [Hpa(done.regs.rdx), Hpa(done.regs.r8)],
            Err(error) => return Err(Rejected::new(error, pair)),
        };
        match compare(leaf, &pair, told) {
            Ok(()) => Ok(pair.map(|page| page.returned(global_hkid))),
            Err(error) => Err(Rejected::new(error, pair)),
        }
    }

    /// TDH.PHYMEM.PAGE.RDMD of a page of at least this size at `hpa`. For a range of 2 MiB with a pair it returns
    /// [`PageMetadata::pair`].
    ///
    /// # Errors
    /// OPERAND_INVALID on RCX for another size than 4 KiB without a dynamic PAMT; the errors of
    /// [`Self::phymem_page_rdmd`].
    pub fn phymem_page_rdmd_of(&self, hpa: Hpa, size: PageSize) -> Result<PageMetadata, Error> {
        let regs = self
            .run(Leaf::PhymemPageRdmd, rcx(hpa.0 | size as u64))?
            .regs;
        Ok(PageMetadata::of(&regs))
    }

    /// TDH.MEM.PAGE.DEMOTE of a page of 2 MiB in a dynamic PAMT; otherwise as [`Self::mem_page_demote`].
    ///
    /// # Errors
    /// Those of [`Self::mem_page_demote`], and of [`Self::phymem_pamt_add`] on R12 and R13.
    pub fn mem_page_demote_with_pamt(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        page: Page<Donated>,
        tables: Tables<Clean>,
    ) -> Handover<Split, (Page<Donated>, Tables<Clean>)> {
        let [r12, r13] = addresses(&tables.pamt).map(|hpa| hpa.0);
        let operands = Gprs {
            r12,
            r13,
            ..mem::demote_operands(tdr, gpa, &page, &tables.sept)
        };
        match self.split_page(operands, page) {
            Ok(pages) => Ok(Split {
                pages,
                tables: Tables {
                    sept: tables.sept.turn(Donated),
                    pamt: tables.pamt.map(|page| page.turn(Donated)),
                },
            }),
            Err(Rejected { error, given }) => Err(Rejected::new(error, (given, tables))),
        }
    }

    /// TDH.MEM.PAGE.PROMOTE to a page of 2 MiB in a dynamic PAMT; otherwise as [`Self::mem_page_promote`]. The module
    /// wrote the pair under its own key `global_hkid`.
    ///
    /// # Errors
    /// Those of [`Self::mem_page_promote`]; [`crate::error::Cause::WrongPage`] if the pair was another.
    pub fn mem_page_promote_with_pamt(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        split: Split,
        global_hkid: u16,
    ) -> Handover<Joined, Split> {
        let leaf = Leaf::MemPagePromote;
        let Split { pages, tables } = split;
        let page = match pages.join() {
            Ok(page) => page,
            Err(pages) => return Err(Rejected::new(mem::no_run(), Split { pages, tables })),
        };
        let operands = rcx_rdx(mem::at(gpa, page.size().into()), tdr.hpa().0);
        let checked = self.run(leaf, operands).and_then(|done| {
            let regs = done.regs;
            let sept = Hpa(regs.rcx & PAGE_MASK);
            if sept != tables.sept.hpa() {
                return Err(wrong_page(leaf, tables.sept.hpa(), sept));
            }
            compare(leaf, &tables.pamt, [Hpa(regs.r12), Hpa(regs.r13)])
        });
        match checked {
            Ok(()) => Ok(Joined {
                page,
                tables: Tables {
                    sept: tables.sept.returned(tdr.hkid()),
                    pamt: tables.pamt.map(|page| page.returned(global_hkid)),
                },
            }),
            Err(error) => {
                let pages = mem::parts_of(page);
                Err(Rejected::new(error, Split { pages, tables }))
            }
        }
    }
}

/// Returns the operand for the 2 MiB at `range`.
const fn range_2m(range: Hpa) -> u64 {
    GpaLevel::new(range.0, PageSize::Size2M as u8).0
}

fn addresses<S: State>(pair: &PamtPair<S>) -> [Hpa; 2] {
    pair.each_ref().map(Page::hpa)
}

/// Checks that the module returned this pair.
///
/// # Errors
/// [`crate::error::Cause::WrongPage`].
fn compare(leaf: Leaf, pair: &PamtPair<Donated>, told: [Hpa; 2]) -> Result<(), Error> {
    let both = addresses(pair).into_iter().zip(told);
    match both
        .into_iter()
        .find(|(own, told)| own.0 != told.0 & PAGE_MASK)
    {
        Some((own, told)) => Err(wrong_page(leaf, own, told)),
        None => Ok(()),
    }
}

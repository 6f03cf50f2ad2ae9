//! Page ownership: updates the PAMT, and makes the machine block the host.
//!
//! A page is taken before its first private content and given back after its last. Between the two only the module and
//! the page's TD can reach it: the PAMT changes first, then the [`Machine`] enforces it.

use core::ops::Range;

use seam::abi::{PAGE_4K, PageType};

use crate::Machine;
use crate::call::Call;
use crate::pamt::{Entry, Held};
use crate::td::Tdr;
use crate::{hooks, pamt};

/// A page blocked from the host. Dropping it restores the page to the host, unless the call [keeps](Self::keep) it.
#[must_use]
pub struct Taken<'m, M: Machine> {
    cx: Call<'m, M>,
    entry: Entry<'m>,
    pages: Range<u64>,
    before: (PageType, u64),
}

impl<'m, M: Machine> Taken<'m, M> {
    /// Takes a page, whose PAMT entry is held exclusively, with this type and owner.
    pub fn take(cx: Call<'m, M>, page: &Held<'m>, page_type: PageType, owner: u64) -> Self {
        let entry = page.entry();
        let before = (entry.page_type(), entry.owner());
        entry.assign(page_type, owner);
        pamt::count_used(cx, &page.pages());
        cx.machine.guard(cx.lp, page.pages(), true);
        Self {
            cx,
            entry,
            pages: page.pages(),
            before,
        }
    }

    /// Makes the change permanent. The call can't fail from here on.
    pub fn keep(self) {
        core::mem::forget(self);
    }
}

impl<M: Machine> Drop for Taken<'_, M> {
    fn drop(&mut self) {
        let (page_type, owner) = self.before;
        self.entry.assign(page_type, owner);
        pamt::count_free(self.cx, &self.pages);
        self.cx.machine.guard(self.cx.lp, self.pages.clone(), false);
    }
}

/// Takes a page permanently, for a call that can't fail any more.
pub fn take<'m, M: Machine>(cx: Call<'m, M>, page: &Held<'m>, page_type: PageType, owner: u64) {
    Taken::take(cx, page, page_type, owner).keep();
}

/// Gives the pages of an entry, which is held exclusively, back to the host. `tdr` belongs to the TD that they leave.
/// Returns the flag [`pamt::REMOVABLE`] if it applies to the page.
pub fn give_back<M: Machine>(
    cx: Call<'_, M>,
    entry: Entry<'_>,
    pages: Range<u64>,
    tdr: &Tdr<'_>,
) -> u64 {
    if cx.module.hooks.patterns {
        let word = hooks::pattern(tdr.hkid());
        for pa in pages.clone().step_by(PAGE_4K as usize) {
            cx.machine.fill_page(pa, word);
        }
    }
    entry.set_type(PageType::Nda);
    let hint = pamt::count_free(cx, &pages);
    cx.machine.guard(cx.lp, pages, false);
    hint
}

/// Returns the range of the 4 KiB page at `pa`.
pub const fn page(pa: u64) -> Range<u64> {
    pa..pa + PAGE_4K
}

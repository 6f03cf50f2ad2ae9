//! Pages that the module refused to reclaim: put back for a later try, settled by the module's own books, or quarantined.

use seam::call::SeamCall;
use seam::error::{Cause, Rejected};
use seam::page::{Dirty, Donated, Page};
use seam::retry::{Reason, Wait};
use seam::tdh::Reconsidered;

use super::super::report::Refusal;
use super::{Context, Job, Origin, Work, count, directory, in_gib};
use crate::private::error::Error;
use crate::private::mirror::{Entry, Leaf};
use crate::private::pool::Pool;

impl Job {
    /// Handles a page that the module refused. If the module may release it later, it is put back. Otherwise the module
    /// is asked what it is, and the page is quarantined if that does not help. Returns a page that the module released
    /// before.
    pub(super) fn refused<C: SeamCall, W: Wait, P: Pool>(
        &mut self,
        context: &Context<'_, C, W, P>,
        origin: Origin,
        rejected: Rejected<Page<Donated>>,
    ) -> Option<Page<Dirty>> {
        let (error, page) = rejected.into_parts();
        // A part has left the mirror, so it cannot be put back there.
        let is_part = matches!(origin, Origin::Part);
        if may_come_later(error) && !is_part {
            self.left += 1;
            self.is_patient = false;
            context.shared.refusals.lock().leave(Refusal {
                hpa: page.hpa(),
                size: page.size(),
                why: error.into(),
            });
            self.put_back(context, origin, page);
            return None;
        }
        if may_come_later(error) || matches!(error.cause(), Cause::WrongPage { .. }) {
            self.put_away(context, origin, page, error.into());
            return None;
        }
        let (hpa, size) = (page.hpa(), page.size());
        match context.cpu.tdh.phymem_page_reconsider(context.tdr, page) {
            Reconsidered::Free(page) => Some(page),
            Reconsidered::Parts(parts) => {
                context.cpu.pool.split(hpa, size);
                count(&mut self.took, origin, size);
                self.parts.push(parts);
                None
            }
            Reconsidered::Kept(page) => {
                self.put_away(context, origin, page, error.into());
                None
            }
        }
    }

    /// Quarantines a page that the module will not release.
    pub(super) fn put_away<C, W, P: Pool>(
        &mut self,
        context: &Context<'_, C, W, P>,
        origin: Origin,
        page: Page<Donated>,
        why: Error,
    ) {
        let (hpa, size) = (page.hpa(), page.size());
        count(&mut self.took, origin, size);
        let refusals = &context.shared.refusals;
        refusals.lock().quarantine(Refusal { hpa, size, why });
        context.cpu.pool.quarantine(page);
    }

    /// Puts a page back where it was found.
    fn put_back<C, W, P: Pool>(
        &mut self,
        context: &Context<'_, C, W, P>,
        origin: Origin,
        page: Page<Donated>,
    ) {
        let Context { shared, map, .. } = *context;
        match origin {
            Origin::Gib(gib) => in_gib(map, gib, |entry| *entry = Entry::Leaf(Leaf::Mapped(page))),
            Origin::Block(gib, index) => in_gib(map, gib, |entry| {
                if let Some(directory) = directory(entry) {
                    directory.fill(index, Leaf::Mapped(page));
                }
            }),
            Origin::Page(index) => {
                if let Work::Small {
                    open: Some(open), ..
                } = &mut self.work
                {
                    open.table.put(index, Leaf::Mapped(page));
                }
            }
            Origin::Table => {
                if let Work::Small {
                    open: Some(open), ..
                } = &mut self.work
                {
                    open.table.sept = Some(page);
                }
            }
            Origin::Directory(gib) => in_gib(map, gib, |entry| {
                if let Some(directory) = directory(entry) {
                    directory.sept = Some(page);
                }
            }),
            Origin::Upper(number) => map.mirror.uppers.put_back(number, page),
            Origin::Control(number) => *shared.control[number].lock() = Some(page),
            Origin::Part => {
                // Unreachable: `refused` puts no part back.
                debug_assert!(false, "{page:?}");
                context.cpu.pool.quarantine(page);
            }
        }
    }
}

/// Returns whether the module may later release a page that it refused now.
fn may_come_later(error: seam::error::Error) -> bool {
    match error.cause() {
        Cause::Status(status) => Reason::of(status).is_some(),
        // No module answered.
        Cause::Fault(_) => true,
        Cause::WrongPage { .. } | Cause::WrongSize { .. } | Cause::NoProgress => false,
    }
}

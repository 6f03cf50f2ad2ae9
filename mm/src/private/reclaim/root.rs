//! The end of a reclaim: the TDR, which the module releases last.

use seam::abi::PageSize;
use seam::address::KeyIdPosition;
use seam::call::SeamCall;
use seam::error::Rejected;
use seam::page::{Cached, Page, State};
use seam::retry::Wait;
use seam::tdh::{Keyless, Tdr};

use super::report::{Reclaimed, Refusal, Refusals};
use crate::private::error::Error;
use crate::private::pool::Pool;
use crate::private::{Cpu, PrivateMap};
use sync::Mutex;

/// Progress of the TDR's reclaim.
#[derive(Debug)]
pub enum Root {
    /// The map holds it.
    InMap,
    /// It was taken from the map; the module still owns it.
    Asked(Tdr<Keyless>),
    /// The host owns it, but caches may hold its lines under the module's own key.
    Cached(Page<Cached>),
    /// It is back or in quarantine.
    Gone,
}

/// Context of the TDR's reclaim.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The module's own HKID.
    pub global_hkid: u16,
    pub keyid: KeyIdPosition,
    pub refusals: &'a Mutex<Refusals>,
    /// True once the module has shut down.
    pub is_written_off: bool,
}

impl Root {
    /// Reclaims the TDR: TDH.PHYMEM.PAGE.RECLAIM, TDH.PHYMEM.PAGE.WBINVD, clearing. If the module refuses for now, the
    /// TDR keeps its state; if it always will, the TDR goes to quarantine. Returns whether the TDR is gone.
    pub fn step<C: SeamCall, W: Wait, P: Pool>(
        &mut self,
        map: &PrivateMap,
        cpu: Cpu<'_, C, W, P>,
        way: Way<'_>,
        step: &mut Reclaimed,
    ) -> bool {
        loop {
            *self = match core::mem::replace(self, Self::Gone) {
                Self::InMap => match map.take_root() {
                    Ok(tdr) => Self::Asked(tdr),
                    Err(why) => {
                        log::error!("the root page of a dead TD: {why}");
                        *self = Self::InMap;
                        return false;
                    }
                },
                Self::Asked(tdr) if way.is_written_off => {
                    put_away(cpu, way, tdr.into_page(), Error::ShutDown);
                    return true;
                }
                Self::Cached(page) if way.is_written_off => {
                    put_away(cpu, way, page, Error::ShutDown);
                    return true;
                }
                // The module would only report that the TDR has children.
                Self::Asked(tdr) if way.refusals.lock().quarantined() > 0 => {
                    put_away(cpu, way, tdr.into_page(), Error::NotEmpty);
                    return true;
                }
                Self::Asked(tdr) => match cpu.tdh.phymem_page_reclaim_tdr(tdr, way.global_hkid) {
                    Ok(page) => Self::Cached(page),
                    Err(Rejected { error, given: tdr }) => {
                        way.refusals.lock().leave(Refusal {
                            hpa: tdr.hpa(),
                            size: PageSize::Size4K,
                            why: error.into(),
                        });
                        *self = Self::Asked(tdr);
                        return false;
                    }
                },
                Self::Cached(page) => match cpu.tdh.phymem_page_wbinvd(page, way.keyid) {
                    Ok(page) => {
                        step.control += 1;
                        step.cleared += page.size().bytes();
                        cpu.pool.give(core::iter::once(cpu.pool.clear(page)));
                        return true;
                    }
                    Err(Rejected { error, given }) => {
                        way.refusals.lock().leave(Refusal {
                            hpa: given.hpa(),
                            size: PageSize::Size4K,
                            why: error.into(),
                        });
                        *self = Self::Cached(given);
                        return false;
                    }
                },
                Self::Gone => return true,
            };
        }
    }
}

/// Quarantines the TDR.
fn put_away<C, W, P: Pool, S: State>(
    cpu: Cpu<'_, C, W, P>,
    way: Way<'_>,
    page: Page<S>,
    why: Error,
) {
    way.refusals.lock().quarantine(Refusal {
        hpa: page.hpa(),
        size: PageSize::Size4K,
        why,
    });
    cpu.pool.quarantine(page);
}

//! Pages whose data the machine has lost: the TD that owns such a page ends, and no other.

use seam::address::Hpa;
use vcpu::End;

use super::Scheduler;
use crate::{
    platform::Running,
    td::{Td, error::Error, registry::Tds},
    tdx::owner::{PageOwner, owner_of},
};

/// The owner of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The host, or nobody.
    Host,
    /// The TD of this number.
    Td(u32),
    /// The module itself, or a TD that is not known.
    Module,
}

/// Asks the module who owns the page at `page`, whose data is lost. If it is a TD, that TD is terminated.
///
/// # Errors
/// The module's error, or the one that kept the TD from ending.
pub fn end_owner<P: Running>(
    scheduler: &Scheduler<'_, P>,
    tds: &Tds<'_, P>,
    page: Hpa,
) -> Result<Owner, Error> {
    let root = match owner_of(scheduler.platform, page)? {
        PageOwner::Host => return Ok(Owner::Host),
        PageOwner::Module => return Ok(Owner::Module),
        PageOwner::Td { root, .. } => root,
    };
    let owner = tds
        .ids()
        .find(|id| tds.get(*id).is_some_and(|td| root_of(&td) == Some(root)));
    let Some(id) = owner else {
        return Ok(Owner::Module);
    };
    let why = End::PageLost(page);
    if let Some(guest) = scheduler.guest(id) {
        guest.vm().end_with(why);
        scheduler.note_output(&guest);
    }
    tds.terminate(id).map(|_| Owner::Td(id))
}

/// Returns the address of a TD's root page.
fn root_of(td: &Td) -> Option<Hpa> {
    let map = td.map()?;
    let keyed = map.keyed(|tdr| Ok(tdr.hpa()));
    keyed.or_else(|_| map.keyless(|tdr| Ok(tdr.hpa()))).ok()
}

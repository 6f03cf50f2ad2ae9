//! Writing off a TD whose module has shut down.

use alloc::vec::Vec;

use mm::private::{self, Pool};

use super::{
    ownership::Owner,
    reclaim::{in_quarantine, reclaim_step},
};
use crate::{
    platform::{Platform, shutdown::SHUT_DOWN},
    td::{Td, host::Host, life::State, vcpu::Stopped},
};

/// Executes a step of writing off a TD whose module has shut down: its pages and its HKID go to quarantine, and the TD
/// is over. Returns `false` if nothing is left to do, or if the TD is in use; its user then tries again.
pub fn write_off<P: Platform>(host: &Host<'_, P>, td: &Td) -> bool {
    let Some(_turn) = td.turn.try_lock() else {
        return false;
    };
    if let Some(reclaim) = td.reclaim() {
        reclaim.write_off();
        return reclaim_step(host, td);
    }
    if matches!(td.state(), State::Created | State::Reclaimed) {
        return false;
    }
    // No vCPU is entered from now on.
    let _ = td.enter(host.platform, State::Terminating);
    td.end.set(Owner::UnderWay);
    let Ok(vcpus) = td.slots.try_stop() else {
        return false;
    };
    let vcpus: Option<Vec<_>> = vcpus.into_iter().collect();
    let Some(vcpus) = vcpus else {
        return false;
    };
    let mut pages = 0;
    if let Some(body) = td.body.get() {
        let pool = host.platform.pool();
        match body.map.write_off(pool) {
            Ok(put_away) => {
                pages += put_away.pages;
                if let Some(hkid) = put_away.hkid {
                    let hkids = host.coordinator.hkids();
                    hkids.quarantine(hkid, SHUT_DOWN.into());
                }
            }
            // The user of the map learns of the shutdown from the module.
            Err(private::Error::Busy) => return true,
            // The map was already written off, including its pages.
            Err(_) => {}
        }
        let control = core::mem::take(&mut *body.control.lock());
        let all = control
            .into_iter()
            .chain(vcpus.into_iter().filter_map(Stopped::into_page));
        for page in all {
            pages += page.size().pages();
            pool.quarantine(page);
        }
    }
    host.runner.end(td);
    if pages > 0 {
        let problem = in_quarantine(host, pages);
        log::error!("TD {}: {problem}", td.config.name);
        td.notes.lock().problem = Some(problem);
    }
    for (from, to) in [
        (State::Terminating, State::Teardown),
        (State::Teardown, State::Reclaimed),
    ] {
        let advanced = td.advance(host.platform, from, to);
        debug_assert_eq!(advanced, Ok(()));
    }
    true
}

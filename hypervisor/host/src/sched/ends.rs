//! Handles guests that have ended by themselves. A guest that powered off is terminated; one that asked for a reset is
//! rebuilt. Any other stays as it is, for inspection.

use vcpu::End;

use super::{Scheduler, guest::Guest};
use crate::{
    heap,
    platform::{Running, TdEvent},
    td::{
        error::{Error, after_guest},
        life::State,
        registry::Tds,
    },
};

/// Handles guests that have ended. Returns whether there was one. Must be called with interrupts on, because it may wait
/// for other CPUs.
pub fn serve<P: Running>(scheduler: &Scheduler<'_, P>, tds: &Tds<'_, P>) -> bool {
    scheduler.check_functions();
    if !scheduler.take_ended() {
        return false;
    }
    let mut after = None;
    while let Some(guest) = scheduler.next_ended(after) {
        if let Err(Error::Busy | Error::NoHeap) = follow(&guest, tds) {
            // Tried again when the caller serves the next time.
            scheduler.note_ended();
        }
        after = Some(guest.id());
    }
    after.is_some()
}

/// Follows the end of a guest.
///
/// # Errors
/// [`Error`]; it is noted for the operator, except [`Error::Busy`] and [`Error::NoHeap`], which pass.
fn follow<P: Running>(guest: &Guest, tds: &Tds<'_, P>) -> Result<(), Error> {
    // No guest can continue after a shutdown, whatever its end was.
    if tds.is_down() {
        return Ok(());
    }
    let id = guest.id();
    // Another CPU may have changed the state already.
    let (Some(end), State::Runnable) = (guest.vm().end(), tds.state(id)) else {
        return Ok(());
    };
    if end.is_orderly() && !heap::has_room() {
        return Err(Error::NoHeap);
    }
    let config = tds.config(id);
    let name = config.as_ref().map_or("", |config| &config.name);
    tds.host().platform.note(&TdEvent {
        td: id,
        name,
        asked_by: None,
        what: format_args!("its guest ended: {end}"),
    });
    let done = match end {
        End::PowerOff => {
            log::info!("TD {id} {name}: {end}");
            tds.terminate(id).map(drop)
        }
        End::Reset => {
            log::info!("TD {id} {name}: {end}");
            tds.begin_anew(id)
        }
        _ => {
            log::error!("TD {id} {name}: {end}");
            tds.keep_ended(id, format_args!("{end}; {}", after_guest(name)))
        }
    };
    if let Err(error) = &done
        && !matches!(error, Error::Busy | Error::NoHeap)
        && !tds.is_down()
    {
        log::error!("TD {id} {name}: {error}");
        if let Some(td) = tds.get(id) {
            td.note_problem(format_args!("{end}, and then: {error}"));
        }
    }
    done
}

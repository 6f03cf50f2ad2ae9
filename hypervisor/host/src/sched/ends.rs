//! Handles guests that have ended by themselves. A guest that powered off is terminated; one that asked for a reset is
//! rebuilt. Any other stays as it is, for inspection.

use alloc::format;

use vcpu::End;

use super::{Scheduler, guest::Guest};
use crate::{
    platform::Running,
    td::{error::after_guest, life::State, registry::Tds},
};

/// Handles guests that have ended. Must be called with interrupts on, because it may wait for other CPUs.
pub fn serve<P: Running>(scheduler: &Scheduler<'_, P>, tds: &Tds<'_, P>) -> bool {
    let ended = scheduler.take_ended();
    for guest in &ended {
        follow(guest, tds);
    }
    !ended.is_empty()
}

fn follow<P: Running>(guest: &Guest, tds: &Tds<'_, P>) {
    // No guest can continue after a shutdown, whatever its end was.
    if tds.is_down() {
        return;
    }
    let id = guest.id();
    // Another CPU may have changed the state already.
    let (Some(end), State::Runnable) = (guest.vm().end(), tds.state(id)) else {
        return;
    };
    let name = tds.config(id).map_or("", |config| &config.name);
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
            tds.keep_ended(id, format!("{end}; {}", after_guest(name)))
        }
    };
    if let Err(error) = done
        && !tds.is_down()
    {
        log::error!("TD {id} {name}: {error}");
        if let Some(td) = tds.get(id) {
            td.note_problem(format!("{end}, and then: {error}"));
        }
    }
}

//! Terminates TDs: stops the vCPUs, releases the HKID, then reclaims the memory.
//!
//! Nothing is final before TDH.MNG.VPFLUSHDONE: a CPU that does not answer in time leaves the TD unchanged. After it
//! the termination can only be completed, by [`retry`] if necessary.

mod give_back;
mod ownership;
mod reclaim;
mod stop;
mod write_off;

use alloc::{format, string::ToString, sync::Arc};

use mm::private::{Holding, Mode};
use sync::{MutexGuard, atomic::Ordering::Relaxed};

use super::{
    Body, Td,
    error::Error,
    host::Host,
    life::State,
    meter::{Meter, Summary},
};
use crate::{platform::Platform, tdx::release::NotReleased};
use give_back::{begin_reclaim, give_back};
use ownership::Owner;

pub(super) use ownership::Ownership;
pub use reclaim::{reclaim, reclaim_step};
pub(super) use stop::stop_vcpus;
pub use write_off::write_off;

/// A way to reclaim a TD's private memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Release the HKID first, then reclaim each page with one call.
    Terminate,
    /// Remove the memory dynamically before releasing the HKID.
    Dynamic,
}

/// Outcome of a request to terminate a TD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The HKID is released; the memory is reclaimed from now on.
    Now(Termination),
    /// The TD had already been asked to end, and is in this state.
    Already(State),
}

/// The record of a termination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Termination {
    /// The private memory that the TD had when its vCPUs had stopped.
    pub had: Holding,
    /// The work so far. It includes the reclaim as soon as the TD is reclaimed.
    pub work: Summary,
}

/// Starts terminating a TD. None of its vCPUs is entered from now on; [`carry_out`] does the rest. It does not wait, so
/// a TD may request its own termination. `by` is the number of the TD that does, or 0 for the host. [`carry_out`] records the change.
///
/// # Errors
/// The state of a TD that is not alive, or whose termination was requested before.
pub fn ask(td: &Td, by: u32) -> Result<(), State> {
    td.asked_by.store(by + 1, Relaxed);
    match td.life.enter(State::Terminating)? {
        State::Paused => td.end.set(Owner::AskedPaused),
        State::Runnable => td.end.set(Owner::AskedRunnable),
        // The builder sees the new state and tears the TD down.
        _ => {}
    }
    Ok(())
}

/// Carries out a requested termination. Returns `None` if none was requested or another CPU owns it.
pub fn carry_out<P: Platform>(host: &Host<'_, P>, td: &Arc<Td>) -> Option<Result<(), Error>> {
    let was = td.end.take_asked()?;
    td.note_change(host.platform, was, State::Terminating);
    Some(end(host, td, was, Way::Terminate).map(drop))
}

/// Stops a TD for good and releases its HKID; [`reclaim`] then reclaims its memory. From the start no vCPU can be
/// entered and nothing can be mapped. A second request is harmless.
///
/// # Errors
/// [`Error::Stuck`], [`Error::Busy`], and [`Error::NotReleased`] with [`NotReleased::Unchanged`]: the TD is unchanged.
/// [`NotReleased::Stuck`]: the TD stays terminating; its HKID and memory are in quarantine until [`retry`].
/// [`Error::EndStuck`], [`Error::NotReclaimed`] if it got stuck before.
pub fn terminate<P: Platform>(host: &Host<'_, P>, td: &Arc<Td>, way: Way) -> Result<Ended, Error> {
    let was = match td.enter(host.platform, State::Terminating) {
        Ok(State::Building) => {
            // The builder sees the new state and tears the TD down before it releases the turn.
            let _ = turn(host, td);
            return Ok(Ended::Already(td.state()));
        }
        Ok(was) => {
            td.end.set(Owner::UnderWay);
            was
        }
        Err(state) => match td.end.take_asked() {
            Some(was) => {
                td.note_change(host.platform, was, State::Terminating);
                was
            }
            None => return already(td, state),
        },
    };
    end(host, td, was, way).map(Ended::Now)
}

/// Returns the outcome of a repeated request for a TD in `state`.
fn already(td: &Td, state: State) -> Result<Ended, Error> {
    match stuck(td) {
        Some(error) => Err(error),
        None => Ok(Ended::Already(state)),
    }
}

/// Returns why a TD's termination is stuck until [`retry`], if it is.
pub fn stuck(td: &Td) -> Option<Error> {
    match td.state() {
        State::Terminating if td.end.is_stuck() => {
            let why = td.notes.lock().problem.clone();
            Some(Error::EndStuck(why.unwrap_or_default()))
        }
        State::Teardown => {
            let reclaim = td.reclaim().filter(|reclaim| reclaim.is_stuck())?;
            Some(
                reclaim
                    .last_refusal()
                    .map_or(Error::Busy, Error::NotReclaimed),
            )
        }
        _ => None,
    }
}

/// Records a stuck termination for the operator.
fn tell_stuck(td: &Td, error: &Error) {
    let problem = match error {
        // These messages say so themselves.
        Error::NotReleased(NotReleased::Stuck(_)) | Error::NotReclaimed(_) => error.to_string(),
        error => {
            format!("its termination got stuck: {error}; \"td retry\" resumes the termination")
        }
    };
    td.notes.lock().problem = Some(problem);
    td.end.set(Owner::Stuck);
}

/// Terminates a TD that was in state `was`. The caller owns the termination.
fn end<P: Platform>(
    host: &Host<'_, P>,
    td: &Arc<Td>,
    was: State,
    way: Way,
) -> Result<Termination, Error> {
    let mut meter = Meter::new(host.platform);
    let turn = turn(host, td);
    let result = match &turn {
        // Another CPU may have written the TD off meanwhile.
        _ if host.is_down() => Err(Error::ShutDown),
        Ok(_) => td
            .joining
            .quiet(host)
            .and_then(|_| meter.phase("stop", || stop_vcpus(host, td)))
            .and_then(|vcpus| give_back(host, td, vcpus, way, &mut meter)),
        Err(_) => Err(Error::Busy),
    };
    if let Err(error) = &result {
        revive(host, td, was, way, error);
    }
    result
}

/// Waits for the TD's turn.
fn turn<'a, P: Platform>(host: &Host<'_, P>, td: &'a Td) -> Result<MutexGuard<'a, ()>, Error> {
    let start = host.platform.now_us();
    loop {
        match td.turn.try_lock() {
            Some(turn) => return Ok(turn),
            None if host.platform.now_us() - start < host.stop_us => host.platform.relax(),
            None => return Err(Error::Busy),
        }
    }
}

/// Returns a TD whose termination failed to its previous state, if nothing of it is gone. Otherwise records it as
/// stuck.
fn revive<P: Platform>(host: &Host<'_, P>, td: &Arc<Td>, was: State, way: Way, error: &Error) {
    let is_whole = match error {
        Error::Stuck(_) | Error::Busy => true,
        Error::NotReleased(NotReleased::Unchanged(_) | NotReleased::UnderWay) => {
            way == Way::Terminate
        }
        _ => false,
    };
    let is_open = td.map().is_none_or(|map| map.mode() == Mode::Keyed);
    if !(is_whole && is_open) || host.is_down() {
        tell_stuck(td, error);
        return;
    }
    // The termination did not take place.
    td.notes.lock().ended = None;
    td.end.set(Owner::Nobody);
    if td.advance(host.platform, State::Terminating, was).is_err() {
        // Unreachable: only the owner of the termination changes the state.
        debug_assert!(false, "{:?}", td.state());
        return;
    }
    if let Some(body) = td.body.get()
        && let Err(error) = free_queued(host, td, body)
    {
        log::warn!("TD {}: {error}", td.config.name);
    }
    if was == State::Runnable {
        host.runner.start(td);
    }
}

/// Removes what was queued for removal during the failed termination of a TD that lives on. Failures stay queued.
fn free_queued<P: Platform>(host: &Host<'_, P>, td: &Td, body: &Body) -> Result<(), Error> {
    let _quiet = td.joining.quiet(host)?;
    // The next termination has changed the state, and takes everything.
    let goes_on = || !td.state().is_ending();
    let kick = td.kick(host.platform);
    host.with_cpu(|cpu| body.map.run_queued(cpu, &kick, &goes_on))?;
    Ok(())
}

/// Tears down a TD that could not be built or was terminated meanwhile. The caller holds its turn.
pub(super) fn unwind<P: Platform>(host: &Host<'_, P>, td: &Td) {
    // A CPU that terminates the TD waits for its turn.
    let entered = td.enter(host.platform, State::Terminating);
    if entered.is_err() && td.asked_by.load(Relaxed) != 0 {
        td.note_change(host.platform, State::Building, State::Terminating);
    }
    td.end.set(Owner::UnderWay);
    let mut meter = Meter::new(host.platform);
    let result = stop_vcpus(host, td)
        .and_then(|vcpus| give_back(host, td, vcpus, Way::Terminate, &mut meter))
        .and_then(|_| reclaim(host, td));
    if let Err(error) = result {
        if !host.is_down() {
            log::error!("TD {}: {error}", td.config.name);
        }
        tell_stuck(td, &error);
    }
}

/// Resumes a termination that got stuck, at the HKID or at the memory.
///
/// # Errors
/// As [`terminate`] and [`reclaim`]; [`Error::State`] if nothing is stuck.
pub fn retry<P: Platform>(host: &Host<'_, P>, td: &Arc<Td>) -> Result<(), Error> {
    let _turn = td.turn.try_lock().ok_or(Error::Busy)?;
    match td.state() {
        State::Terminating => {
            if !td.end.take(Owner::Stuck) {
                return Err(Error::Busy);
            }
            let mut meter = Meter::new(host.platform);
            let result = stop_vcpus(host, td)
                .and_then(|vcpus| give_back(host, td, vcpus, Way::Terminate, &mut meter));
            if let Err(error) = &result {
                tell_stuck(td, error);
            }
            result.map(drop)
        }
        State::Teardown => {
            td.notes.lock().problem = None;
            match td.body.get() {
                Some(body) => begin_reclaim(host, body)?,
                None => return Ok(()),
            }
            if let Some(reclaim) = td.reclaim() {
                reclaim.retry();
            }
            Ok(())
        }
        state => Err(Error::State(state)),
    }
}

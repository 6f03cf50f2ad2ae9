//! Terminates TDs: stops the vCPUs, releases the HKID, then reclaims the memory.
//!
//! Nothing is final before TDH.MNG.VPFLUSHDONE: a CPU that does not answer in time leaves the TD unchanged. After it
//! the termination can only be completed, by [`retry`] if necessary.

use alloc::{
    format,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};

use mm::private::{self, Holding, Mode, NoneRuns, Plan, Pool, Progress, Reclaim, Step};
use seam::abi::Leaf;
use sync::MutexGuard;
use sync::atomic::{AtomicU8, Ordering::SeqCst};

use super::{
    Body, Td,
    error::Error,
    host::{Host, Time},
    life::State,
    meter::{Meter, Phase, Summary},
    vcpu::Stopped,
};
use crate::{
    platform::{Platform, shutdown::SHUT_DOWN},
    tdx::release::{Ending, NotReleased, Released, Vcpus},
};

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

/// Ownership of a TD's termination. The CPU that moves this to [`Owner::AtIt`] alone carries out the termination.
#[derive(Debug, Default)]
pub(super) struct Ownership(AtomicU8);

/// The states of [`Ownership`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Owner {
    /// No owner: the TD is alive or under construction.
    Nobody,
    /// No owner yet: the termination was requested while the TD was paused.
    AskedPaused,
    /// No owner yet: the termination was requested while the TD was runnable.
    AskedRunnable,
    /// A CPU carries out the termination.
    AtIt,
    /// No owner any more: the termination got stuck after the point of no return.
    Stuck,
}

impl Ownership {
    fn is_stuck(&self) -> bool {
        self.0.load(SeqCst) == Owner::Stuck as u8
    }

    fn set(&self, to: Owner) {
        self.0.store(to as u8, SeqCst);
    }

    /// Moves from `from` to [`Owner::AtIt`]. Returns whether the state was `from`.
    fn take(&self, from: Owner) -> bool {
        let at_it = Owner::AtIt as u8;
        let taken = self.0.compare_exchange(from as u8, at_it, SeqCst, SeqCst);
        taken.is_ok()
    }

    /// Takes ownership of a requested termination. Returns the TD's state at the time of the request.
    fn take_asked(&self) -> Option<State> {
        [
            (Owner::AskedPaused, State::Paused),
            (Owner::AskedRunnable, State::Runnable),
        ]
        .into_iter()
        .find_map(|(asked, was)| self.take(asked).then_some(was))
    }
}

/// Starts terminating a TD. None of its vCPUs is entered from now on; [`carry_out`] does the rest. It does not wait, so
/// a TD may request its own termination.
///
/// # Errors
/// The state of a TD that is not alive, or whose termination was requested before.
pub fn ask(td: &Td) -> Result<(), State> {
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
    let was = match td.life.enter(State::Terminating) {
        Ok(State::Building) => {
            // The builder sees the new state and tears the TD down before it releases the turn.
            let _ = turn(host, td);
            return Ok(Ended::Already(td.state()));
        }
        Ok(was) => {
            td.end.set(Owner::AtIt);
            was
        }
        Err(state) => match td.end.take_asked() {
            Some(was) => was,
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

/// Takes every vCPU's lock. Interrupts the CPUs that hold one, and waits for them.
pub(super) fn stop_vcpus<'a, P: Platform>(
    host: &Host<'_, P>,
    td: &'a Td,
) -> Result<Vec<Stopped<'a>>, Error> {
    let start = host.platform.now_us();
    let mut vcpus = td.slots.try_stop();
    loop {
        if vcpus.iter().all(Option::is_some) {
            return Ok(vcpus.into_iter().flatten().collect());
        }
        // A vCPU that was just about to enter the guest is interrupted there in the next iteration.
        let users = td.slots.users();
        let answered = host.platform.on_each(&users, &|_| {});
        host.platform.relax();
        for (index, vcpu) in (0..).zip(&mut vcpus) {
            if vcpu.is_none() {
                *vcpu = td.slots.stop(index);
            }
        }
        if let Err(silent) = answered {
            return Err(Error::Stuck(silent.0));
        }
        if host.platform.now_us() - start >= host.stop_us && vcpus.iter().any(Option::is_none) {
            return Err(Error::Stuck(td.slots.users()));
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
    if td.life.advance(State::Terminating, was).is_err() {
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
    let _ = td.life.enter(State::Terminating);
    td.end.set(Owner::AtIt);
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

/// Releases the HKID, and prepares the reclaim. The vCPUs are gone afterwards. Returns the record of the termination so
/// far.
fn give_back<P: Platform>(
    host: &Host<'_, P>,
    td: &Td,
    vcpus: Vec<Stopped<'_>>,
    way: Way,
    meter: &mut Meter<'_, P>,
) -> Result<Termination, Error> {
    let had = td.holding();
    let released = match td.body.get() {
        Some(body) => release(host, td, body, vcpus, way, meter),
        // Nothing was taken for the TD.
        None => Ok(()),
    };
    // The record is complete before the state is: from teardown on, other CPUs continue the termination.
    let so_far = record(td, had, meter.take());
    released?;
    host.runner.end(td);
    td.life
        .advance(State::Terminating, State::Teardown)
        .map_err(Error::State)?;
    if let Some(body) = td.body.get() {
        begin_reclaim(host, body)?;
    }
    Ok(so_far)
}

/// Adds work to the record of a TD's termination, and returns the record.
fn record(td: &Td, had: Holding, work: Summary) -> Termination {
    let mut notes = td.notes.lock();
    let new = || Termination {
        had,
        ..Termination::default()
    };
    let ended = notes.ended.get_or_insert_with(new);
    ended.work.append(work);
    ended.clone()
}

/// Releases the HKID of a TD, with [`Way::Dynamic`] after its memory, and takes over the vCPUs' pages.
fn release<P: Platform>(
    host: &Host<'_, P>,
    td: &Td,
    body: &Body,
    vcpus: Vec<Stopped<'_>>,
    way: Way,
    meter: &mut Meter<'_, P>,
) -> Result<(), Error> {
    if way == Way::Dynamic {
        meter.phase("remove", || remove(host, body))?;
    }
    let ending = Ending {
        map: &body.map,
        vcpus: &Flush {
            platform: host.platform,
            vcpus: &vcpus,
        },
        release: &body.release,
    };
    let released = meter.phase("release", || {
        let mut results = host.coordinator.release(host.platform, &[ending]);
        results.pop().unwrap_or(Err(NotReleased::UnderWay))
    });
    let released = released.map_err(Error::NotReleased)?;
    meter.divide(parts(&released));
    {
        let mut control = body.control.lock();
        control.extend(vcpus.into_iter().filter_map(Stopped::into_page));
    }
    td.notes.lock().problem = None;
    Ok(())
}

/// Removes all private memory of a TD that has its key and does not run. Nothing else uses its memory: every vCPU's
/// holder has released it, and each holder of the TD's `Quiet` checks its state before and between its steps.
fn remove<P: Platform>(host: &Host<'_, P>, body: &Body) -> Result<(), Error> {
    host.with_cpu(|cpu| body.map.remove(cpu, 0..body.limit, &NoneRuns))?;
    Ok(())
}

fn parts(released: &Released) -> Vec<(String, u64, &'static [Leaf])> {
    const FLUSH: &[Leaf] = &[Leaf::VpFlush, Leaf::MngVpflushdone];
    const WRITE_BACK: &[Leaf] = &[Leaf::PhymemCacheWb];
    const FREE: &[Leaf] = &[Leaf::MngKeyFreeid];
    let mut parts = Vec::from([("flush".into(), released.flush_us, FLUSH)]);
    parts.extend(released.write_back.iter().map(|package| {
        let name = format!("write-back of package {}", package.package);
        (name, package.us, WRITE_BACK)
    }));
    parts.push(("free".into(), released.free_us, FREE));
    parts
}

/// Prepares the reclaim of a TD without key, unless that has been done.
fn begin_reclaim<P: Platform>(host: &Host<'_, P>, body: &Body) -> Result<(), Error> {
    let begun = body.reclaim.try_call_once(|| {
        let plan = Plan {
            cpus: host.platform.cpus().len() as u32,
            clearing: host.clearing,
            global_hkid: host.global_hkid,
        };
        let control = core::mem::take(&mut *body.control.lock());
        let time = Time(host.platform);
        Reclaim::new(Arc::clone(&body.map), control, plan, &time).map_err(|(error, _, control)| {
            *body.control.lock() = control;
            Error::from(error)
        })
    });
    begun?;
    host.runner.work_waits();
    Ok(())
}

/// Executes a step of a TD's reclaim on the calling CPU: at most 8 SEAMCALLs, and 2 MiB cleared. Returns `false` if
/// there is nothing that this CPU can do for it now.
pub fn reclaim_step<P: Platform>(host: &Host<'_, P>, td: &Td) -> bool {
    if td.state() != State::Teardown {
        return false;
    }
    let Some(body) = td.body.get() else {
        return finish(host, td);
    };
    let Some(reclaim) = body.reclaim.get() else {
        return false;
    };
    let seat = host.platform.this_cpu();
    let step = host.with_cpu(|cpu| reclaim.work(cpu, seat, &Time(host.platform)));
    match step {
        Step::More => true,
        Step::Idle => false,
        Step::Done => finish(host, td),
        Step::Stuck => {
            let refusal = reclaim.last_refusal();
            let problem = refusal.map(|refusal| Error::NotReclaimed(refusal).to_string());
            td.notes.lock().problem = problem;
            false
        }
    }
}

/// Marks a TD as reclaimed once nothing of it is left. Returns `true` for the first caller. A CPU that sees the TD
/// reclaimed sees its whole record.
fn finish<P: Platform>(host: &Host<'_, P>, td: &Td) -> bool {
    let reclaim = td.reclaim();
    let progress = reclaim.map(|reclaim| reclaim.progress(&Time(host.platform)));
    let quarantine = reclaim.map(Reclaim::quarantined).unwrap_or_default();
    let lost = progress
        .map(|progress| progress.quarantined)
        .filter(|lost| *lost > 0);
    let problem = lost.map(|pages| in_quarantine(host, pages));
    let first = quarantine.first().copied();
    {
        // Several CPUs may come here; the first one completes the record, and the state after it.
        let mut notes = td.notes.lock();
        if td.state() != State::Teardown {
            return false;
        }
        if let Some(progress) = &progress {
            let ended = notes.ended.get_or_insert_default();
            ended.work.append(reclaiming(progress));
        }
        if problem.is_some() {
            notes.quarantine = quarantine;
            notes.problem.clone_from(&problem);
        }
        if td.life.advance(State::Teardown, State::Reclaimed).is_err() {
            // Unreachable: only the holder of the lock makes this transition.
            debug_assert!(false, "{:?}", td.state());
            return false;
        }
    }
    if let Some(problem) = problem {
        let first = first.map_or_else(String::new, |first| format!("; the first is {first}"));
        log::error!("TD {}: {problem}{first}", td.config.name);
    }
    true
}

/// Returns the phases of a reclaim.
fn reclaiming(progress: &Progress) -> Summary {
    let done = progress.reclaimed;
    let us = progress.elapsed_ns / 1000;
    let reclaim = Phase {
        name: "reclaim".into(),
        us: Some(us),
        cpu_us: done.reclaim_ns / 1000,
        calls: Vec::from([
            (Leaf::PhymemPageReclaim, done.reclaim_calls),
            (Leaf::PhymemPageWbinvd, done.wbinvd_calls),
        ]),
    };
    let clear = Phase {
        name: "clear".into(),
        // Pages are cleared one by one while others are reclaimed.
        us: None,
        cpu_us: done.clear_ns / 1000,
        calls: Vec::new(),
    };
    Summary {
        phases: Vec::from([reclaim, clear]),
        us,
    }
}

/// Returns the message to the operator about quarantined pages.
fn in_quarantine<P: Platform>(host: &Host<'_, P>, pages: u64) -> String {
    let why = if host.is_down() {
        "its module was shut down"
    } else {
        "the TDX module did not return them"
    };
    format!("{pages} of its pages are in quarantine: {why}")
}

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
    let _ = td.life.enter(State::Terminating);
    td.end.set(Owner::AtIt);
    let vcpus: Option<Vec<_>> = td.slots.try_stop().into_iter().collect();
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
        let advanced = td.life.advance(from, to);
        debug_assert_eq!(advanced, Ok(()));
    }
    true
}

/// Reclaims all memory of a TD whose HKID is released, together with any CPUs that help. Returns the record of the
/// whole termination.
///
/// # Errors
/// [`Error::State`] if the TD has its key; [`Error::NotReclaimed`] if the module does not give the memory back.
pub fn reclaim<P: Platform>(host: &Host<'_, P>, td: &Td) -> Result<Termination, Error> {
    loop {
        match td.state() {
            State::Teardown => {}
            State::Reclaimed => return Ok(td.notes.lock().ended.clone().unwrap_or_default()),
            state => return Err(Error::State(state)),
        }
        if reclaim_step(host, td) {
            continue;
        }
        let time = Time(host.platform);
        match td.reclaim() {
            None => return Err(Error::NoHeap),
            Some(reclaim) if reclaim.progress(&time).is_stuck => {
                let refusal = reclaim.last_refusal();
                return Err(refusal.map_or(Error::Busy, Error::NotReclaimed));
            }
            Some(_) => host.platform.relax(),
        }
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

/// A TD's stopped vCPUs, for the flushes of its HKID's release.
struct Flush<'a, P> {
    platform: &'a P,
    vcpus: &'a [Stopped<'a>],
}

impl<P: Platform> Vcpus for Flush<'_, P> {
    fn cpus(&self) -> Vec<u32> {
        let mut cpus: Vec<_> = self.vcpus.iter().filter_map(Stopped::associated).collect();
        cpus.sort_unstable();
        cpus.dedup();
        cpus
    }

    fn flush_here(&self) -> Result<(), seam::error::Error> {
        let me = Some(self.platform.this_cpu());
        let here = self.vcpus.iter().filter(|vcpu| vcpu.associated() == me);
        here.into_iter()
            .try_for_each(|vcpu| vcpu.flush(self.platform))
    }
}

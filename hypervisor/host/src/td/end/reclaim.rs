//! The reclaim of a TD's memory once its HKID is released, step by step on any number of CPUs.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use mm::private::{Progress, Reclaim, Step};
use seam::abi::Leaf;

use super::Termination;
use crate::{
    platform::Platform,
    td::{
        Td,
        error::Error,
        host::{Host, Time},
        life::State,
        meter::{Phase, Summary},
    },
};

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
    let lane = host.platform.this_cpu();
    let step = host.with_cpu(|cpu| reclaim.work(cpu, lane, &Time(host.platform)));
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
        if td
            .advance(host.platform, State::Teardown, State::Reclaimed)
            .is_err()
        {
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
pub fn in_quarantine<P: Platform>(host: &Host<'_, P>, pages: u64) -> String {
    let why = if host.is_down() {
        "its module was shut down"
    } else {
        "the TDX module did not return them"
    };
    format!("{pages} of its pages are in quarantine: {why}")
}

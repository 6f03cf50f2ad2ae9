//! TDH.SYS.TDMR.INIT in rounds: every CPU takes a TDMR, makes some calls, and returns, until all TDMRs are initialised.
//! A CPU that does not answer is left out; another CPU takes its TDMR in the next round.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mm::tdmr::Tdmr;
use seam::{
    address::Hpa,
    error::Error,
    tdh::resume::{Step, TdmrInit},
};
use spin::Mutex;

use super::Failed;
use crate::platform::Platform;

/// Calls that a CPU makes before it serves its interrupts. One call initialises 4 MiB's worth of a TDMR.
const CALLS_A_ROUND: u32 = 32;

struct Job {
    tdmr: TdmrInit,
    outcome: Result<Step, Error>,
}

/// Initialises all TDMRs. Returns the number of calls, and the outcome.
pub fn init<P: Platform>(platform: &P, tdmrs: &[Tdmr]) -> (u64, Result<(), Failed>) {
    let jobs: Vec<Mutex<Job>> = tdmrs
        .iter()
        .map(|tdmr| {
            Mutex::new(Job {
                tdmr: TdmrInit::new(Hpa(tdmr.span.start), tdmr.span.bytes()),
                outcome: Ok(Step::More),
            })
        })
        .collect();
    let calls = AtomicU64::new(0);
    // The calling CPU comes first, because it always answers.
    let me = platform.this_cpu();
    let mut cpus: Vec<u32> = platform.cpus().iter().map(|place| place.cpu).collect();
    cpus.sort_by_key(|cpu| *cpu != me);
    let mut progress = Progress::new();
    loop {
        let open = jobs.iter().filter(|job| job.lock().is_open());
        let round: Vec<(u32, &Mutex<Job>)> = cpus.iter().copied().zip(open).collect();
        if round.is_empty() {
            break;
        }
        let at_work: Vec<u32> = round.iter().map(|(cpu, _)| *cpu).collect();
        let answer = platform.on_each(&at_work, &|cpu| {
            if let Some((_, job)) = round.iter().find(|(of, _)| *of == cpu) {
                calls.fetch_add(job.lock().work(platform), Relaxed);
            }
        });
        if let Err(silent) = answer {
            log::warn!("TDX: TDH.SYS.TDMR.INIT goes on without: {silent}");
            cpus.retain(|cpu| !silent.contains(cpu));
        }
        progress.tell(&jobs);
    }
    let failed = jobs.iter().find_map(|job| job.lock().outcome.err());
    let outcome = failed.map_or(Ok(()), |e| Err(Failed::from(e)));
    (calls.into_inner(), outcome)
}

impl Job {
    fn is_open(&self) -> bool {
        matches!(self.outcome, Ok(Step::More))
    }

    /// Makes the calls of one round, or fewer if the TDMR is done. Returns their number.
    fn work<P: Platform>(&mut self, platform: &P) -> u64 {
        for call in 1..=CALLS_A_ROUND {
            self.outcome = self.tdmr.step(&platform.tdh());
            if !self.is_open() {
                return call.into();
            }
        }
        CALLS_A_ROUND.into()
    }
}

/// The amount of work that was logged so far.
struct Progress {
    told: u64,
}

impl Progress {
    const fn new() -> Self {
        Self { told: 0 }
    }

    /// Logs every tenth of the work.
    fn tell(&mut self, jobs: &[Mutex<Job>]) {
        let (mut done, mut all) = (0, 0);
        for job in jobs {
            let (part, whole) = job.lock().tdmr.progress();
            done += part >> 30;
            all += whole >> 30;
        }
        if done * 10 / all.max(1) > self.told {
            self.told = done * 10 / all.max(1);
            log::info!("TDX: {done} of {all} GiB of TDMRs are initialised");
        }
    }
}

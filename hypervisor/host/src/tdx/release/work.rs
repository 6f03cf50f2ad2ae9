//! The progress of one TD through a release, and the steps that need no turn.

use alloc::{format, vec::Vec};
use core::{mem, ops::ControlFlow};

use mm::private;
use sync::MutexGuard;
use sync::{IrqLock, call::NoAnswer};

use super::{super::hkids::Hkids, Ending, NotReleased, Why};
use crate::platform::Platform;

/// Maximum wait for other users of a TD's map, in microseconds. Each holds it for a bounded number of calls.
const MAP_US: u64 = 2_000_000;

/// Stage of a TD's release.
#[derive(Debug)]
pub enum Stage {
    /// The TD has its HKID.
    Keyed,
    /// TDH.MNG.VPFLUSHDONE was done at this time.
    Flushed(u64),
    /// The HKID is released.
    Free,
}

/// A TD in a release.
pub struct Work<'a> {
    pub ending: &'a Ending<'a>,
    stage: Option<MutexGuard<'a, Stage>>,
    result: Result<(), NotReleased>,
}

impl<'a> Work<'a> {
    /// Begins the release of a TD. No other release of it can begin until this is dropped.
    pub fn begin(ending: &'a Ending<'a>) -> Self {
        let stage = ending.release.stage.try_lock();
        Self {
            ending,
            result: stage.as_ref().map(|_| ()).ok_or(NotReleased::UnderWay),
            stage,
        }
    }

    /// Returns whether the TD still has to be flushed.
    pub fn is_keyed(&self) -> bool {
        self.result.is_ok() && matches!(self.stage.as_deref(), Some(Stage::Keyed))
    }

    /// Returns the time of the flush if the TD still has its HKID.
    pub fn flushed_at(&self) -> Option<u64> {
        match self.stage.as_deref() {
            Some(Stage::Flushed(at)) if self.result.is_ok() => Some(*at),
            _ => None,
        }
    }

    pub fn set(&mut self, to: Stage) {
        if let Some(stage) = self.stage.as_deref_mut() {
            *stage = to;
        }
    }

    /// Gives up before the point of no return: the TD continues.
    pub fn undo<P: Platform>(&mut self, platform: &P, why: Why) {
        // Only another user of the map can prevent it from opening, and each uses it for a bounded time.
        let opened = patiently(platform, || self.ending.map.reopen());
        let why = opened.map_or_else(Why::Map, |()| why);
        self.result = Err(NotReleased::Unchanged(why));
    }

    /// Gives up after the point of no return.
    pub fn stick(&mut self, why: Why) {
        self.result = Err(NotReleased::Stuck(why));
    }

    /// Returns the outcome, after reporting a stuck release to the pool and to the log.
    ///
    /// If the module has shut down, nothing is reported here: the shutdown itself already was.
    pub fn finish<P: Platform>(self, platform: &P, hkids: &Hkids) -> Result<(), NotReleased> {
        let number = self.ending.release.hkid;
        if let Err(NotReleased::Stuck(why)) = &self.result
            && !platform.shutdown().is_down()
        {
            log::error!("HKID {number} is in quarantine: {why}");
            hkids.quarantine(number, format!("{why}"));
        }
        self.result
    }
}

/// Closes the TDs' maps: from here on nothing is mapped, changed or removed.
pub fn close<P: Platform>(platform: &P, tds: &mut [Work<'_>]) {
    for td in tds.iter_mut().filter(|td| td.is_keyed()) {
        let start = platform.now_us();
        let closed = td.ending.map.close(|_| {
            platform.relax();
            if platform.now_us() - start < MAP_US {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        if let Err(e) = closed {
            td.result = Err(NotReleased::Unchanged(Why::Map(e)));
        }
    }
}

/// Executes TDH.VP.FLUSH for all vCPUs of all these TDs, on all CPUs in parallel.
pub fn flush_vcpus<P: Platform>(platform: &P, tds: &mut [Work<'_>]) {
    let mut cpus: Vec<u32> = tds
        .iter()
        .filter(|td| td.is_keyed())
        .flat_map(|td| td.ending.vcpus.cpus())
        .collect();
    cpus.sort_unstable();
    cpus.dedup();
    let errors = IrqLock::new(Vec::new());
    let vcpus: Vec<_> = tds
        .iter()
        .map(|td| td.is_keyed().then_some(td.ending.vcpus))
        .collect();
    // A CPU that did not answer still has vCPUs afterwards.
    let _ = platform.on_each(&cpus, &|cpu| {
        for (index, vcpus) in vcpus.iter().enumerate() {
            if let Some(Err(e)) = vcpus.map(super::Vcpus::flush_here) {
                errors.lock().push((index, cpu, e));
            }
        }
    });
    let failed = mem::take(&mut *errors.lock());
    for (index, td) in tds.iter_mut().enumerate() {
        if !td.is_keyed() {
            continue;
        }
        let left: Vec<u32> = td.ending.vcpus.cpus();
        if let Some((_, cpu, error)) = failed.iter().find(|(at, ..)| *at == index) {
            let (cpu, error) = (*cpu, *error);
            td.undo(platform, Why::Flush { cpu, error });
        } else if !left.is_empty() {
            td.undo(platform, Why::Vcpus(NoAnswer::of(&left)));
        }
    }
}

/// Tries a change of the map again while another user holds it.
pub fn patiently<P: Platform, R>(
    platform: &P,
    mut change: impl FnMut() -> Result<R, private::Error>,
) -> Result<R, private::Error> {
    let start = platform.now_us();
    loop {
        match change() {
            Err(private::Error::Busy) if platform.now_us() - start < MAP_US => platform.relax(),
            other => return other,
        }
    }
}

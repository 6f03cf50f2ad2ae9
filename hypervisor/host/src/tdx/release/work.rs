//! One TD on its way through a release, and the part of the way that needs no turn.

use alloc::{format, vec::Vec};
use core::{mem, ops::ControlFlow};

use mm::private;
use sync::MutexGuard;
use sync::{IrqLock, call::NoAnswer};

use super::{super::hkids::Hkids, Ending, NotReleased, Why};
use crate::platform::Platform;

/// How long somebody who works on a TD's map is waited for, in microseconds. Each holds it for a bounded number of calls.
const MAP_US: u64 = 2_000_000;

/// How far a TD is.
#[derive(Debug)]
pub enum Stage {
    /// It has its key.
    Keyed,
    /// TDH.MNG.VPFLUSHDONE was done at this time.
    Flushed(u64),
    /// It has no key.
    Free,
}

/// A TD in a release.
pub struct Work<'a> {
    pub ending: &'a Ending<'a>,
    stage: Option<MutexGuard<'a, Stage>>,
    result: Result<(), NotReleased>,
}

impl<'a> Work<'a> {
    /// Nobody else releases it until this is dropped.
    pub fn begin(ending: &'a Ending<'a>) -> Self {
        let stage = ending.release.stage.try_lock();
        Self {
            ending,
            result: stage.as_ref().map(|_| ()).ok_or(NotReleased::UnderWay),
            stage,
        }
    }

    /// Whether it is still to be flushed.
    pub fn is_keyed(&self) -> bool {
        self.result.is_ok() && matches!(self.stage.as_deref(), Some(Stage::Keyed))
    }

    /// When it was flushed, if it still has its HKID since.
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

    /// Gives up before the point of no return: the TD goes on.
    pub fn undo<P: Platform>(&mut self, platform: &P, why: Why) {
        // Nothing but another user of the map keeps it from opening, and none of those stays.
        let opened = patiently(platform, || self.ending.map.reopen());
        let why = opened.map_or_else(Why::Map, |()| why);
        self.result = Err(NotReleased::Unchanged(why));
    }

    /// Gives up behind it.
    pub fn stick(&mut self, why: Why) {
        self.result = Err(NotReleased::Stuck(why));
    }

    /// How it ended, which the pool and the operator are told.
    ///
    /// When the module has shut down, that is all there is to tell.
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

/// Nothing is mapped, changed or removed in these TDs from here on.
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

/// TDH.VP.FLUSH of all vCPUs of all these TDs, on all CPUs at once.
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
    // Who did not answer still has vCPUs afterwards.
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
        let left = td.ending.vcpus.cpus();
        if let Some((_, cpu, error)) = failed.iter().find(|(at, ..)| *at == index) {
            let (cpu, error) = (*cpu, *error);
            td.undo(platform, Why::Flush { cpu, error });
        } else if !left.is_empty() {
            td.undo(platform, Why::Vcpus(NoAnswer(left)));
        }
    }
}

/// Asks for a change of the map while somebody else looks at it.
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

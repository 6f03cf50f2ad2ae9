//! The rig's server with a pool that fails to give one frame.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use host::platform::shutdown::Shutdown;
use host::platform::{CpuPlace, Platform};
use mm::private;
use seam::abi::{FatalDiagnostics, PageSize};
use seam::address::Hpa;
use seam::counters::Counters;
use seam::page::{Clean, Dirty, Page, State};
use seam::tdh::Tdh;
use sync::call::NoAnswer;

use super::rig::{Caller, Pool, Rig, Sleep};

/// A server whose pool fails to give one frame.
pub struct Short {
    rig: Rig,
    pool: ShortPool,
}

/// A pool that fails to give one frame.
pub struct ShortPool {
    rig: Rig,
    taken: AtomicU64,
    missing: AtomicU64,
}

impl Short {
    pub fn new(rig: &Rig) -> Self {
        Self {
            rig: rig.clone(),
            pool: ShortPool {
                rig: rig.clone(),
                taken: AtomicU64::new(0),
                missing: AtomicU64::new(u64::MAX),
            },
        }
    }

    /// Makes the pool refuse request `number` for a frame (1 is the next).
    pub fn miss(&self, number: u64) {
        self.pool.taken.store(0, SeqCst);
        self.pool.missing.store(number, SeqCst);
    }

    /// Returns the number of requests for a frame since [`Self::miss`].
    pub fn asked(&self) -> u64 {
        self.pool.taken.load(SeqCst)
    }
}

impl ShortPool {
    fn pool(&self) -> &Pool {
        self.rig.pool()
    }
}

impl private::Pool for ShortPool {
    fn take(&self, size: PageSize) -> Option<Page<Clean>> {
        let number = self.taken.fetch_add(1, SeqCst) + 1;
        (number != self.missing.load(SeqCst)).then(|| self.pool().take(size))?
    }

    fn take_at(&self, _: Hpa, _: PageSize) -> Option<Page<Clean>> {
        None
    }

    fn free_bytes(&self) -> u64 {
        self.pool().free_bytes()
    }

    fn give(&self, pages: impl Iterator<Item = Page<Clean>>) {
        self.pool().give(pages);
    }

    fn clear(&self, page: Page<Dirty>) -> Page<Clean> {
        self.pool().clear(page)
    }

    fn keep(&self, page: Page<Dirty>) -> Result<(), Page<Dirty>> {
        self.pool().keep(page)
    }

    fn quarantine<S: State>(&self, page: Page<S>) {
        self.pool().quarantine(page);
    }

    fn split(&self, hpa: Hpa, size: PageSize) {
        self.pool().split(hpa, size);
    }

    fn merge(&self, hpa: Hpa, size: PageSize) {
        self.pool().merge(hpa, size);
    }
}

impl Platform for Short {
    type Call = Caller;
    type Wait = Sleep;
    type Pool = ShortPool;

    fn tdh(&self) -> Tdh<'_, Caller, Sleep> {
        self.rig.tdh()
    }

    fn counters(&self, cpu: u32) -> Option<&Counters> {
        self.rig.counters(cpu)
    }

    fn shutdown(&self) -> &Shutdown {
        self.rig.shutdown()
    }

    fn fatal_diagnostics(&self) -> Option<FatalDiagnostics> {
        self.rig.fatal_diagnostics()
    }

    fn pool(&self) -> &ShortPool {
        &self.pool
    }

    fn cpus(&self) -> &[CpuPlace] {
        self.rig.cpus()
    }

    fn this_cpu(&self) -> u32 {
        self.rig.this_cpu()
    }

    fn on_each(&self, cpus: &[u32], work: &(dyn Fn(u32) + Sync)) -> Result<(), NoAnswer> {
        self.rig.on_each(cpus, work)
    }

    fn relax(&self) {
        self.rig.relax();
    }

    fn write_back_caches(&self) {
        self.rig.write_back_caches();
    }

    fn read(&self, from: Hpa, into: &mut [u8]) {
        self.rig.read(from, into);
    }

    fn write(&self, to: Hpa, bytes: &[u8]) {
        self.rig.write(to, bytes);
    }

    fn now_us(&self) -> u64 {
        self.rig.now_us()
    }
}

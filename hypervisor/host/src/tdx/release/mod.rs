//! Allocates and releases HKIDs, and serialises everything that needs the module's key table.
//!
//! TDH.MNG.CREATE, TDH.MNG.VPFLUSHDONE and TDH.MNG.KEY.FREEID lock that table exclusively. TDH.PHYMEM.CACHE.WB holds it
//! shared for as long as it runs. These calls take turns here, so that none of them spins on a busy module.
//!
//! One pass of TDH.PHYMEM.CACHE.WB over a package serves all TDs that were flushed before it began. A logical clock
//! ticks at every flush and at every start of a pass. It tells which passes count for which TD. TDs that end together
//! share a pass.

mod error;
mod round;
mod work;

use alloc::{collections::BTreeMap, vec::Vec};

use mm::private::PrivateMap;
use seam::{
    error::{Error, Rejected},
    page::{Clean, Page},
    tdh::{Keyed, Tdr, resume::Step},
};
use sync::atomic::{AtomicU32, Ordering::SeqCst};
use sync::{Mutex, MutexGuard};

pub use error::{CreateError, NotReleased, Why};
use round::{Package, Round};
use work::{Stage, Work, patiently};

use super::hkids::Hkids;
use crate::platform::Platform;

/// Maximum wait for a turn, in microseconds. A turn is a few calls, or one write-back of the caches of all packages.
const TURN_US: u64 = 60_000_000;

/// Hands HKIDs to TDs, and takes them back.
pub struct Coordinator {
    hkids: Hkids,
    turn: Mutex<Turn>,
    /// Number of waiters for a turn to flush. A write-back lets them go first, and then covers them too.
    flushing: AtomicU32,
}

/// State that the holder of the turn works on.
#[derive(Default)]
struct Turn {
    clock: u64,
    packages: BTreeMap<u32, Package>,
}

/// A TD whose HKID is to be released.
#[derive(Clone, Copy)]
pub struct Ending<'a> {
    /// The TD's memory, with its root page and its HKID.
    pub map: &'a PrivateMap,
    /// The TD's vCPUs.
    pub vcpus: &'a dyn Vcpus,
    /// Progress of the release.
    pub release: &'a Release,
}

/// The vCPUs of a TD whose HKID is to be released. They are out of the guest. While the TD's map is closed, none is
/// entered or otherwise associated with a CPU.
pub trait Vcpus: Sync {
    /// Returns the CPUs that at least one vCPU is associated with.
    fn cpus(&self) -> Vec<u32>;

    /// Executes TDH.VP.FLUSH for the vCPUs that are associated with the calling CPU, which ends these associations. It
    /// may be called on a CPU without any, and it runs with interrupts off.
    ///
    /// # Errors
    /// The first call that failed; its vCPU is still associated.
    fn flush_here(&self) -> Result<(), Error>;
}

/// Progress of a TD's release. Kept with the TD, so that a stuck release can be continued.
#[derive(Debug)]
pub struct Release {
    hkid: u16,
    stage: Mutex<Stage>,
}

impl Release {
    /// Creates the progress for a TD with this HKID.
    #[must_use]
    pub const fn new(hkid: u16) -> Self {
        Self {
            hkid,
            stage: Mutex::new(Stage::Keyed),
        }
    }
}

/// Durations of a release.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Microseconds for closing the TDs' maps and flushing their vCPUs, including TDH.MNG.VPFLUSHDONE.
    pub flush_us: u64,
    /// The packages whose caches were written back, without those that another release has covered meanwhile.
    pub write_back: Vec<WriteBack>,
    /// Microseconds for TDH.MNG.KEY.FREEID.
    pub free_us: u64,
}

/// The write-back of one package's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteBack {
    /// The package.
    pub package: u32,
    /// Microseconds.
    pub us: u64,
    /// Number of times that an interrupt came first.
    pub interruptions: u32,
}

impl Coordinator {
    /// Creates a coordinator of these HKIDs.
    #[must_use]
    pub fn new(hkids: Hkids) -> Self {
        Self {
            hkids,
            turn: Mutex::new(Turn::default()),
            flushing: AtomicU32::new(0),
        }
    }

    /// Returns the HKIDs.
    pub const fn hkids(&self) -> &Hkids {
        &self.hkids
    }

    /// Executes TDH.MNG.CREATE with an HKID of the pool, for a TD whose root page is `page`.
    ///
    /// # Errors
    /// [`CreateError`], and the page; nothing has changed.
    pub fn create<P: Platform>(
        &self,
        platform: &P,
        page: Page<Clean>,
    ) -> Result<Tdr<Keyed>, (CreateError, Page<Clean>)> {
        let hkid = match self.hkids.take() {
            Ok(hkid) => hkid,
            Err(none) => return Err((CreateError::NoHkid(none), page)),
        };
        let Some(_turn) = self.turn(platform) else {
            self.hkids.give(hkid);
            return Err((CreateError::Turn, page));
        };
        let created = platform.tdh().mng_create(page, hkid);
        created.map_err(|Rejected { error, given }| {
            self.hkids.give(given.1);
            (CreateError::Seam(error), given.0)
        })
    }

    /// Releases the HKIDs of all these TDs, each as far as possible. The results are in the same order. A TD whose HKID
    /// is already released is accepted. The release of a TD that got stuck continues.
    ///
    /// This waits for the vCPUs' CPUs, for the turn, and for the caches. It must be called with interrupts on, and not
    /// from within a cross-CPU call.
    pub fn release<P: Platform>(
        &self,
        platform: &P,
        endings: &[Ending<'_>],
    ) -> Vec<Result<Released, NotReleased>> {
        let mut tds: Vec<_> = endings.iter().map(Work::begin).collect();
        let start = platform.now_us();
        work::close(platform, &mut tds);
        work::flush_vcpus(platform, &mut tds);
        self.flush_done(platform, &mut tds);
        let flush_us = platform.now_us() - start;
        let write_back = self.write_back(platform, &mut tds);
        let start = platform.now_us();
        self.free(platform, &mut tds);
        let released = Released {
            flush_us,
            write_back,
            free_us: platform.now_us() - start,
        };
        let results = tds.into_iter();
        results
            .map(|td| td.finish(platform, &self.hkids).map(|()| released.clone()))
            .collect()
    }

    /// Executes TDH.MNG.VPFLUSHDONE: the point of no return.
    fn flush_done<P: Platform>(&self, platform: &P, tds: &mut [Work<'_>]) {
        if !tds.iter().any(Work::is_keyed) {
            return;
        }
        self.flushing.fetch_add(1, SeqCst);
        let mut turn = self.turn(platform);
        self.flushing.fetch_sub(1, SeqCst);
        for td in tds.iter_mut().filter(|td| td.is_keyed()) {
            let Some(turn) = turn.as_deref_mut() else {
                td.undo(platform, Why::Turn);
                continue;
            };
            match patiently(platform, || td.ending.map.flush_done(&platform.tdh())) {
                Ok(()) => td.set(Stage::Flushed(turn.tick())),
                Err(e) => td.undo(platform, Why::Map(e)),
            }
        }
    }

    /// Writes back the caches of the packages for which no pass has begun since the last of these TDs was flushed.
    fn write_back<P: Platform>(&self, platform: &P, tds: &mut [Work<'_>]) -> Vec<WriteBack> {
        let Some(last) = tds.iter().filter_map(Work::flushed_at).max() else {
            return Vec::new();
        };
        let start = platform.now_us();
        while self.flushing.load(SeqCst) > 0 && platform.now_us() - start < TURN_US {
            platform.relax();
        }
        let flushed = tds.iter_mut().filter(|td| td.flushed_at().is_some());
        let Some(mut turn) = self.turn(platform) else {
            flushed.for_each(|td| td.stick(Why::Turn));
            return Vec::new();
        };
        let mut round = Round::begin(platform, &mut turn, last);
        while round.step(platform) == Step::More {}
        let (done, failed) = round.end(&mut turn);
        for td in flushed {
            let missing = failed
                .iter()
                .find(|(package, _)| !turn.is_written(*package, td.flushed_at()));
            if let Some((_, why)) = missing {
                td.stick(why.clone());
            }
        }
        done
    }

    /// Executes TDH.MNG.KEY.FREEID for the TDs that got that far.
    fn free<P: Platform>(&self, platform: &P, tds: &mut [Work<'_>]) {
        if !tds.iter().any(|td| td.flushed_at().is_some()) {
            return;
        }
        let turn = self.turn(platform);
        for td in tds.iter_mut().filter(|td| td.flushed_at().is_some()) {
            if turn.is_none() {
                td.stick(Why::Turn);
                continue;
            }
            match patiently(platform, || td.ending.map.free_hkid(&platform.tdh())) {
                Ok(hkid) => {
                    if let Some(hkid) = hkid {
                        self.hkids.give(hkid);
                    }
                    td.set(Stage::Free);
                }
                Err(e) => td.stick(Why::Map(e)),
            }
        }
    }

    /// Waits for the turn. Returns `None` after a timeout.
    fn turn<P: Platform>(&self, platform: &P) -> Option<MutexGuard<'_, Turn>> {
        let start = platform.now_us();
        loop {
            if let Some(turn) = self.turn.try_lock() {
                return Some(turn);
            }
            if platform.now_us() - start > TURN_US {
                return None;
            }
            platform.relax();
        }
    }
}

impl Turn {
    /// Advances the clock. No two events share a time.
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Returns whether the package's caches were written back by a pass that began after that time.
    fn is_written(&self, package: u32, after: Option<u64>) -> bool {
        let package = self.packages.get(&package);
        package.is_some_and(|package| Some(package.written()) > after)
    }
}

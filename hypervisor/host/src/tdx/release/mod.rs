//! Giving HKIDs out and taking them back: the one coordinator of everything that needs the module's key table.
//!
//! TDH.MNG.CREATE, TDH.MNG.VPFLUSHDONE and TDH.MNG.KEY.FREEID lock that table for themselves, and TDH.PHYMEM.CACHE.WB
//! keeps it shared for as long as it runs. So they take turns here, and none of them spins on a busy module.
//!
//! One pass of TDH.PHYMEM.CACHE.WB over a package serves all TDs that were flushed before it began. A clock that ticks
//! at every flush and at every pass's start tells which passes count for whom: TDs that end together share one.

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

/// How long somebody waits for a turn, in microseconds. A turn is a few calls, or one write-back of the caches of all
/// packages.
const TURN_US: u64 = 60_000_000;

/// Hands HKIDs to TDs, and takes them back.
pub struct Coordinator {
    hkids: Hkids,
    turn: Mutex<Turn>,
    /// Those who wait for their turn to flush. Who wants to write back lets them go first, and does it for them too.
    flushing: AtomicU32,
}

/// What whoever has the turn works on.
#[derive(Default)]
struct Turn {
    clock: u64,
    packages: BTreeMap<u32, Package>,
}

/// A TD that is to give its HKID back.
#[derive(Clone, Copy)]
pub struct Ending<'a> {
    /// Its memory, with its root page and its HKID.
    pub map: &'a PrivateMap,
    /// Its vCPUs.
    pub vcpus: &'a dyn Vcpus,
    /// How far its release is.
    pub release: &'a Release,
}

/// The vCPUs of a TD that is to give its HKID back. They are out of the guest; while the TD's map is closed, none is
/// entered or gets associated with a CPU in another way.
pub trait Vcpus: Sync {
    /// The CPUs that one or more of them are associated with.
    fn cpus(&self) -> Vec<u32>;

    /// TDH.VP.FLUSH of those that are associated with the calling CPU, which are so no more afterwards. It may be called
    /// on a CPU that has none, and it runs with interrupts off.
    ///
    /// # Errors
    /// The first call that failed; that vCPU is still associated.
    fn flush_here(&self) -> Result<(), Error>;
}

/// How far a TD's release is. It is kept with the TD, so that a release that got stuck goes on from there.
#[derive(Debug)]
pub struct Release {
    hkid: u16,
    stage: Mutex<Stage>,
}

impl Release {
    /// Of a TD whose key has this number.
    #[must_use]
    pub const fn new(hkid: u16) -> Self {
        Self {
            hkid,
            stage: Mutex::new(Stage::Keyed),
        }
    }
}

/// What a release took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Microseconds for closing the TDs and flushing their vCPUs, TDH.MNG.VPFLUSHDONE included.
    pub flush_us: u64,
    /// The packages whose caches were written back; one is missing when another release had done it meanwhile.
    pub write_back: Vec<WriteBack>,
    /// Microseconds for TDH.MNG.KEY.FREEID.
    pub free_us: u64,
}

/// What it took to write one package's caches back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteBack {
    /// The package.
    pub package: u32,
    /// Microseconds.
    pub us: u64,
    /// How often an interrupt came first.
    pub interruptions: u32,
}

impl Coordinator {
    /// Of these HKIDs.
    #[must_use]
    pub fn new(hkids: Hkids) -> Self {
        Self {
            hkids,
            turn: Mutex::new(Turn::default()),
            flushing: AtomicU32::new(0),
        }
    }

    /// The HKIDs.
    pub const fn hkids(&self) -> &Hkids {
        &self.hkids
    }

    /// TDH.MNG.CREATE with an HKID of the pool: a TD whose root page is `page`.
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

    /// Takes the HKIDs of all these TDs back, as far as it goes with each; the results are in their order. Asking for
    /// one that has none any more is harmless, and for one that got stuck it goes on from there.
    ///
    /// It waits: for the CPUs of the vCPUs, for its turn, for the caches. It is called with interrupts on, and not in a
    /// call from another CPU.
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

    /// TDH.MNG.VPFLUSHDONE: the point of no return.
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

    /// Writes the caches of those packages back for which that was not begun since the last of these TDs was flushed.
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

    /// TDH.MNG.KEY.FREEID for those that got so far.
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

    /// Waits for the turn; `None` when it did not come in time.
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
    /// The time, which no two events share.
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Whether the package's caches were written back by a pass that began after that time.
    fn is_written(&self, package: u32, after: Option<u64>) -> bool {
        let package = self.packages.get(&package);
        package.is_some_and(|package| Some(package.written()) > after)
    }
}

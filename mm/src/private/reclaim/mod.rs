//! Bulk reclaim: taking everything back from a TD that has no key, with one SEAMCALL for each page of any size.
//!
//! CPUs join, perform steps, and leave. A step is short, and other CPUs continue an unfinished job. No CPU waits for
//! another. Work is handed out in regions, each within one GiB of guest-physical addresses. Successive regions come
//! from different GiBs, so that two CPUs seldom touch the same entries of the PAMT. The largest pages come first: GiBs,
//! then 2 MiB, then the rest. The frames of a region are cleared while they are reclaimed, and can be allocated when
//! the region is done.
//!
//! No lock is taken for a page of 4 KiB: a CPU takes a page table out of the mirror and works on it alone.

mod clearing;
mod handout;
mod home;
mod job;
mod report;
mod root;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::fmt;
use core::ops::Range;

use seam::abi::{Leaf as SeamLeaf, PAGE_1G, PAGE_2M};
use seam::call::SeamCall;
use seam::page::{Donated, Page};
use seam::retry::Wait;

use super::error::Error;
use super::mirror::{ENTRIES, filled};
use super::pool::Pool;
use super::root::Mode;
use super::{Cpu, PrivateMap};
use handout::{Handout, Stage, Turn};
use job::{Context, Job, MAX_CALLS, Work};
use report::{Refusals, Tally};
use root::{Root, Way};
use sync::atomic::{AtomicBool, Ordering::SeqCst};
use sync::{Mutex, MutexGuard};

pub(super) use clearing::Left;
pub use clearing::{ClearPolicy, Clearing, NoPolicy};
pub use report::{Clock, Progress, Reclaimed, Refusal};

/// Parameters of a reclaim.
#[derive(Clone, Copy, Debug)]
pub struct ReclaimOptions {
    /// Number of CPUs that may work on it at the same time, at least 1. More may, but find less to do.
    pub cpus: u32,
    /// Treatment of the pages' content.
    pub clearing: Clearing,
    /// The module's own HKID, under which the TDR is written back.
    pub global_hkid: u16,
}

/// Result of a call to [`Reclaim::work`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A step was done; there may be more.
    More,
    /// Other CPUs hold all remaining work. If they do not continue, this CPU can take it over later.
    Idle,
    /// The module has refused all remaining pages repeatedly. [`Reclaim::last_refusal`] says why, [`Reclaim::retry`]
    /// starts another try. The pages stay the TD's; nothing is lost.
    Stuck,
    /// Every page is back or in quarantine.
    Done,
}

/// The reclaim of one TD's memory.
///
/// `M` is the TD's map: a reference, an `Arc`, or anything else that lends it.
pub struct Reclaim<M> {
    map: M,
    shared: Shared,
    handout: Handout,
    lanes: Box<[Lane]>,
    root: Mutex<Root>,
    global_hkid: u16,
    /// Number of directory entries in one region.
    region: usize,
    total: u64,
    began_ns: u64,
}

/// State shared by all jobs.
struct Shared {
    clearing: Clearing,
    /// Numbers of the GiBs that hold something.
    gibs: Box<[u32]>,
    rest: Rest,
    control: Box<[Mutex<Option<Page<Donated>>>]>,
    refusals: Mutex<Refusals>,
    /// True once the module has shut down: no SEAMCALL is made, and the module's pages go to quarantine.
    is_written_off: AtomicBool,
}

/// A place at which a CPU works. Its unit of work stays when the CPU leaves.
struct Lane {
    job: Mutex<Option<Job>>,
    tally: Tally,
}

/// Counts of the items left after the private pages: directories, tables above them, control pages, stranded pages.
struct Rest {
    directories: usize,
    uppers: usize,
    pages: usize,
    stranded: usize,
}

/// An item of [`Rest`], by its number within its kind.
enum Control {
    Directory(usize),
    Upper(usize),
    Page(usize),
    Stranded,
}

impl Rest {
    const fn count(&self) -> usize {
        self.directories + self.uppers + self.pages + self.stranded
    }

    fn at(&self, number: usize) -> Control {
        let uppers = self.directories;
        let pages = uppers + self.uppers;
        let stranded = pages + self.pages;
        if number < uppers {
            Control::Directory(number)
        } else if number < pages {
            Control::Upper(number - uppers)
        } else if number < stranded {
            Control::Page(number - pages)
        } else {
            Control::Stranded
        }
    }
}

impl<M: Borrow<PrivateMap>> Reclaim<M> {
    /// Begins to reclaim everything from a TD without a key: the pages in its map, then `control`, the pages of its
    /// vCPUs and its TDCX.
    ///
    /// # Errors
    /// [`Error::NotKeyless`], [`Error::NoHeap`]; map and pages are returned to the caller.
    pub fn new(
        map: M,
        control: Vec<Page<Donated>>,
        options: ReclaimOptions,
        clock: &impl Clock,
    ) -> Result<Self, (Error, M, Vec<Page<Donated>>)> {
        match Self::prepare(map.borrow(), control.len(), options) {
            Ok((mut shared, lanes)) => {
                for (place, page) in shared.control.iter_mut().zip(control) {
                    *place = Mutex::new(Some(page));
                }
                let total = map.borrow().holding().bytes();
                let region = region_entries(total, options.cpus);
                let regions = (ENTRIES / region * shared.gibs.len()) as u64;
                let rest = shared.rest.count().div_ceil(MAX_CALLS) as u64;
                Ok(Self {
                    // Each region comes once for its large pages and once for its small ones.
                    handout: Handout::new([2 * regions, rest, 1]),
                    shared,
                    lanes,
                    root: Mutex::new(Root::InMap),
                    global_hkid: options.global_hkid,
                    region,
                    total,
                    began_ns: clock.ns(),
                    map,
                })
            }
            Err(error) => Err((error, map, control)),
        }
    }

    /// Performs the fallible part of [`Self::new`].
    fn prepare(
        map: &PrivateMap,
        control: usize,
        options: ReclaimOptions,
    ) -> Result<(Shared, Box<[Lane]>), Error> {
        if map.mode() != Mode::Keyless {
            return Err(Error::NotKeyless);
        }
        let gibs = map.mirror.occupied()?;
        let rest = Rest {
            directories: gibs.len(),
            uppers: map.mirror.uppers.count(),
            pages: control,
            stranded: map.holding().stranded as usize,
        };
        let lanes = filled(options.cpus.max(1).into(), || Lane {
            job: Mutex::new(None),
            tally: Tally::default(),
        })?;
        let shared = Shared {
            clearing: options.clearing,
            gibs,
            rest,
            control: filled(control as u64, || Mutex::new(None))?,
            refusals: Mutex::new(Refusals::new()),
            is_written_off: AtomicBool::new(false),
        };
        Ok((shared, lanes))
    }

    /// Performs a step: at most 8 SEAMCALLs, each repeated as the retry policy has it, a question to the module about a
    /// page that it refused, and 2 MiB cleared. `lane` is a number that no other CPU uses, preferably below
    /// [`ReclaimOptions::cpus`].
    pub fn work<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        lane: u32,
        clock: &impl Clock,
    ) -> Step {
        let own = lane as usize % self.lanes.len();
        let Some((number, mut job)) = self.enter(own) else {
            return Step::Idle;
        };
        if job.is_none() {
            *job = match self.handout.next() {
                Turn::Unit(Stage::Root, _) => return self.finish_root(cpu, own, clock),
                Turn::Unit(stage, unit) => Some(Job::new(self.unit(stage, unit))),
                Turn::Stuck => return Step::Stuck,
                Turn::Done => return Step::Done,
                Turn::Wait => {
                    drop(job);
                    return self.help(cpu, own, clock);
                }
            };
        }
        self.step(cpu, number, job, clock)
    }

    /// Returns a free lane, the CPU's own if possible.
    fn enter(&self, own: usize) -> Option<(usize, MutexGuard<'_, Option<Job>>)> {
        let all = self.lanes.len();
        (own..own + all).find_map(|number| {
            let number = number % all;
            Some((number, self.lanes[number].job.try_lock()?))
        })
    }

    /// Continues a job that no other CPU works on now.
    fn help<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        own: usize,
        clock: &impl Clock,
    ) -> Step {
        let all = self.lanes.len();
        let left = (own..own + all).find_map(|number| {
            let number = number % all;
            let job = self.lanes[number].job.try_lock()?;
            job.is_some().then_some((number, job))
        });
        match left {
            Some((number, job)) => self.step(cpu, number, job, clock),
            None => Step::Idle,
        }
    }

    fn step<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        number: usize,
        mut lane: MutexGuard<'_, Option<Job>>,
        clock: &impl Clock,
    ) -> Step {
        let Some(job) = &mut *lane else {
            return Step::Idle;
        };
        let map = self.map.borrow();
        let stepped = map.keyless(|tdr| {
            let context = Context {
                shared: &self.shared,
                map,
                tdr,
                cpu,
            };
            Ok(job.step(&context, clock))
        });
        let Ok((step, is_over)) = stepped else {
            return Step::Idle;
        };
        self.lanes[number].tally.add(&step);
        if is_over {
            let (took, left) = job.result();
            map.stock.remove(took.pages, took.sept);
            *lane = None;
            self.handout.finish(left);
        }
        Step::More
    }

    fn finish_root<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        own: usize,
        clock: &impl Clock,
    ) -> Step {
        let begun = clock.ns();
        let mut step = Reclaimed::default();
        let calls = || {
            let calls = |leaf| cpu.tdh.counters().leaf(leaf).calls;
            [
                calls(SeamLeaf::PhymemPageReclaim),
                calls(SeamLeaf::PhymemPageWbinvd),
            ]
        };
        let [reclaims, wbinvds] = calls();
        let way = Way {
            global_hkid: self.global_hkid,
            keyid: self.map.borrow().keyid,
            refusals: &self.shared.refusals,
            is_written_off: self.shared.is_written_off.load(SeqCst),
        };
        let is_gone = self
            .root
            .lock()
            .step(self.map.borrow(), cpu, way, &mut step);
        let [more_reclaims, more_wbinvds] = calls();
        step.reclaim_calls = more_reclaims - reclaims;
        step.wbinvd_calls = more_wbinvds - wbinvds;
        step.reclaim_ns = clock.ns() - begun;
        self.lanes[own].tally.add(&step);
        self.handout.finish(u64::from(!is_gone));
        Step::More
    }

    fn unit(&self, stage: Stage, unit: u64) -> Work {
        let unit = unit as usize;
        match stage {
            Stage::Pages => {
                let gibs = self.shared.gibs.len();
                let parts = ENTRIES / self.region;
                let is_small = unit >= gibs * parts;
                let unit = unit % (gibs * parts);
                let gib = self.shared.gibs[scattered(unit % gibs, gibs)];
                let entries = part(unit / gibs, self.region);
                if is_small {
                    let open = None;
                    Work::Small { gib, entries, open }
                } else {
                    Work::Large { gib, entries }
                }
            }
            Stage::Rest | Stage::Root => {
                let items = part(unit, MAX_CALLS);
                let items = items.start..items.end.min(self.shared.rest.count());
                Work::Rest { items }
            }
        }
    }

    /// Starts another try for the remaining pages when the work is [`Step::Stuck`]. Returns whether it was.
    pub fn retry(&self) -> bool {
        self.handout.retry()
    }

    /// Returns the number of control pages not reclaimed yet, including the TDR.
    pub fn control_left(&self) -> u64 {
        let all = self.shared.control.iter();
        let pages = all.filter(|page| page.lock().is_some()).count() as u64;
        pages + u64::from(!matches!(*self.root.lock(), Root::Gone))
    }

    /// Returns whether the work has stopped with pages left that the module may release later.
    pub fn is_stuck(&self) -> bool {
        self.handout.phase() == Turn::Stuck
    }

    /// Gives up the pages of a module that has shut down: the work continues, without SEAMCALLs, until every page is in
    /// quarantine.
    pub fn write_off(&self) {
        self.shared.is_written_off.store(true, SeqCst);
        self.retry();
    }

    /// Returns the progress so far.
    pub fn progress(&self, clock: &impl Clock) -> Progress {
        let mut reclaimed = Reclaimed::default();
        for lane in &self.lanes {
            lane.tally.add_to(&mut reclaimed);
        }
        let phase = self.handout.phase();
        Progress {
            reclaimed,
            total: self.total,
            quarantined: self.shared.refusals.lock().quarantined(),
            elapsed_ns: clock.ns().saturating_sub(self.began_ns),
            is_done: phase == Turn::Done,
            is_stuck: phase == Turn::Stuck,
        }
    }

    /// Returns the first few hundred pages that are in quarantine because the module will not release them.
    pub fn quarantined(&self) -> Vec<Refusal> {
        self.shared.refusals.lock().listed().to_vec()
    }

    /// Returns the last page that the module refused but may release later.
    pub fn last_refusal(&self) -> Option<Refusal> {
        self.shared.refusals.lock().last()
    }

    /// Returns the TD's map.
    pub fn map(&self) -> &PrivateMap {
        self.map.borrow()
    }
}

impl<M: Borrow<PrivateMap>> fmt::Debug for Reclaim<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reclaim")
            .field("map", self.map.borrow())
            .field("at", &self.handout.phase())
            .finish_non_exhaustive()
    }
}

/// Permutes the numbers below `count` so that neighbours end up far apart: memory at neighbouring addresses is often
/// behind one memory controller, and successive CPUs should use all of them.
const fn scattered(number: usize, count: usize) -> usize {
    // The golden ratio keeps neighbours apart.
    let mut stride = count - count * 382 / 1000;
    while !are_coprime(stride, count) {
        stride += 1;
    }
    number * stride % count
}

const fn are_coprime(mut a: usize, mut b: usize) -> bool {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// Returns the range of part `number` when each part has `size` items.
const fn part(number: usize, size: usize) -> Range<usize> {
    number * size..(number + 1) * size
}

/// Returns the number of directory entries in one region: a quarter of a CPU's share, rounded down to a power of two,
/// and at most all entries of a directory.
fn region_entries(total: u64, cpus: u32) -> usize {
    let bytes = total / (4 * u64::from(cpus.max(1)));
    let bytes = bytes.clamp(PAGE_2M, PAGE_1G);
    1 << (bytes / PAGE_2M).ilog2()
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn scattered_numbers_are_all_there_once_and_few_of_them_lie_in_any_quarter() {
        for count in 1..500 {
            let mut seen = vec![false; count];
            let order: Vec<_> = (0..count).map(|n| scattered(n, count)).collect();
            order.iter().for_each(|n| seen[*n] = true);
            assert!(seen.iter().all(|seen| *seen), "{count}");
            if count >= 100 {
                for eight in order.windows(8) {
                    let quarter = |q| eight.iter().filter(|n| **n * 4 / count == q).count();
                    assert!(
                        (0..4).all(|q| (1..=4).contains(&quarter(q))),
                        "{count}: {eight:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_region_is_a_quarter_of_a_cpus_share_between_2_mib_and_1_gib() {
        const GIB: u64 = 1 << 30;
        for (total, cpus, mib) in [
            (18 * GIB, 4, 1024),
            (18 * GIB, 64, 64),
            (GIB, 224, 2),
            (0, 1, 2),
            (400 * GIB, 64, 1024),
            (2048 * GIB, 224, 1024),
        ] {
            assert_eq!(region_entries(total, cpus) * 2, mib, "{total:#x} {cpus}");
        }
    }
}

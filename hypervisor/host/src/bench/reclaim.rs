//! Measures how long it takes to reclaim a TD's memory in each supported method.
//!
//! Each method is measured on a fresh TD that nothing else can reach. One CPU does all the work, so that the comparison is
//! between the ways and not between the CPUs. The hypervisor's ways run its production code. The page-by-page method of
//! Linux is modelled here: it removes one page at a time, so that each page has a tracking round of its own.

use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use core::ops::Range;
use core::str::FromStr;

use mm::private::{Clearing, Error as MapError, Kick, NoAnswer, Outcome};
use seam::abi::{PAGE_2M, PAGE_4K, PageSize};
use seam::address::Gpa;

use crate::platform::{Platform, Running, Samples};
use crate::td::{
    Td,
    end::Way,
    error::Error,
    host::Host,
    life::State,
    meter::{Meter, Summary},
    registry::Tds,
};

/// The TD's number within the benchmark's registry.
const ID: u32 = 1;
/// Microseconds to wait for a vCPU to enter the guest.
const START_US: u64 = 60_000_000;
/// Number of calls over which the cost of a SEAMCALL is averaged.
const PROBES: u64 = 512;

/// A method to reclaim a TD's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Pages of 4 KiB, one by one, each with its own tracking round.
    PerPage,
    /// Pages of 4 KiB by dynamic removal.
    Dynamic,
    /// Release of the HKID first, then pages of 4 KiB.
    Terminate4k,
    /// Release of the HKID first, then pages of 2 MiB.
    Terminate2m,
}

impl Method {
    /// All ways.
    pub const ALL: [Self; 4] = [
        Self::PerPage,
        Self::Dynamic,
        Self::Terminate4k,
        Self::Terminate2m,
    ];

    /// Returns the name that the console uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PerPage => "per-page",
            Self::Dynamic => "dynamic",
            Self::Terminate4k => "terminate-4k",
            Self::Terminate2m => "terminate-2m",
        }
    }

    const fn size(self) -> PageSize {
        match self {
            Self::Terminate2m => PageSize::Size2M,
            _ => PageSize::Size4K,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|method| method.name() == word)
            .ok_or(())
    }
}

/// Parameters of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The method to reclaim.
    pub method: Method,
    /// Lets the TD's vCPUs run meanwhile.
    pub spinning: bool,
    /// The method to clear the pages' content.
    pub clearing: Clearing,
}

/// Result of a measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Reclaimed private memory, in pages of 4 KiB.
    pub pages_4k: u64,
    /// Microseconds from the first call to the last page.
    pub us: u64,
    /// Microseconds from the first call until the HKID was free.
    pub hkid_free_us: u64,
    /// Rounds of kicks, excluding those that stop the vCPUs for good.
    pub kicks: u64,
    /// Microseconds spent in these rounds.
    pub kick_us: u64,
    /// Microseconds spent in SEAMCALLs: for each leaf, the number of calls times the mean of the first few thousand.
    pub in_calls_us: u64,
    /// Nanoseconds of a nearly empty SEAMCALL (TDH.PHYMEM.PAGE.RDMD), averaged over some hundred calls.
    pub call_ns: u64,
    /// The phases, with the SEAMCALLs of each.
    pub summary: Summary,
}

impl Measured {
    /// Returns the number of SEAMCALLs.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.summary.calls().iter().map(|(_, count)| count).sum()
    }
}

/// Builds a TD and measures how its memory is reclaimed. `like` is the host whose settings the benchmark's host copies.
///
/// # Errors
/// [`Error`]. The TD is then terminated as well, as far as possible.
pub fn run<P: Running>(
    like: &Host<'_, P>,
    config: &config::Td,
    image: Option<&[u8]>,
    run: Run,
) -> Result<Measured, Error> {
    let host = Host {
        capabilities: like.capabilities.clone(),
        clearing: run.clearing,
        ..*like
    };
    // `prepare` maps the memory, in pages of the size that the method needs.
    let config = config::Td {
        populate: config::Populate::Demand,
        console: config::TdConsole::Serial,
        disk: Vec::new(),
        ..config.clone()
    };
    let tds = Tds::new(host, Vec::from([(config, image)]));
    let td = tds.create(ID)?;
    let measured = prepare(&tds, &td, run).and_then(|range| measure(&tds, &td, range, run));
    if measured.is_err() {
        tds.destroy(ID, Way::Terminate)?;
    }
    measured
}

/// Maps the TD's memory and starts its vCPUs if requested. Returns the range of memory to reclaim.
fn prepare<P: Platform>(tds: &Tds<'_, P>, td: &Td, run: Run) -> Result<Range<u64>, Error> {
    let host = tds.host();
    let map = td.map().ok_or(Error::State(td.state()))?;
    // The guest may run in the memory of its image.
    let low = td.layout().parts().next().unwrap_or_default();
    let range = td.image_end().next_multiple_of(PAGE_2M)..low.end;
    let size = run.method.size();
    for gpa in range.clone().step_by(size.bytes() as usize) {
        match host.with_cpu(|cpu| map.map(cpu, Gpa(gpa), size)) {
            Ok(()) | Err(MapError::Occupied) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if run.spinning {
        tds.resume(ID)?;
        let start = host.platform.now_us();
        let is_in = |td: &Td| (0..td.vcpus().count()).any(|index| td.vcpus().user(index).is_some());
        while !is_in(td) {
            if host.platform.now_us() - start > START_US {
                return Err(Error::Runner("no vCPU came to run".into()));
            }
            host.platform.relax();
        }
    }
    Ok(range)
}

/// Reclaims all memory of the TD.
fn measure<P: Running>(
    tds: &Tds<'_, P>,
    td: &Td,
    range: Range<u64>,
    run: Run,
) -> Result<Measured, Error> {
    let host = tds.host();
    let map = td.map().ok_or(Error::State(td.state()))?;
    let call_ns = call_ns(host, td)?;
    let pages_4k = map.holding().bytes() / PAGE_4K;
    let kick = Timed {
        platform: host.platform,
        inner: td.kick(host.platform),
        rounds: Cell::new(0),
        us: Cell::new(0),
    };
    let mut meter = Meter::new(host.platform);
    let start = host.platform.now_us();
    let work = || {
        match run.method {
            Method::PerPage => meter.phase("remove", || {
                let mut pages = range.step_by(PAGE_4K as usize);
                pages.try_for_each(|gpa| remove(host, td, gpa..gpa + PAGE_4K, &kick))
            })?,
            Method::Dynamic => meter.phase("remove", || remove(host, td, range, &kick))?,
            Method::Terminate4k | Method::Terminate2m => {}
        }
        meter.phase("release", || tds.terminate(ID))?;
        let hkid_free_us = host.platform.now_us() - start;
        meter.phase("reclaim", || tds.destroy(ID, Way::Terminate))?;
        Ok::<_, Error>((hkid_free_us, host.platform.now_us() - start))
    };
    let (done, samples) = host.platform.stopwatch().measure(work).ok_or(Error::Busy)?;
    let (hkid_free_us, us) = done?;
    let summary = meter.finish();
    if let Some(problem) = td.notes().problem {
        return Err(Error::Runner(problem));
    }
    if td.state() != State::Reclaimed {
        return Err(Error::State(td.state()));
    }
    Ok(Measured {
        pages_4k,
        us,
        hkid_free_us,
        kicks: kick.rounds.get(),
        kick_us: kick.us.get(),
        in_calls_us: in_calls_us(&summary, &samples, host.platform.tsc_hz()),
        call_ns,
        summary,
    })
}

/// Removes a range dynamically. Any outcome other than a complete removal is an error.
fn remove<P: Platform>(
    host: &Host<'_, P>,
    td: &Td,
    range: Range<u64>,
    kick: &impl Kick,
) -> Result<(), Error> {
    let map = td.map().ok_or(Error::State(td.state()))?;
    match host.with_cpu(|cpu| map.remove(cpu, range, kick))? {
        Outcome::Removed(_) => Ok(()),
        other => Err(Error::Runner(alloc::format!("removal: {other:?}"))),
    }
}

/// Estimates the microseconds spent in a measurement's calls from the sampled ones.
fn in_calls_us(summary: &Summary, samples: &[Samples], tsc_hz: u64) -> u64 {
    let mean = |leaf| {
        let of = samples.iter().filter(|samples| samples.leaf == leaf);
        let (sum, count) = of.fold((0, 0), |(sum, count), samples| {
            let ticks: u64 = samples.ticks.iter().sum();
            (sum + ticks, count + samples.ticks.len() as u64)
        });
        sum / count.max(1)
    };
    let calls = summary.calls().into_iter();
    let ticks: u64 = calls.map(|(leaf, count)| count * mean(leaf)).sum();
    (u128::from(ticks) * 1_000_000 / u128::from(tsc_hz.max(1))) as u64
}

/// Returns the nanoseconds of a nearly empty SEAMCALL.
fn call_ns<P: Platform>(host: &Host<'_, P>, td: &Td) -> Result<u64, Error> {
    let map = td.map().ok_or(Error::State(td.state()))?;
    let tdh = host.platform.tdh();
    let start = host.platform.now_us();
    for _ in 0..PROBES {
        map.keyed(|tdr| Ok(tdh.phymem_page_rdmd(tdr.hpa())?))?;
    }
    Ok((host.platform.now_us() - start) * 1000 / PROBES)
}

/// A [`Kick`] that counts and times its rounds.
struct Timed<'a, P, K> {
    platform: &'a P,
    inner: K,
    rounds: Cell<u64>,
    us: Cell<u64>,
}

impl<P: Platform, K: Kick> Kick for Timed<'_, P, K> {
    fn kick(&self) -> Result<(), NoAnswer> {
        let start = self.platform.now_us();
        let kicked = self.inner.kick();
        let us = self.platform.now_us() - start;
        self.rounds.set(self.rounds.get() + 1);
        self.us.set(self.us.get() + us);
        kicked
    }
}

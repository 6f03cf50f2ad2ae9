//! Measures how long SEAMCALLs take, with a stopwatch around the instruction.
//!
//! A TD of the benchmark's own is built, shrunk and terminated repeatedly by the same code as any TD. The measurement
//! thus covers the host's real calls in their real order. Calls made for other TDs meanwhile are measured too, except
//! for their TDH.VP.ENTER.

pub mod guest;

use alloc::{string::String, vec::Vec};
use core::ops::Range;

use mm::private::{self, Kick, NoAnswer, NoneRuns, Pool, PrivateMap};
use seam::{
    abi::{
        PAGE_2M, PAGE_4K, PageSize,
        metadata::{sys, td as td_field, vp},
    },
    address::{Gpa, Level},
};
use sync::IrqsOff;

use self::guest::{ACCEPTED, Entered, Wires};
use crate::{
    platform::{Platform, Running, Samples},
    td::{Td, end::Way, error::Error, host::Host, registry::Tds},
};

/// Maximum number of lives of the TD to measure, and the time in microseconds after which no further life begins.
const MAX_ROUNDS: u32 = 100;
const MAX_US: u64 = 10_000_000;
/// Calls of each harmless leaf per round, and entries of a vCPU.
const HARMLESS: usize = 8;
const ENTRIES: usize = 32;

/// The TD's memory in bytes, and its size after shrinking.
const MEMORY: u64 = 16 << 20;
const SHRUNK: u64 = 8 << 20;
const VCPUS: u16 = 2;
/// A large page to split, and a range of another large page to remove page by page. A third, [`ACCEPTED`], is split and
/// promoted again, which requires a guest that has accepted it.
const SPLIT: u64 = 2 * PAGE_2M;
const TAKEN_FROM: u64 = 3 * PAGE_2M;
const TAKEN: Range<u64> = TAKEN_FROM..TAKEN_FROM + 16 * PAGE_4K;

/// Result of a measurement.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Frequency of the time-stamp counter, whose ticks are counted.
    pub tsc_hz: u64,
    /// Number of measured lives of the TD.
    pub rounds: u32,
    /// One entry for each leaf and page size.
    pub leafs: Vec<LeafTime>,
    /// The reason why something could not be measured.
    pub problem: Option<String>,
}

/// Ticks of one leaf.
#[derive(Clone, Copy, Debug)]
pub struct LeafTime {
    /// Name of the leaf in the specification.
    pub leaf: &'static str,
    /// Bytes of the page operand, for leaves whose duration depends on the page size.
    pub page_bytes: Option<u64>,
    /// Number of measured calls.
    pub calls: usize,
    /// The minimum.
    pub min: u64,
    /// The median.
    pub median: u64,
    /// The 99th percentile.
    pub p99: u64,
}

/// Runs the measurement, with an HKID and memory that are not promised to any other TD.
///
/// # Errors
/// A sentence that says why nothing could be measured.
pub fn run<P: Running>(tds: &Tds<'_, P>) -> Result<Measured, String> {
    let shutdown = tds.host().platform.shutdown();
    let measured = match shutdown.problem() {
        Some(down) => Err(down),
        None => measure(tds),
    };
    // A shutdown during the measurement makes its result useless.
    shutdown.problem().map_or(measured, Err)
}

fn measure<P: Running>(tds: &Tds<'_, P>) -> Result<Measured, String> {
    let host = tds.host();
    let free = host.platform.pool().free_bytes();
    if free.saturating_sub(tds.promised()) < 2 * MEMORY {
        return Err(alloc::format!(
            "the scratch TD needs up to {} MiB, and less is free and not reserved for other TDs; terminate a TD",
            (2 * MEMORY) >> 20
        ));
    }
    let image = guest::image();
    let wires = Wires::new(host.platform, VCPUS);
    let scratch = Tds::new(
        Host {
            platform: host.platform,
            coordinator: host.coordinator,
            capabilities: host.capabilities.clone(),
            native: host.native,
            keyid: host.keyid,
            global_hkid: host.global_hkid,
            clearing: host.clearing,
            stop_us: host.stop_us,
            runner: &wires,
        },
        Vec::from([(config(), Some(&*image))]),
    );
    let measured = host.platform.stopwatch().measure(|| lives(&scratch));
    let ((rounds, problem), mut samples) =
        measured.ok_or("a measurement is in progress; try again when it is done")?;
    samples.sort_unstable_by_key(|samples| (samples.leaf, samples.size.map(PageSize::bytes)));
    match problem {
        Some(problem) if rounds == 0 => Err(problem),
        problem => Ok(Measured {
            tsc_hz: host.platform.tsc_hz(),
            rounds,
            leafs: samples.into_iter().filter_map(time).collect(),
            problem,
        }),
    }
}

/// Runs lives of the TD. Returns their number and the problem that occurred, if any.
fn lives<P: Running>(tds: &Tds<'_, P>) -> (u32, Option<String>) {
    let platform = tds.host().platform;
    let start = platform.now_us();
    let mut rounds = 0;
    // A guest that fails to run once is not tried again: everything else can be measured without it.
    let mut guest = Ok(());
    while rounds < MAX_ROUNDS && platform.now_us() - start < MAX_US {
        let lived = live(tds, &mut guest);
        // Terminate the TD whatever the outcome, so that nothing of it stays.
        let ended = tds.destroy(1, Way::Terminate).map(drop);
        if ended.is_err() {
            // The end got stuck, or the TD is unchanged. Memory that does not come back now stays in quarantine.
            _ = tds.retry(1);
            _ = tds.destroy(1, Way::Terminate);
        }
        if let Err(error) = lived.and(ended) {
            return (rounds, Some(alloc::format!("{error}")));
        }
        rounds += 1;
    }
    (rounds, guest.err().map(|error| alloc::format!("{error}")))
}

/// Runs one life that calls every leaf a host needs. The leaves that need a guest are called as long as `guest` is
/// `Ok`.
fn live<P: Running>(tds: &Tds<'_, P>, guest: &mut Result<(), Error>) -> Result<(), Error> {
    let td = tds.create(1)?;
    // Calls that inspect a vCPU require the TD to be runnable.
    tds.resume(1)?;
    let host = tds.host();
    let map = td.map().ok_or(Error::NoHeap)?;
    read(host, &td, map)?;
    change(host, map)?;
    if guest.is_ok() {
        *guest = enter(host, &td).and_then(|()| make_whole(host, map));
    }
    tds.shrink(1, SHRUNK)?;
    Ok(())
}

/// Makes calls that change nothing.
fn read<P: Platform>(host: &Host<'_, P>, td: &Td, map: &PrivateMap) -> Result<(), Error> {
    let platform = host.platform;
    let tdh = platform.tdh();
    for _ in 0..HARMLESS {
        tdh.sys_rd(sys::TDX_FEATURES0.id)?;
        map.keyed(|tdr| Ok(tdh.mng_rd(tdr, td_field::ATTRIBUTES.id)?))?;
        map.keyed(|tdr| Ok(tdh.mem_sept_rd(tdr, Gpa(SPLIT), Level::Pd)?))?;
        map.keyed(|tdr| Ok(tdh.phymem_page_rdmd(tdr.hpa())?))?;
        let held = td.hold(platform, 0).map_err(Error::Vcpu)?;
        tdh.vp_rd(
            held.tdvpr().map_err(Error::Vcpu)?,
            vp::VCPU_STATE_DETAILS.id,
        )?;
    }
    Ok(())
}

/// Splits pages, unblocks pages whose change was given up, and removes pages one by one.
fn change<P: Platform>(host: &Host<'_, P>, map: &PrivateMap) -> Result<(), Error> {
    host.with_cpu(|cpu| {
        given_up(map.demote(cpu, Gpa(SPLIT), PageSize::Size2M, &Unheard))?;
        map.unblock(cpu, Gpa(SPLIT), &NoneRuns)?;
        map.demote(cpu, Gpa(SPLIT), PageSize::Size2M, &NoneRuns)?;
        map.demote(cpu, Gpa(TAKEN_FROM), PageSize::Size2M, &NoneRuns)?;
        given_up(map.remove(cpu, TAKEN, &Unheard))?;
        for gpa in TAKEN.step_by(PAGE_4K as usize) {
            map.unblock(cpu, Gpa(gpa), &NoneRuns)?;
        }
        map.remove(cpu, TAKEN, &NoneRuns)?;
        Ok(())
    })
}

/// Enters the first vCPU repeatedly, from one guest call to the next.
fn enter<P: Running>(host: &Host<'_, P>, td: &Td) -> Result<(), Error> {
    let _off = IrqsOff::new();
    let held = td.hold(host.platform, 0).map_err(Error::Vcpu)?;
    Entered::begin(host.platform, held)?.measure(ENTRIES)
}

/// Splits the page that the guest has accepted, and promotes it again.
fn make_whole<P: Platform>(host: &Host<'_, P>, map: &PrivateMap) -> Result<(), Error> {
    host.with_cpu(|cpu| {
        map.demote(cpu, Gpa(ACCEPTED), PageSize::Size2M, &NoneRuns)?;
        map.promote(cpu, Gpa(ACCEPTED), PageSize::Size2M, &NoneRuns)?;
        Ok(())
    })
}

/// Models vCPUs that do not leave the guest: pages blocked before the kick stay blocked and have to be unblocked. (In
/// reality no vCPU is in the guest.)
struct Unheard;

impl Kick for Unheard {
    fn kick(&self) -> Result<(), NoAnswer> {
        Err(NoAnswer { cpu: u32::MAX })
    }
}

/// Accepts a failure only if it was caused by [`Unheard`].
fn given_up<T>(tried: Result<T, private::Error>) -> Result<(), private::Error> {
    match tried {
        Ok(_) | Err(private::Error::NoAnswer(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns a configuration as an operator would write it.
fn config() -> config::Td {
    let text = alloc::format!(
        "[[file]]\nname = \"scratch\"\npath = \"scratch\"\n[[td]]\nname = \"seam-bench\"\nimage = \"scratch\"\nvcpus = {VCPUS}\n\
         memory = \"{}M\"\npopulate = \"start\"\n",
        MEMORY >> 20
    );
    let mut tds = config::parse(text.as_bytes()).map_or_else(|_| Vec::new(), |config| config.td);
    tds.pop().expect("the text names one TD")
}

fn time(samples: Samples) -> Option<LeafTime> {
    let mut ticks = samples.ticks;
    ticks.sort_unstable();
    let at = |percent: usize| {
        ticks
            .get((ticks.len().checked_sub(1)?) * percent / 100)
            .copied()
    };
    Some(LeafTime {
        leaf: samples.leaf.name(),
        page_bytes: samples.size.map(PageSize::bytes),
        calls: ticks.len(),
        min: at(0)?,
        median: at(50)?,
        p99: at(99)?,
    })
}

//! How long SEAMCALLs take: the host's own code, with a stopwatch around the instruction.
//!
//! A TD of its own is built, shrunk and ended again and again, by the same code as any TD. So what is measured is what the host
//! does, in the order in which it does it; what it does for other TDs meanwhile is measured, too.

use alloc::{string::String, vec::Vec};
use core::ops::Range;

use boot::config;
use mm::{
    private::{NoneRuns, Pool},
    tdvf::{self, Entry, Kind, TAIL_BYTES},
};
use seam::{
    abi::{
        PAGE_2M, PAGE_4K, PageSize,
        metadata::{sys, td as td_field, vp},
    },
    address::{Gpa, Level},
};

use crate::{
    console::host::seam::{LeafTime, SeamBench},
    platform::{Platform, Samples},
    td::{
        end::Way,
        error::Error,
        host::{Host, NoRunner},
        registry::Tds,
    },
    time,
};

/// Lives of the TD that are measured at most, and the time after which no further one is begun.
const MAX_ROUNDS: u32 = 100;
const MAX_US: u64 = 10_000_000;
/// Calls of each harmless leaf in a round.
const HARMLESS: usize = 8;

/// The TD's memory, and what is left of it when it was shrunk.
const MEMORY: u64 = 16 << 20;
const SHRUNK: u64 = 8 << 20;
/// A large page of it that is split, and pages of another that are taken one by one. (Putting pages together takes a guest
/// that has accepted them.)
const SPLIT: u64 = 2 * PAGE_2M;
const SMALL: Range<u64> = 3 * PAGE_2M..3 * PAGE_2M + 16 * PAGE_4K;

/// Measures, with an HKID and memory that no other TD was promised.
///
/// # Errors
/// One sentence: why nothing could be measured.
pub fn run<P: Platform>(tds: &Tds<'_, P>) -> Result<SeamBench, String> {
    let host = tds.host();
    let free = host.platform.pool().free_bytes();
    if free.saturating_sub(tds.promised()) < 2 * MEMORY {
        return Err(alloc::format!(
            "a TD to measure with takes up to {} MiB, and so much is not free and unpromised; end a TD",
            (2 * MEMORY) >> 20
        ));
    }
    let image = image();
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
            runner: &NoRunner,
        },
        Vec::from([(config(), Some(&*image))]),
    );
    let measured = host.platform.stopwatch().measure(|| lives(&scratch));
    let ((rounds, problem), mut samples) =
        measured.ok_or("somebody measures already; try again when that is over")?;
    samples.sort_unstable_by_key(|samples| (samples.leaf, samples.size.map(PageSize::bytes)));
    match problem {
        Some(problem) if rounds == 0 => Err(problem),
        problem => Ok(SeamBench {
            tsc_hz: time::hz(),
            rounds,
            leafs: samples.into_iter().filter_map(time).collect(),
            problem,
        }),
    }
}

/// Lives of the one TD: how many, and what went wrong.
fn lives<P: Platform>(tds: &Tds<'_, P>) -> (u32, Option<String>) {
    let platform = tds.host().platform;
    let start = platform.now_us();
    let mut rounds = 0;
    while rounds < MAX_ROUNDS && platform.now_us() - start < MAX_US {
        let lived = live(tds);
        // Whatever came of it: nothing of it stays.
        let ended = tds.destroy(1, Way::Terminate);
        if let Err(error) = lived.and(ended.map(drop)) {
            return (rounds, Some(alloc::format!("{error}")));
        }
        rounds += 1;
    }
    (rounds, None)
}

/// A life in which every leaf is called that a host needs.
fn live<P: Platform>(tds: &Tds<'_, P>) -> Result<(), Error> {
    let td = tds.create(1)?;
    // Nobody runs it; but what looks at a vCPU wants it to be runnable.
    tds.resume(1)?;
    let platform = tds.host().platform;
    let tdh = platform.tdh();
    let map = td.map().ok_or(Error::NoHeap)?;
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
    tds.host().with_cpu(|cpu| {
        map.demote(cpu, Gpa(SPLIT), PageSize::Size2M, &NoneRuns)?;
        map.remove(cpu, SMALL, &NoneRuns)
    })?;
    tds.shrink(1, SHRUNK)?;
    Ok(())
}

/// A configuration as an operator would write it.
fn config() -> config::Td {
    let text = alloc::format!(
        "[[file]]\nname = \"scratch\"\npath = \"scratch\"\n[[td]]\nname = \"seam-bench\"\nimage = \"scratch\"\nvcpus = 2\n\
         memory = \"{}M\"\npopulate = \"start\"\n",
        MEMORY >> 20
    );
    let mut tds = config::parse(text.as_bytes()).map_or_else(|_| Vec::new(), |config| config.td);
    tds.pop().expect("the text names one TD")
}

/// An image of a few pages that halts if it is ever run.
fn image() -> Vec<u8> {
    const HLT: u8 = 0xF4;
    const BYTES: u32 = 8 * PAGE_4K as u32;
    let firmware = Entry {
        data: 0..BYTES,
        gpa: (1 << 32) - u64::from(BYTES),
        bytes: BYTES.into(),
        kind: Kind::Bfv as u32,
        attributes: 1,
    };
    let metadata = tdvf::metadata_bytes(1);
    let content = alloc::vec![HLT; BYTES as usize - metadata - TAIL_BYTES];
    tdvf::write(&content, &[firmware], &[HLT; TAIL_BYTES])
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

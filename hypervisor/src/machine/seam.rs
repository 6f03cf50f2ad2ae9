//! SEAMCALL counts and the list of HKIDs, as the console reports them.

use alloc::{string::String, vec::Vec};

use console::host::{
    seam::{ExitStats, LeafStats, LeafTime, RetryStats, SeamBench, Stats},
    td::{HkidHolder, HkidLine, HkidReport},
};
use host::{
    bench::seamcalls,
    platform::{Platform, Running},
    td::registry::Tds,
    tdx::hkids::{Hkids, Holder},
};
use seam::{
    abi::Leaf,
    counters::{LeafCounts, RetryCounts},
    retry::Reason,
};

use crate::machine::console_tds::SchedulerView;

/// Returns the machine's counts, summed over all CPUs.
pub fn stats<P: Platform>(platform: &P) -> Stats {
    let counters: Vec<_> = platform
        .cpus()
        .iter()
        .filter_map(|place| platform.counters(place.cpu))
        .collect();
    let counts = |leaf| counters.iter().map(|c| c.leaf(leaf)).sum::<LeafCounts>();
    let leafs: Vec<_> = Leaf::ALL
        .iter()
        .map(|leaf| (leaf.name(), counts(*leaf)))
        .filter(|(_, counts)| counts.calls > 0)
        .collect();
    let total = leafs.iter().map(|(_, counts)| *counts).sum();
    let retries = Reason::ALL.into_iter().map(|reason| {
        let all = counters.iter().map(|c| c.retry(reason));
        let add = |sum: RetryCounts, one: RetryCounts| RetryCounts {
            retries: sum.retries + one.retries,
            given_up: sum.given_up + one.given_up,
        };
        (reason, all.fold(RetryCounts::default(), add))
    });
    Stats {
        leafs: leafs
            .iter()
            .map(|(name, counts)| line(name, *counts))
            .collect(),
        total: line("all", total),
        retries: retries
            .filter(|(_, counts)| *counts != RetryCounts::default())
            .map(|(reason, counts)| RetryStats {
                reason: reason.name(),
                retries: counts.retries,
                given_up: counts.given_up,
            })
            .collect(),
        faults: counters.iter().map(|c| c.faults()).sum(),
        exits: Vec::new(),
        lost_pages: seam::page::lost_pages() as u64,
        lost_hkids: seam::hkid::lost_hkids() as u64,
    }
}

const fn line(leaf: &'static str, counts: LeafCounts) -> LeafStats {
    LeafStats {
        leaf,
        calls: counts.calls,
        busy: counts.busy,
        interrupted: counts.interrupted,
        illegal: counts.illegal,
    }
}

/// Returns the exits of living TDs by reason, without reasons that never occurred.
pub fn exits<P: Platform>(tds: &Tds<'_, P>, scheduler: &dyn SchedulerView) -> Vec<ExitStats> {
    let mut exits: Vec<ExitStats> = Vec::new();
    for id in tds.ids() {
        scheduler.exits(
            id,
            &mut |what, count| match exits.iter_mut().find(|exit| exit.what == what) {
                Some(exit) => exit.count += count,
                None => exits.push(ExitStats { what, count }),
            },
        );
    }
    exits.retain(|exit| exit.count > 0);
    exits
}

/// Measures how long SEAMCALLs take.
///
/// # Errors
/// A sentence that says why nothing could be measured.
pub fn bench<P: Running>(tds: &Tds<'_, P>) -> Result<SeamBench, String> {
    let measured = seamcalls::run(tds)?;
    let leafs = measured.leafs.iter().map(|time| LeafTime {
        leaf: time.leaf,
        page_bytes: time.page_bytes,
        calls: time.calls,
        min: time.min,
        median: time.median,
        p99: time.p99,
    });
    Ok(SeamBench {
        tsc_hz: measured.tsc_hz,
        rounds: measured.rounds,
        leafs: leafs.collect(),
        problem: measured.problem,
    })
}

/// Returns the HKIDs and their owners. `tds` are the TDs, if there are any.
pub fn hkids<P: Platform>(hkids: &Hkids, tds: Option<&Tds<'_, P>>) -> HkidReport {
    let owner = |hkid| {
        let tds = tds?;
        let mut ids = tds.ids();
        let id = ids.find(|id| tds.get(*id).is_some_and(|td| td.hkid() == Some(hkid)))?;
        Some(tds.config(id)?.name.clone())
    };
    let list = hkids.list();
    let count = hkids.count();
    let line = |(hkid, holder): &(u16, Holder)| {
        let (holder, reason) = match holder {
            Holder::Nobody => return None,
            Holder::Module => (HkidHolder::Module, None),
            Holder::Td => (HkidHolder::Td, None),
            Holder::Quarantined(reason) => (HkidHolder::Quarantine, Some(reason.clone())),
        };
        Some(HkidLine {
            hkid: *hkid,
            holder,
            td: owner(*hkid),
            reason,
        })
    };
    HkidReport {
        first: list.first().map_or(0, |(hkid, _)| *hkid),
        total: count.total,
        free: count.free,
        used: count.used,
        quarantined: count.quarantined,
        taken: list.iter().filter_map(line).collect(),
    }
}

//! TDH.SYS.CONFIG: plans the TDMRs over the free memory, takes their PAMTs out of the ledger, and configures the
//! module.

use alloc::{format, vec::Vec};

use mm::{
    frames,
    private::{Ledger, Pool},
    tdmr::{self, Limits, MemoryMap, Plan, Span, UsableRegion},
};
use seam::{
    abi::{PageSize, TDMR_INFO_ALIGNMENT, TdmrInfo},
    address::Hpa,
    hkid::Hkid,
    module::Info,
    page::{Clean, Page},
};
use zerocopy::IntoBytes;

use super::{Failed, MachineInfo};
use crate::platform::Platform;

/// Plans the TDMRs and configures the module. Returns the number of calls, and the plan that the module was given.
///
/// If the module accepts the plan, the PAMTs belong to it, and TDs get only memory that the plan assigns to them.
/// Otherwise the frames of the PAMTs are free again.
pub fn configure<P: Platform>(
    platform: &P,
    ledger: &impl Ledger,
    machine: &MachineInfo<'_>,
    info: &Info,
    global: &Hkid,
) -> (u64, Result<Plan, Failed>) {
    let taken = plan_for(ledger, machine, info).and_then(|plan| {
        take_pamt(ledger, plan.pamt.spans())?;
        Ok(plan)
    });
    let plan = match taken {
        Ok(plan) => plan,
        Err(failed) => return (0, Err(failed)),
    };
    let infos: Vec<TdmrInfo> = plan.tdmrs.iter().map(tdmr::Tdmr::info).collect();
    let (calls, outcome) = match Buffers::with(platform, &infos) {
        Some(buffers) => {
            let count = infos.len() as u64;
            let outcome = platform.tdh().sys_config(buffers.list(), count, global);
            platform.pool().give(buffers.pages.into_iter());
            (1, outcome.map_err(Failed::from))
        }
        None => (
            0,
            Err(Failed::because("no memory for the list of TDMRs").passing()),
        ),
    };
    match outcome {
        Ok(()) => {
            let private = plan.private.spans().iter();
            let private = private.map(|span| (span.start, span.end)).collect();
            drop(ledger.with(|frames| frames.set_for_tds(private)));
        }
        Err(_) => give_back(ledger, plan.pamt.spans()),
    }
    (calls, outcome.map(|()| plan))
}

/// Plans over the currently free memory. Memory that is in use now never goes to a TD, even if it is freed later.
fn plan_for(ledger: &impl Ledger, machine: &MachineInfo<'_>, info: &Info) -> Result<Plan, Failed> {
    let free = ledger.free_ranges();
    let cmrs: Vec<Span> = info
        .cmrs
        .iter()
        .map(|cmr| Span::new(cmr.base, cmr.base.saturating_add(cmr.size)))
        .collect();
    let map = MemoryMap {
        cmrs: &cmrs,
        usable: &by_node(&free, machine.memory_nodes),
        excluded: &[],
    };
    let limits = Limits {
        max_tdmrs: info.max_tdmrs.min(MAX_LISTED),
        max_reserved_per_tdmr: info.max_reserved_per_tdmr,
        pamt_entry_bytes: [
            info.pamt_4k_entry_size,
            info.pamt_2m_entry_size,
            info.pamt_1g_entry_size,
        ],
        first_hkid_address: 1 << (machine.key_ids.max_pa - machine.key_ids.bits),
    };
    tdmr::plan(&map, &limits).map_err(|e| Failed::because(format!("no TDMRs: {e}")))
}

/// Splits the ranges at the boundaries of NUMA nodes.
fn by_node(ranges: &[frames::Range], nodes: &[(u64, u64, u32)]) -> Vec<UsableRegion> {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    let mut regions = Vec::new();
    for &(start, end) in ranges {
        let mut at = start;
        let mut push = |to: u64, node| {
            let to = to.min(end);
            if at < to {
                let span = Span::new(at, to);
                regions.push(UsableRegion { span, node });
                at = to;
            }
        };
        for &(node_start, node_end, node) in &nodes {
            push(node_start, None);
            push(node_end, Some(node));
        }
        push(end, None);
    }
    regions
}

/// Takes the memory of the PAMTs out of the ledger: all of it or none.
fn take_pamt(ledger: &impl Ledger, spans: &[Span]) -> Result<(), Failed> {
    for (taken, span) in spans.iter().enumerate() {
        if let Err(e) = ledger.with(|frames| frames.alloc_range((span.start, span.end))) {
            give_back(ledger, &spans[..taken]);
            return Err(Failed::because(format!("no memory for the PAMT: {e}")));
        }
    }
    Ok(())
}

fn give_back(ledger: &impl Ledger, taken: &[Span]) {
    let ranges = taken.iter().map(|span| (span.start, span.end));
    for frame in ranges.flat_map(frames::blocks_of) {
        if let Err(e) = ledger.with(|frames| frames.free(frame)) {
            log::error!("a frame of the PAMT: {e}");
        }
    }
}

/// Maximum number of TDMRs that one page can list.
const MAX_LISTED: u16 = (PageSize::Size4K.bytes() / size_of::<u64>() as u64) as u16;
/// Bytes from one TDMR_INFO to the next.
const STRIDE: u64 = (size_of::<TdmrInfo>() as u64).next_multiple_of(TDMR_INFO_ALIGNMENT);

/// Input of TDH.SYS.CONFIG: a page that lists TDMR_INFOs, and the pages that hold them.
struct Buffers {
    pages: Vec<Page<Clean>>,
}

impl Buffers {
    /// Allocates and fills the buffers. Returns `None` if there is not enough memory; everything taken is free again.
    fn with<P: Platform>(platform: &P, infos: &[TdmrInfo]) -> Option<Self> {
        let per_page = (PageSize::Size4K.bytes() / STRIDE) as usize;
        let count = 1 + infos.len().div_ceil(per_page);
        let pool = platform.pool();
        let pages: Vec<_> = (0..count)
            .map_while(|_| pool.take(PageSize::Size4K))
            .collect();
        if pages.len() < count {
            pool.give(pages.into_iter());
            return None;
        }
        let buffers = Self { pages };
        let places = buffers.pages[1..]
            .iter()
            .flat_map(|page| (0..per_page as u64).map(|index| Hpa(page.hpa().0 + index * STRIDE)));
        for ((info, place), entry) in infos.iter().zip(places).zip(0..) {
            platform.write(place, info.as_bytes());
            let entry = Hpa(buffers.list().0 + entry * size_of::<u64>() as u64);
            platform.write(entry, &place.0.to_le_bytes());
        }
        Some(buffers)
    }

    fn list(&self) -> Hpa {
        self.pages[0].hpa()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_cut_at_the_nodes() {
        let nodes = [(40, 60, 1), (0, 30, 0)];
        let regions = by_node(&[(10, 50), (55, 70)], &nodes);
        let expected = [
            (10, 30, Some(0)),
            (30, 40, None),
            (40, 50, Some(1)),
            (55, 60, Some(1)),
            (60, 70, None),
        ];
        let regions: Vec<_> = regions
            .iter()
            .map(|r| (r.span.start, r.span.end, r.node))
            .collect();
        assert_eq!(regions, expected);
    }
}

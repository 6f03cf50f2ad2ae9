//! The console's report of VT-d units.

use alloc::{format, string::ToString, vec::Vec};

use console::host::{
    Hex,
    iommu::{Dma, Faults, Interrupts, Iommu, Reserved, Unit},
};
use vtd::{UnitReport, UnitState, books, reserved::Claim};

use crate::iommu::{self, Hardware};

/// Returns what keeps devices from memory.
pub fn dma() -> Dma {
    let why_not =
        match iommu::get() {
            Err(why) => Some(why.to_string()),
            Ok(_) if iommu::blocks_all() => None,
            Ok(units) => Some(units.problems().into_iter().next().unwrap_or_else(|| {
                format!("no unit remaps {} functions", iommu::uncovered().len())
            })),
        };
    Dma {
        blocked_by_vtd: why_not.is_none(),
        why_not,
    }
}

/// Returns the units, and the requests that they blocked.
pub fn look() -> Iommu {
    let units = iommu::get().ok();
    let faults = |books: &books::Books| books.entries().iter().map(faults_of).collect();
    let with_books =
        |look: fn(&books::Books) -> u64| units.map_or(0, |units| units.with_books(look));
    Iommu {
        dma: dma(),
        units: units.map_or_else(Vec::new, |units| {
            units.units().into_iter().map(unit).collect()
        }),
        interrupts: units.and_then(interrupts),
        faults: units.map_or_else(Vec::new, |units| units.with_books(faults)),
        other_faults: with_books(books::Books::others),
        lost: with_books(books::Books::lost),
        reserved: iommu::reserved().iter().map(reserved).collect(),
    }
}

fn unit(report: UnitReport) -> Unit {
    let problem = match report.state {
        UnitState::On => None,
        UnitState::Failed(why) => Some(why),
    };
    let (capability, extended) = report.capabilities.unzip();
    Unit {
        base: Hex(report.base),
        segment: report.segment,
        works: problem.is_none(),
        problem,
        remaps_interrupts: report.remaps_interrupts,
        taken_over: report.taken_over,
        has_rest: report.has_rest,
        named: report.named,
        capability: capability.map(|value| Hex(value.0)),
        extended_capability: extended.map(|value| Hex(value.0)),
    }
}

fn interrupts(units: &vtd::Iommu<Hardware>) -> Option<Interrupts> {
    let (used, entries) = units.entries()?;
    units.remaps_interrupts().then(|| Interrupts {
        used,
        entries,
        extended: units.has_extended_destinations(),
    })
}

fn faults_of(entry: &books::Entry) -> Faults {
    Faults {
        function: entry.function.to_string(),
        accesses: entry.accesses,
        interrupts: entry.interrupts,
        untold: entry.untold,
        muted: entry.is_muted,
        last: format!("{}: {}", entry.last.request, entry.last.reason),
    }
}

fn reserved(claim: &Claim) -> Reserved {
    Reserved {
        function: claim.function.to_string(),
        start: Hex(claim.range.0),
        end: Hex(claim.range.1),
        blocked: claim.refusal.clone(),
    }
}

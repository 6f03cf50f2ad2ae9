//! Memory that devices use for the firmware (RMRR): kept where nothing else can be, blocked elsewhere.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use boot::RegionKind;
use mm::tdmr::Plan;
use spin::Once;
use vtd::{
    dmar::Dmar,
    reserved::{Claim, Range, claims},
};

use super::buses::Bridges;
use crate::memory;

static CLAIMS: Once<Vec<Claim>> = Once::new();

/// Returns what became of the reserved memory.
#[must_use]
pub fn reserved() -> &'static [Claim] {
    CLAIMS.get().map_or(&[], Vec::as_slice)
}

/// Lets functions keep the firmware's memory that the DMAR reserves for them, where nothing else can be. `plan` is what
/// the TDX module has. Until then they are blocked from it. Returns a sentence for each that stays blocked.
pub fn keep(dmar: &Dmar, plan: Option<&Plan>) -> Vec<String> {
    let module = plan.map_or_else(Vec::new, module_s);
    let mut all = claims(dmar, &Bridges, &firmware_s(), &module);
    let mut functions: Vec<_> = all.iter().map(|claim| claim.function).collect();
    functions.sort_unstable();
    functions.dedup();
    for function in functions {
        let mut own = all.iter_mut().filter(|claim| claim.function == function);
        let kept = own.by_ref().filter(|claim| claim.refusal.is_none());
        let mut kept: Vec<&mut Claim> = kept.collect();
        let ranges: Vec<Range> = kept.iter().map(|claim| claim.range).collect();
        if ranges.is_empty() {
            continue;
        }
        let outcome = match super::get() {
            Ok(iommu) => iommu.keep(function, &ranges).map_err(|e| e.to_string()),
            Err(why) => Err(why.to_string()),
        };
        if let Err(why) = outcome {
            kept.iter_mut()
                .for_each(|claim| claim.refusal = Some(why.clone()));
        }
    }
    CLAIMS
        .call_once(|| all)
        .iter()
        .filter_map(sentence)
        .collect()
}

fn sentence(claim: &Claim) -> Option<String> {
    let why = claim.refusal.as_ref()?;
    Some(format!(
        "{} does not keep the memory at {:#x} that the firmware reserved for it (RMRR): {why}",
        claim.function, claim.range.0
    ))
}

/// Returns the memory that the firmware reserved for itself, ascending.
fn firmware_s() -> Vec<Range> {
    let regions = memory::regions().iter();
    let reserved = regions.filter(|region| region.kind == RegionKind::Reserved);
    let mut ranges: Vec<_> = reserved.map(|region| (region.start, region.end)).collect();
    ranges.sort_unstable();
    ranges
}

/// Returns the memory that the TDX module has or hands out.
fn module_s(plan: &Plan) -> Vec<Range> {
    let spans = plan.private.spans().iter().chain(plan.pamt.spans());
    spans.map(|span| (span.start, span.end)).collect()
}

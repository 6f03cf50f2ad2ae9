//! Whether the machine can confine a function to a TD.

use alloc::{collections::BTreeSet, format, string::String, vec::Vec};

use io::Address;
use vtd::Source;

/// Returns why the machine's VT-d units do not confine a function to a TD, one sentence for each reason. `requesters` are
/// the ids that its requests carry.
#[must_use]
pub fn unconfined(at: Address, requesters: &[u16]) -> Vec<String> {
    let sources = requesters
        .iter()
        .map(|id| vtd::Function::new(at.segment, Source(*id)));
    let sources: Vec<_> = sources.collect();
    let mut reasons = Vec::new();
    match super::get() {
        Err(why) => reasons.push(format!("nothing confines its DMA: {why}")),
        Ok(units) => {
            if !sources.iter().all(|source| units.covers(*source)) {
                reasons.push("no VT-d unit confines its DMA".into());
            }
            if !units.remaps_interrupts() {
                reasons.push("no VT-d unit confines its interrupts".into());
            }
        }
    }
    let claims = super::reserved().iter();
    let claims = claims.filter(|claim| sources.contains(&claim.function));
    // Each of the ids may have the same memory.
    let ranges: BTreeSet<_> = claims.map(|claim| claim.range).collect();
    reasons.extend(ranges.into_iter().map(|(start, end)| {
        format!("the firmware has it use its memory from {start:#x} to {end:#x} (RMRR)")
    }));
    reasons
}

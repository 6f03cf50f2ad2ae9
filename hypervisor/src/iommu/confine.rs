//! Whether the machine can confine a function to a TD.

use alloc::{collections::BTreeSet, format, string::String, vec::Vec};

use io::Address;
use vtd::{Source, reserved::Claim};

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
    reasons.extend(reserved(super::reserved(), &sources));
    reasons
}

/// Returns a sentence for each range of the firmware's memory that requests with one of these ids may need.
fn reserved(claims: &[Claim], sources: &[vtd::Function]) -> Vec<String> {
    let claims = claims.iter();
    let claims = claims.filter(|claim| sources.contains(&claim.function));
    // Each of the ids may have the same memory.
    let ranges: BTreeSet<_> = claims.map(|claim| claim.range).collect();
    let sentence = |(start, end)| {
        format!("the firmware has it use its memory from {start:#x} to {end:#x} (RMRR)")
    };
    ranges.into_iter().map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_the_firmware_reserved_for_a_function_is_a_reason_to_keep_it() {
        let function = |id| vtd::Function::new(0, Source(id));
        let claim = |id, start| Claim {
            function: function(id),
            range: (start, start + 0x1000),
            refusal: None,
        };
        let claims = [
            claim(0x100, 0x7000),
            claim(0x108, 0x7000),
            claim(0x200, 0x9000),
        ];
        assert_eq!(
            reserved(&claims, &[function(0x100), function(0x108)]),
            ["the firmware has it use its memory from 0x7000 to 0x8000 (RMRR)"]
        );
        assert_eq!(reserved(&claims, &[function(0x300)]), [""; 0]);
    }
}

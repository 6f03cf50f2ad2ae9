//! Memory that devices use for the firmware (RMRR): kept where nothing else can be, blocked elsewhere.

use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};

use boot::RegionKind;
use mm::tdmr::Plan;
use spin::Once;
use vtd::{
    Function,
    dmar::Dmar,
    reserved::{Range, refusal},
    scope,
};

use super::buses::Bridges;
use crate::memory;

/// What became of one function's reserved memory.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The function.
    pub function: Function,
    /// The memory.
    pub range: Range,
    /// Why the function is blocked from it; `None` if it keeps it.
    pub blocked: Option<String>,
}

static KEPT: Once<Vec<Kept>> = Once::new();

/// Returns what became of the reserved memory.
#[must_use]
pub fn kept() -> &'static [Kept] {
    KEPT.get().map_or(&[], Vec::as_slice)
}

/// Lets functions keep the firmware's memory that the DMAR reserves for them, where nothing else can be. `plan` is what
/// the TDX module has. Until then they are blocked from it. Returns a sentence for each that stays blocked.
pub fn keep(dmar: &Dmar, plan: Option<&Plan>) -> Vec<String> {
    let firmware = firmware_s();
    let module = plan.map_or_else(Vec::new, module_s);
    let mut all = Vec::new();
    let mut wanted: BTreeMap<Function, Vec<Range>> = BTreeMap::new();
    for reserved in &dmar.reserved {
        let range = (reserved.start, reserved.end);
        let blocked = refusal(reserved, &firmware, &module);
        for scope in &reserved.scopes {
            let Some(function) = scope::resolve(scope, reserved.segment, &Bridges) else {
                continue;
            };
            if blocked.is_none() {
                wanted.entry(function).or_default().push(range);
            }
            all.push(Kept {
                function,
                range,
                blocked: blocked.clone(),
            });
        }
    }
    if let Ok(iommu) = super::get() {
        for (function, ranges) in &wanted {
            if let Err(error) = iommu.keep(*function, ranges) {
                let of_function = all.iter_mut().filter(|kept| kept.function == *function);
                of_function.for_each(|kept| kept.blocked = Some(error.to_string()));
            }
        }
    }
    let all = KEPT.call_once(|| all);
    all.iter().filter_map(sentence).collect()
}

fn sentence(kept: &Kept) -> Option<String> {
    let why = kept.blocked.as_ref()?;
    Some(format!(
        "{} is blocked from the memory at {:#x} that the firmware reserved for it (RMRR): {why}",
        kept.function, kept.range.0
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

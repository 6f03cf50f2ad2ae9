//! Memory that devices use for the firmware (RMRR): which of it they may keep.
//!
//! Such memory is mapped for its devices only if it can't be anything else's: it lies in memory that the firmware
//! reserved for itself, and outside all memory that the TDX module has or hands out. Otherwise its devices stay
//! blocked.

use alloc::{format, string::String, vec::Vec};

use crate::{
    Function,
    dmar::{Dmar, Reserved},
    scope::{self, Buses},
};

/// A range of physical memory: its first address, and the first address behind it.
pub type Range = (u64, u64);

/// Memory that the firmware reserved for one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The function.
    pub function: Function,
    /// The memory.
    pub range: Range,
    /// The reason why the function can't keep it; `None` if it can.
    pub refusal: Option<String>,
}

/// Returns what the table claims for each function that exists, with [`refusal`]s.
#[must_use]
pub fn claims(dmar: &Dmar, buses: &impl Buses, firmware: &[Range], module: &[Range]) -> Vec<Claim> {
    let of_region = |reserved: &Reserved| {
        let refusal = refusal(reserved, firmware, module);
        let scopes = reserved.scopes.iter();
        let functions = scopes.filter_map(|scope| scope::resolve(scope, reserved.segment, buses));
        let claims = functions.map(|function| Claim {
            function,
            range: (reserved.start, reserved.end),
            refusal: refusal.clone(),
        });
        claims.collect::<Vec<_>>()
    };
    dmar.reserved.iter().flat_map(of_region).collect()
}

/// Returns why the devices of `reserved` can't keep it, or `None` if they can.
///
/// `firmware` is the memory that the firmware reserved for itself, in ascending, disjoint ranges. `module` is the memory
/// that the TDX module has or hands out: the parts of each TDMR that are not reserved areas, and the PAMTs.
#[must_use]
pub fn refusal(reserved: &Reserved, firmware: &[Range], module: &[Range]) -> Option<String> {
    let (start, end) = (reserved.start, reserved.end);
    let mut at = start;
    for range in firmware {
        if range.0 <= at && at < range.1 {
            at = range.1;
        }
    }
    if at < end {
        return Some(format!(
            "the firmware's memory map does not reserve it at {at:#x}"
        ));
    }
    let taken = module.iter().find(|range| range.0 < end && start < range.1);
    taken.map(|range| {
        format!(
            "the TDX module has memory from {:#x} on",
            range.0.max(start)
        )
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn only_the_firmware_s_own_memory_is_kept() {
        let reserved = Reserved {
            start: 0x2000,
            end: 0x6000,
            segment: 0,
            scopes: vec![],
        };
        let why = |firmware: &[Range], module: &[Range]| refusal(&reserved, firmware, module);
        assert_eq!(why(&[(0x1000, 0x3000), (0x3000, 0x9000)], &[]), None);
        assert_eq!(
            why(&[(0x2000, 0x6000)], &[(0x6000, 0x7000), (0, 0x2000)]),
            None
        );
        let hole = why(&[(0x2000, 0x3000), (0x4000, 0x6000)], &[]);
        assert!(hole.is_some_and(|why| why.contains("0x3000")));
        let short = why(&[(0x2000, 0x5FFF)], &[]);
        assert!(short.is_some_and(|why| why.contains("0x5fff")));
        let taken = why(&[(0x2000, 0x6000)], &[(0x5000, 0x7000)]);
        assert!(taken.is_some_and(|why| why.contains("0x5000")));
    }
}

//! The memory that devices reach through the VT-d unit, as the software on one processor sets it.

use core::ops::Range;

use stub_rom::dma;

use super::iommu;
use super::lp::Lp;
use super::machine::{Physical, word};
use crate::memory::PAGE;
use crate::report;

/// Returns whether the physical address is in the page of the unit's registers, on a machine that has one.
pub fn is_register(lp: &Lp, pa: u64) -> bool {
    lp.world.iommu.is_some() && (iommu::BASE..iommu::BASE + PAGE as u64).contains(&pa)
}

/// Checks the unit's tables, on a machine that has one, after the software on `lp` has accessed its registers.
pub fn check(lp: &Lp) {
    let Some(iommu) = &lp.world.iommu else {
        return;
    };
    let memory = Memory {
        lp,
        physical: lp.physical(),
    };
    iommu.look(&memory, |reach| {
        report::line(
            "violation",
            format_args!(
                r#""class":"dma_reach","lp":{},"rip":"{:#x}","pa":"{:#x}","requester":"{:#x}","device_address":"{:#x}""#,
                lp.number, lp.vmcb.save.rip, reach.pa, reach.requester, reach.device_address
            ),
        );
    });
}

/// Physical memory as the unit reaches it.
struct Memory<'a> {
    lp: &'a Lp,
    physical: Physical,
}

impl dma::Memory for Memory<'_> {
    fn read(&self, pa: u64) -> u64 {
        match self.lp.world.ram_or_nothing(pa) {
            same if same == pa => word(pa),
            _ => 0,
        }
    }

    fn forbidden(&self, pages: Range<u64>) -> Option<u64> {
        const REGION: u64 = 1 << 21;
        let world = self.lp.world;
        let (seam, end) = (world.seamrr.0, world.seamrr.0 + world.seamrr.1);
        let mut at = pages.start;
        while at < pages.end {
            if (seam..end).contains(&at) {
                return Some(at);
            }
            // Everything beyond RAM is open as a whole.
            if at >= world.end_of_ram() && at >= end {
                return None;
            }
            if at.is_multiple_of(REGION) && world.npt.maps_region(at) {
                at += REGION;
            } else if !world.npt.maps(at) && self.physical.is_private(at) {
                return Some(at);
            } else {
                at += PAGE as u64;
            }
        }
        None
    }
}

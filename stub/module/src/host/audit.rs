//! Audit of all frames: reads the owners from the PAMT and the S-EPTs, and checks their consistency.

use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;

use seam::abi::{PAGE_4K, PageSize, PageType, SeptState, level_bytes};

use super::server::Server;
use crate::pamt::Pamt;
use crate::sept::{Entry, Slot};
use crate::td::{Lifecycle, OpState, Tdcs, Tdr};
use crate::{Machine, Module};

/// A frame that does not belong to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The page type.
    pub page_type: PageType,
    /// The TDR of the TD that owns it; 0 for a TDR.
    pub owner: u64,
    /// The size in bytes.
    pub size: u64,
}

/// The frames that do not belong to the host, by address.
pub type Frames = BTreeMap<u64, Frame>;

impl Server {
    /// Lists the frames in `range`, which contains all memory ever donated to the module. No SEAMCALL may be in
    /// progress.
    ///
    /// # Errors
    /// The inconsistency found: a frame whose owner is not a TD, a TD whose page count differs from the pages it owns,
    /// an HKID assigned to two TDs, an S-EPT entry that points to a frame which does not belong to its TD or to which
    /// another entry points.
    pub fn audit(&self, range: Range<u64>) -> Result<Frames, String> {
        let (module, machine) = (self.module(), self.machine());
        let frames = frames(module, machine, range);
        let mut hkids = BTreeMap::new();
        for (pa, frame) in &frames {
            if frame.page_type != PageType::Tdr {
                let owner = frames.get(&frame.owner).map(|owner| owner.page_type);
                if owner != Some(PageType::Tdr) {
                    return Err(format!("{pa:#x} is {frame:x?}, and its owner is no TD"));
                }
                continue;
            }
            let tdr = Tdr::at(machine, *pa);
            if tdr.lifecycle() != Lifecycle::Teardown
                && let Some(other) = hkids.insert(tdr.hkid(), pa)
            {
                let hkid = tdr.hkid();
                return Err(format!("HKID {hkid} is in the TDs {pa:#x} and {other:#x}"));
            }
            let owned: u64 = frames
                .values()
                .filter(|other| other.page_type != PageType::Tdr && other.owner == *pa)
                .map(|other| other.size / PAGE_4K)
                .sum();
            if owned != tdr.children() {
                let counted = tdr.children();
                return Err(format!("{pa:#x} owns {owned} pages and counts {counted}"));
            }
            let has_tree = tdr.lifecycle() == Lifecycle::KeysConfigured
                && tdr.num_tdcx() >= seam::abi::TDCS_PAGES.0
                && Tdcs::of(machine, tdr).op_state() != OpState::Uninitialized;
            if has_tree {
                check_tree(machine, tdr, &frames)?;
            }
        }
        Ok(frames)
    }
}

fn frames<M: Machine>(module: &Module, machine: &M, range: Range<u64>) -> Frames {
    let mut frames = Frames::new();
    let mut pa = range.start;
    while pa < range.end {
        let mut step = PAGE_4K;
        if let Some(pamt) = Pamt::of(module, pa) {
            for size in [PageSize::Size1G, PageSize::Size2M, PageSize::Size4K] {
                let Some(entry) = pamt.entry(machine, pa, size) else {
                    continue;
                };
                let page_type = entry.page_type();
                if pa.is_multiple_of(size.bytes())
                    && !matches!(page_type, PageType::Nda | PageType::Rsvd | PageType::Pamt)
                {
                    let owner = match page_type {
                        PageType::Tdr => 0,
                        _ => entry.owner(),
                    };
                    step = size.bytes();
                    let size = size.bytes();
                    frames.insert(
                        pa,
                        Frame {
                            page_type,
                            owner,
                            size,
                        },
                    );
                    break;
                }
            }
        }
        pa += step;
    }
    frames
}

/// Checks that a TD's S-EPT and the PAMT agree.
fn check_tree<M: Machine>(machine: &M, tdr: Tdr<'_>, frames: &Frames) -> Result<(), String> {
    let tdcs = Tdcs::of(machine, tdr);
    let mut seen = BTreeSet::new();
    let mut tables = std::vec![(tdcs.sept_root(), tdcs.top_level())];
    while let Some((table, level)) = tables.pop() {
        for word in machine.page(table) {
            let entry = Slot(word).load();
            let (pa, expected, size) = match entry.state() {
                SeptState::Free | SeptState::Removed => continue,
                SeptState::NonLeafMapped | SeptState::NonLeafBlocked => {
                    tables.push((entry.table_pa(), level - 1));
                    (entry.table_pa(), PageType::Ept, PAGE_4K)
                }
                _ => (entry.page_pa(level), PageType::Reg, level_bytes(level)),
            };
            let td = tdr.pa();
            let right = Frame {
                page_type: expected,
                owner: td,
                size,
            };
            if frames.get(&pa) != Some(&right) {
                let (frame, Entry(bits)) = (frames.get(&pa), entry);
                return Err(format!(
                    "entry {bits:#x} of {td:#x} points at {pa:#x}, which is {frame:x?}"
                ));
            }
            if !seen.insert(pa) {
                return Err(format!("two entries of {td:#x} point at {pa:#x}"));
            }
        }
    }
    let in_tree = frames.values().filter(|frame| {
        frame.owner == tdr.pa() && matches!(frame.page_type, PageType::Ept | PageType::Reg)
    });
    let (in_tree, seen) = (in_tree.count(), seen.len());
    if in_tree != seen {
        let td = tdr.pa();
        return Err(format!(
            "{td:#x} has {in_tree} pages and tables, and {seen} entries for them"
        ));
    }
    Ok(())
}

//! Page custody: detects host accesses to private pages, and pages that change hands uncleared.

use core::ops::Range;

use seam::abi::{GpaLevel, Gprs, Leaf, PAGE_1G, PAGE_2M, PAGE_4K, PageSize, PageType, Status};

use super::log::{Access, HostAccess, Violation, ViolationKind};
use crate::call::Call;
use crate::pamt::{Entry, Pamt};
use crate::td::{Lifecycle, Tdr};
use crate::{Machine, Module};

/// Bits 63:16 of each word of a page that left a TD. Bits 15:0 hold the TD's HKID.
const PATTERN: u64 = 0x5ea1_70ff_c1a7;
/// The least that a clearing store (MOVDIR64B) writes, in bytes. If the first word of each line is clear, so is the
/// rest.
const LINE: u64 = 64;

/// Returns the word that fills a page which leaves a TD with this HKID.
pub(crate) const fn pattern(hkid: u32) -> u64 {
    PATTERN << 16 | hkid as u64
}

/// Finds the first uncleared page among those that a successful call donates to the module. Returns the page and the
/// HKID whose pattern it holds.
#[inline(never)]
pub(crate) fn uncleared<M: Machine>(
    cx: Call<'_, M>,
    leaf: Leaf,
    version: u8,
    regs: &Gprs,
) -> Option<(u64, u32)> {
    donated(leaf, version, regs)
        .into_iter()
        .flatten()
        .find_map(|pages| first_uncleared(cx.machine, pages))
}

impl Module {
    /// Checks an access of the host, and records it if hardware would block it.
    ///
    /// # Errors
    /// The kind of violation.
    pub fn check_host_access<M: Machine>(
        &self,
        machine: &M,
        access: HostAccess,
    ) -> Result<(), ViolationKind> {
        let HostAccess {
            lp,
            pa,
            access,
            rip,
        } = access;
        let platform = machine.platform();
        let keyid = platform.keyid(pa);
        let plain = platform.without_keyid(pa);
        let (seam, size) = platform.seamrr;
        let (kind, hkid) = if platform.is_private_hkid(keyid.into()) {
            (ViolationKind::KeyIdAlias, keyid)
        } else if (seam..seam + size).contains(&plain) {
            (ViolationKind::SeamrrAccess, 0)
        } else {
            match (self.guarded_by(machine, plain), access) {
                (None, _) => return Ok(()),
                (Some(hkid), Access::Read) => (ViolationKind::PrivateRead, hkid),
                (Some(hkid), Access::Write) => (ViolationKind::PrivateWrite, hkid),
            }
        };
        self.violations.record(Violation {
            kind,
            lp,
            pa,
            hkid,
            rip,
        });
        Err(kind)
    }

    /// Checks memory that the host hands to another user, who must not find contents of a TD there. Returns `false` and
    /// records a violation if it was not cleared.
    pub fn check_handed_out<M: Machine>(&self, machine: &M, lp: u32, pages: Range<u64>) -> bool {
        let Some((pa, hkid)) = first_uncleared(machine, pages) else {
            return true;
        };
        self.record_reuse(lp, pa, hkid);
        false
    }

    /// Returns whether a page belongs to the module or to a TD. `pa` has no KeyID.
    pub fn is_private<M: Machine>(&self, machine: &M, pa: u64) -> bool {
        self.is_pamt(pa) || holder(self, machine, pa).is_some()
    }

    /// Returns the HKID that guards a page, if the page belongs to the module or to a TD.
    fn guarded_by<M: Machine>(&self, machine: &M, pa: u64) -> Option<u32> {
        if self.is_pamt(pa) {
            return Some(self.global_hkid());
        }
        let (page_type, entry) = holder(self, machine, pa)?;
        match page_type {
            PageType::Tdr => Some(self.global_hkid()),
            _ => Some(Tdr::at(machine, entry.owner()).hkid()),
        }
    }

    /// Records that a page was given away with contents of a TD with this HKID.
    pub(crate) fn record_reuse(&self, lp: u32, pa: u64, hkid: u32) {
        self.violations.record(Violation {
            kind: ViolationKind::ReuseWithoutClearing,
            lp,
            pa,
            hkid,
            rip: None,
        });
    }
}

/// Records an entry of a vCPU whose TD has no key, if that is why the call failed.
pub(crate) fn check_stale_key<M: Machine>(cx: Call<'_, M>, tdvpr: u64, status: Status) {
    if status.code() == Status::TD_KEYS_NOT_CONFIGURED {
        check_key(cx, tdvpr);
    }
}

#[inline(never)]
fn check_key<M: Machine>(cx: Call<'_, M>, tdvpr: u64) {
    let tdvpr = cx.machine.platform().without_keyid(tdvpr) & !(PAGE_4K - 1);
    let Some(entry) = Pamt::of(cx.module, tdvpr).and_then(|pamt| pamt.entry_4k(cx.machine, tdvpr))
    else {
        return;
    };
    let tdr = Tdr::at(cx.machine, entry.owner());
    if matches!(tdr.lifecycle(), Lifecycle::Blocked | Lifecycle::Teardown) {
        cx.module.violations.record(Violation {
            kind: ViolationKind::StaleKey,
            lp: cx.lp,
            pa: tdvpr,
            hkid: tdr.hkid(),
            rip: None,
        });
    }
}

/// Returns the ranges of memory that a successful call donates to the module.
fn donated(leaf: Leaf, version: u8, regs: &Gprs) -> [Option<Range<u64>>; 4] {
    let page = |pa: u64| {
        let start = pa & !(PAGE_4K - 1);
        (pa != u64::MAX).then(|| start..start.saturating_add(PAGE_4K))
    };
    match leaf {
        Leaf::MngCreate | Leaf::MngAddcx | Leaf::VpCreate | Leaf::VpAddcx => {
            [page(regs.rcx), None, None, None]
        }
        Leaf::MemSeptAdd | Leaf::MemPageDemote if version > 0 => {
            [regs.r8, regs.r9, regs.r10, regs.r11].map(page)
        }
        Leaf::MemSeptAdd | Leaf::MemPageDemote | Leaf::MemPageAdd => {
            [page(regs.r8), None, None, None]
        }
        Leaf::MemPageAug | Leaf::MemPageRelocate => {
            let size = level_size(regs.rcx);
            let start = regs.r8 & !(size - 1);
            [Some(start..start.saturating_add(size)), None, None, None]
        }
        _ => [const { None }; 4],
    }
}

/// Returns the bytes that an S-EPT entry of the level in an operand maps.
fn level_size(raw: u64) -> u64 {
    match GpaLevel(raw).level() {
        0 => PAGE_4K,
        1 => PAGE_2M,
        _ => PAGE_1G,
    }
}

/// Returns the entry, of any page size, that contains `pa` and does not belong to the host.
fn holder<'m, M: Machine>(
    module: &'m Module,
    machine: &'m M,
    pa: u64,
) -> Option<(PageType, Entry<'m>)> {
    let pamt = Pamt::of(module, pa)?;
    [PageSize::Size1G, PageSize::Size2M, PageSize::Size4K]
        .into_iter()
        .map(|size| (pamt.page_type(machine, pa, size), size))
        .find(|(page_type, _)| {
            !matches!(page_type, PageType::Nda | PageType::Rsvd | PageType::Pamt)
        })
        .and_then(|(page_type, size)| Some((page_type, pamt.entry(machine, pa, size)?)))
}

fn first_uncleared<M: Machine>(machine: &M, pages: Range<u64>) -> Option<(u64, u32)> {
    let platform = machine.platform();
    pages.step_by(LINE as usize).find_map(|pa| {
        let word = machine.word(platform.without_keyid(pa));
        (word >> 16 == PATTERN).then_some((pa & !(PAGE_4K - 1), word as u16 as u32))
    })
}

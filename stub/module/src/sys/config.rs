//! TDH.SYS.CONFIG: the TDMRs and the global HKID.

use arrayvec::ArrayVec;
use seam::abi::{
    Features0, Gprs, MAX_TDMRS, Operand, PAGE_1G, PAGE_4K, PAMT_ENTRY_SIZE, PageSize, PamtArea,
    Status, TDMR_INFO_ALIGNMENT, TdmrInfo,
};

use super::tdmr::Tdmrs;
use crate::call::Call;
use crate::keys::HkidState;
use crate::lock::Mode;
use crate::module::SysState;
use crate::{Change, Machine, Platform, memory, operand};

/// The least number of KeyID bits in physical addresses with which PAMTs can be dynamic.
pub const MIN_DYNAMIC_PAMT_HKID_BITS: u32 = 4;
/// R8 flag: the entries of 4 KiB pages lie in pages that the host adds where it needs them.
const DYNAMIC_PAMT: u64 = 1 << 16;

/// TDH.SYS.CONFIG: RCX = array of TDMR_INFO addresses, RDX = its length, R8 = global HKID.
///
/// A failed call is not rolled back: the HKID stays reserved.
pub fn config<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let _global = cx.module.lock_global(Mode::Exclusive)?;
    if cx.module.state() != SysState::InitDone || !cx.module.all_lps_initialized() {
        return Err(Status::SYS_CONFIG_NOT_PENDING);
    }
    let array = operand::shared_buffer(cx, regs.rcx, TDMR_INFO_ALIGNMENT, Operand::RCX)?;
    if !(1..=MAX_TDMRS as u64).contains(&regs.rdx) {
        return Err(Status::OPERAND_INVALID.with(Operand::RDX));
    }
    let platform = cx.machine.platform();
    let release = cx.module.release;
    // The first release with the flag in its interface has no use for it.
    let flags = if release.does(Change::DYNAMIC_PAMT_FLAG) {
        DYNAMIC_PAMT
    } else {
        0
    };
    if !platform.is_private_hkid(regs.r8 & !flags) {
        return Err(Status::OPERAND_INVALID.with(Operand::R8));
    }
    let is_dynamic = release.has(Features0::DYNAMIC_PAMT) && regs.r8 & DYNAMIC_PAMT != 0;
    let hkid = regs.r8 as u32 & 0xFFFF;
    cx.module.keys.set_state(hkid, HkidState::Reserved);
    cx.module.set_global_hkid(hkid);
    if is_dynamic && platform.keyid_bits < MIN_DYNAMIC_PAMT_HKID_BITS {
        return Err(Status::OPERAND_INVALID.with(Operand::R8));
    }

    let mut tdmrs: ArrayVec<TdmrInfo, MAX_TDMRS> = ArrayVec::new();
    for i in 0..regs.rdx {
        let info = memory::read(cx.machine, array + 8 * i);
        let info = operand::shared_buffer(cx, info, TDMR_INFO_ALIGNMENT, Operand::RCX)?;
        tdmrs.push(memory::read_struct(cx.machine, info));
        Check {
            platform: &platform,
            tdmrs: &tdmrs,
            is_dynamic,
        }
        .last()?;
    }
    cx.module.set_tdmrs(Tdmrs::new(&tdmrs, is_dynamic));
    for (_, area) in tdmrs.iter().flat_map(pamts) {
        let pages = area.base..area.base + area.size;
        cx.machine.guard(cx.lp, pages, true);
    }
    cx.module.set_state(SysState::ConfigDone);
    Ok(())
}

/// The check of the last TDMR of a list. The others have passed theirs.
struct Check<'a> {
    platform: &'a Platform<'a>,
    tdmrs: &'a [TdmrInfo],
    is_dynamic: bool,
}

/// A range of addresses, with an exclusive end.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    /// Creates a range. Returns `None` if it does not end below 2^64.
    fn new(start: u64, size: u64) -> Option<Self> {
        let end = start.checked_add(size)?;
        Some(Self { start, end })
    }

    fn is_empty(self) -> bool {
        self.start >= self.end
    }

    fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl From<PamtArea> for Range {
    /// Creates the range of a PAMT that is known not to wrap.
    fn from(area: PamtArea) -> Self {
        Self {
            start: area.base,
            end: area.base.wrapping_add(area.size),
        }
    }
}

/// Returns a TDMR's PAMTs, smallest page size first.
fn pamts(info: &TdmrInfo) -> [(PageSize, PamtArea); 3] {
    [
        (PageSize::Size4K, info.pamt_4k),
        (PageSize::Size2M, info.pamt_2m),
        (PageSize::Size1G, info.pamt_1g),
    ]
}

/// Adds to a status the detail bytes that locate the error.
fn about(status: Status, index: usize, part: u32, other: usize) -> Status {
    status.with_detail(index as u32 | part << 8 | (other as u32) << 16)
}

impl Check<'_> {
    fn last(&self) -> Result<(), Status> {
        self.check_order()?;
        self.check_place()?;
        self.check_reserved()?;
        self.check_pamt_places()?;
        self.check_pamts_apart()?;
        self.check_pamts_unavailable()?;
        self.check_pamts_convertible()?;
        self.check_available_convertible()
    }

    fn index(&self) -> usize {
        self.tdmrs.len() - 1
    }

    fn info(&self) -> &TdmrInfo {
        &self.tdmrs[self.index()]
    }

    fn check_order(&self) -> Result<(), Status> {
        let (i, info) = (self.index(), self.info());
        if Range::new(info.base, info.size).is_none() {
            return Err(about(Status::INVALID_TDMR, i, 0, 0));
        }
        if let Some(previous) = i.checked_sub(1).map(|i| &self.tdmrs[i])
            && info.base < previous.base + previous.size
        {
            return Err(about(Status::NON_ORDERED_TDMR, i, 0, 0));
        }
        Ok(())
    }

    fn check_place(&self) -> Result<(), Status> {
        let (i, info) = (self.index(), self.info());
        let aligned =
            info.base.is_multiple_of(PAGE_1G) && info.size.is_multiple_of(PAGE_1G) && info.size > 0;
        if aligned
            && self.is_addressable(info.base)
            && self.is_addressable(info.base + info.size - 1)
        {
            Ok(())
        } else {
            Err(about(Status::INVALID_TDMR, i, 0, 0))
        }
    }

    /// Returns whether an address is below the last physical address and has no KeyID.
    fn is_addressable(&self, pa: u64) -> bool {
        pa >> self.platform.max_pa == 0 && self.platform.keyid(pa) == 0
    }

    fn check_reserved(&self) -> Result<(), Status> {
        let (i, info) = (self.index(), self.info());
        for (j, area) in info.reserved.iter().enumerate() {
            let refuse = |status| Err(about(status, i, j as u32, 0));
            if area.size == 0 {
                if info.reserved.get(j + 1).is_some_and(|next| next.size != 0) {
                    return refuse(Status::NON_ORDERED_RESERVED_IN_TDMR);
                }
                continue;
            }
            let Some(range) = Range::new(area.offset, area.size) else {
                return refuse(Status::INVALID_RESERVED_IN_TDMR);
            };
            if let Some(previous) = j.checked_sub(1).map(|j| info.reserved[j])
                && range.start < previous.offset + previous.size
            {
                return refuse(Status::NON_ORDERED_RESERVED_IN_TDMR);
            }
            let aligned = area.offset.is_multiple_of(PAGE_4K) && area.size.is_multiple_of(PAGE_4K);
            if !aligned || range.end > info.size {
                return refuse(Status::INVALID_RESERVED_IN_TDMR);
            }
        }
        Ok(())
    }

    fn check_pamt_places(&self) -> Result<(), Status> {
        let info = self.info();
        for (size, area) in pamts(info).into_iter().rev() {
            let fits = Range::new(area.base, area.size).is_some()
                && area.base.is_multiple_of(PAGE_4K)
                && area.size.is_multiple_of(PAGE_4K)
                && self.is_addressable(area.base)
                && self.is_addressable((area.base + area.size).wrapping_sub(1))
                && area.size >= self.pamt_size(size);
            if !fits {
                return Err(about(Status::INVALID_PAMT, self.index(), size as u32, 0));
            }
        }
        Ok(())
    }

    /// Returns the least size of the PAMT of pages of this size.
    fn pamt_size(&self, size: PageSize) -> u64 {
        let pages = self.info().size / size.bytes();
        if self.is_dynamic && size == PageSize::Size4K {
            pages / 8
        } else {
            pages * PAMT_ENTRY_SIZE
        }
    }

    /// Checks that PAMTs overlap neither those of other TDMRs nor each other.
    fn check_pamts_apart(&self) -> Result<(), Status> {
        let i = self.index();
        let own = pamts(self.info());
        for (j, other) in self.tdmrs[..i].iter().enumerate() {
            for (size, area) in own {
                if pamts(other)
                    .iter()
                    .any(|(_, other)| Range::from(area).overlaps((*other).into()))
                {
                    return Err(about(Status::PAMT_OVERLAP, i, size as u32, j));
                }
            }
        }
        for (n, (size, area)) in own.iter().enumerate() {
            if own[n + 1..]
                .iter()
                .any(|(_, other)| Range::from(*area).overlaps((*other).into()))
            {
                return Err(about(Status::PAMT_OVERLAP, i, *size as u32, i));
            }
        }
        Ok(())
    }

    /// Checks that no PAMT lies in memory available to TDs.
    fn check_pamts_unavailable(&self) -> Result<(), Status> {
        let i = self.index();
        for j in 0..=i {
            self.check_pamt_unavailable(i, j)?;
            if j < i {
                self.check_pamt_unavailable(j, i)?;
            }
        }
        Ok(())
    }

    /// Checks that no PAMT of TDMR `i` lies in memory that TDMR `j` makes available to TDs.
    fn check_pamt_unavailable(&self, i: usize, j: usize) -> Result<(), Status> {
        for (size, area) in pamts(&self.tdmrs[i]) {
            if available(&self.tdmrs[j]).any(|range| range.overlaps(area.into())) {
                return Err(about(Status::PAMT_OVERLAP, i, size as u32, j));
            }
        }
        Ok(())
    }

    fn check_pamts_convertible(&self) -> Result<(), Status> {
        for (size, area) in pamts(self.info()).into_iter().rev() {
            if !self.is_convertible(area.into()) {
                return Err(about(
                    Status::PAMT_OUTSIDE_CMRS,
                    self.index(),
                    size as u32,
                    0,
                ));
            }
        }
        Ok(())
    }

    fn check_available_convertible(&self) -> Result<(), Status> {
        if available(self.info()).all(|range| self.is_convertible(range)) {
            Ok(())
        } else {
            Err(about(Status::TDMR_OUTSIDE_CMRS, self.index(), 0, 0))
        }
    }

    /// Returns whether a range lies in one CMR, or in several adjacent ones.
    fn is_convertible(&self, range: Range) -> bool {
        let mut start = 0;
        let mut end = 0;
        self.platform
            .cmrs
            .iter()
            .filter(|(_, size)| *size != 0)
            .any(|&(base, size)| {
                if base != end {
                    start = base;
                }
                end = base + size;
                Range { start, end }.contains(range)
            })
    }
}

/// Returns the parts of a TDMR available to TDs: those outside its reserved areas.
fn available(info: &TdmrInfo) -> impl Iterator<Item = Range> {
    let mut start = info.base;
    let end = info.base + info.size;
    info.reserved
        .iter()
        .take_while(|area| area.size != 0)
        .map(move |area| (info.base + area.offset, area.size))
        .chain(core::iter::once((end, 0)))
        .map(move |(at, size)| {
            let range = Range { start, end: at };
            start = at + size;
            range
        })
        .filter(|range| !range.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use seam::abi::ReservedArea;

    const G: u64 = PAGE_1G;

    fn platform() -> Platform<'static> {
        Platform {
            lp_to_package: &[0],
            cmrs: &[(4 * G, G), (5 * G, 3 * G)],
            max_pa: 52,
            keyid_bits: 6,
            num_mktme_keyids: 31,
            num_tdx_keyids: 32,
            seamrr: (128 * G, 1 << 27),
            wbinvd_sub_blocks: 4,
        }
    }

    fn tdmr(base: u64) -> TdmrInfo {
        let area = |offset, size| PamtArea {
            base: 7 * G + (base - 4 * G) / 64 + offset,
            size,
        };
        TdmrInfo {
            base,
            size: G,
            pamt_1g: area(0, 0x1000),
            pamt_2m: area(0x1000, 0x2000),
            pamt_4k: area(0x3000, 0x40_0000),
            ..TdmrInfo::default()
        }
    }

    fn check(tdmrs: &[TdmrInfo]) -> Result<(), Status> {
        let platform = platform();
        (1..=tdmrs.len()).try_for_each(|n| {
            Check {
                platform: &platform,
                tdmrs: &tdmrs[..n],
                is_dynamic: false,
            }
            .last()
        })
    }

    #[test]
    fn cmrs_that_touch_count_as_one() {
        let mut wide = tdmr(4 * G);
        wide.size = 2 * G;
        wide.pamt_2m.size = 0x4000;
        wide.pamt_4k = PamtArea {
            base: 7 * G + 0x10_0000,
            size: 0x80_0000,
        };
        assert_eq!(check(&[wide]), Ok(()));
    }

    #[test]
    fn tdmrs_ascend() {
        assert_eq!(check(&[tdmr(4 * G), tdmr(5 * G)]), Ok(()));
        assert_eq!(
            check(&[tdmr(5 * G), tdmr(4 * G)]),
            Err(Status::NON_ORDERED_TDMR.with_detail(1))
        );
    }

    #[test]
    fn a_pamt_may_lie_in_a_reserved_area_only() {
        let mut info = tdmr(4 * G);
        info.pamt_1g.base = 4 * G + 0x10_0000;
        let overlap = Status::PAMT_OVERLAP.with_detail(0x0200);
        assert_eq!(check(&[info]), Err(overlap));
        info.reserved[0] = ReservedArea {
            offset: 0x10_0000,
            size: 0x1000,
        };
        assert_eq!(check(&[info]), Ok(()));
    }

    #[test]
    fn a_tdmr_beyond_the_cmrs_needs_a_reserved_area() {
        let mut info = tdmr(7 * G);
        info.size = 2 * G;
        info.pamt_1g.base = 4 * G;
        info.pamt_2m = PamtArea {
            base: 4 * G + 0x1000,
            size: 0x4000,
        };
        info.pamt_4k = PamtArea {
            base: 4 * G + 0x10_0000,
            size: 0x80_0000,
        };
        assert_eq!(check(&[info]), Err(Status::TDMR_OUTSIDE_CMRS.code()));
        info.reserved[0] = ReservedArea { offset: G, size: G };
        assert_eq!(check(&[info]), Ok(()));
    }
}

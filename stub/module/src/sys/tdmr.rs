//! TDMRs: the ranges of private memory and their PAMTs. TDH.SYS.TDMR.INIT.

use alloc::boxed::Box;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use seam::abi::{Gprs, Operand, PAGE_1G, PAGE_4K, PAMT_ENTRY_SIZE, PageSize, Status, TdmrInfo};

use crate::call::Call;
use crate::{Machine, Point, pamt};

/// 4 KiB pages whose entries one call of TDH.SYS.TDMR.INIT initialises. With a dynamic PAMT they have only one bit.
const PAGES_PER_CALL: u64 = 1024;
const PAGES_PER_CALL_DYNAMIC: u64 = 4096;

/// The lock of a 1 GiB page's PAMT entry, which every call takes that walks to a page below it. In the PAMT four of
/// these locks would share a cache line, and processors that work on different GiB would contend for it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lock1g(AtomicU64);

/// A TDMR that TDH.SYS.CONFIG accepted.
#[derive(Debug)]
pub struct Tdmr {
    info: TdmrInfo,
    is_dynamic: bool,
    taken: AtomicBool,
    /// The first address whose entries are not initialised.
    initialized: AtomicU64,
    locks_1g: Box<[Lock1g]>,
}

impl Tdmr {
    /// Creates an uninitialised TDMR.
    pub fn new(info: TdmrInfo, is_dynamic: bool) -> Self {
        Self {
            is_dynamic,
            taken: AtomicBool::new(false),
            initialized: AtomicU64::new(info.base),
            locks_1g: (0..info.size / PAGE_1G)
                .map(|_| Lock1g::default())
                .collect(),
            info,
        }
    }

    /// Returns whether the entries of its 4 KiB pages lie in pages that the host adds.
    #[inline(always)]
    pub const fn is_dynamic(&self) -> bool {
        self.is_dynamic
    }

    /// Returns the address of the word with the bit of a 4 KiB page in the bitmap of a dynamic PAMT, and the bit.
    pub const fn bitmap_word(&self, pa: u64) -> (u64, u64) {
        let page = (pa - self.info.base) / PAGE_4K;
        (self.info.pamt_4k.base + page / 64 * 8, 1 << (page % 64))
    }

    /// Returns the first address whose entries are not initialised. Only whole GiB below it are usable.
    pub fn initialized(&self) -> u64 {
        self.initialized.load(Ordering::Acquire)
    }

    /// Returns the word with the lock of the 1 GiB that contains `pa`.
    pub fn lock_1g(&self, pa: u64) -> &AtomicU64 {
        &self.locks_1g[((pa - self.info.base) / PAGE_1G) as usize].0
    }

    fn end(&self) -> u64 {
        self.info.base + self.info.size
    }

    /// Returns the address of the PAMT entry of the page of that size that contains `pa`.
    #[inline(always)]
    pub fn entry_pa(&self, pa: u64, size: PageSize) -> u64 {
        let pamt = match size {
            PageSize::Size4K => self.info.pamt_4k,
            PageSize::Size2M => self.info.pamt_2m,
            PageSize::Size1G => self.info.pamt_1g,
        };
        pamt.base + (pa - self.info.base) / size.bytes() * PAMT_ENTRY_SIZE
    }

    /// Returns the 4 KiB pages of `pages` that lie in a reserved area.
    pub fn reserved_pages(&self, pages: Range<u64>) -> impl Iterator<Item = u64> {
        self.info.reserved.iter().flat_map(move |area| {
            let area = self.info.base + area.offset..self.info.base + area.offset + area.size;
            let both = area.start.max(pages.start)..area.end.min(pages.end);
            both.step_by(PAGE_4K as usize)
        })
    }
}

impl Clone for Tdmr {
    /// Returns a TDMR initialised as far as this one, without locks held.
    fn clone(&self) -> Self {
        let copy = Self::new(self.info, self.is_dynamic);
        copy.initialized
            .store(self.initialized(), Ordering::Release);
        copy
    }
}

/// All TDMRs, at most [`seam::abi::MAX_TDMRS`].
#[derive(Clone, Debug)]
pub struct Tdmrs(Box<[Tdmr]>);

impl Tdmrs {
    /// Creates the TDMRs that TDH.SYS.CONFIG accepted.
    pub fn new(infos: &[TdmrInfo], is_dynamic: bool) -> Self {
        let tdmr = |info| Tdmr::new(info, is_dynamic);
        Self(infos.iter().copied().map(tdmr).collect())
    }

    /// Returns whether their PAMTs are dynamic.
    pub fn are_dynamic(&self) -> bool {
        self.0.first().is_some_and(Tdmr::is_dynamic)
    }

    /// Returns the TDMR that contains `pa`.
    #[inline(always)]
    pub fn covering(&self, pa: u64) -> Option<&Tdmr> {
        self.0
            .iter()
            .find(|tdmr| (tdmr.info.base..tdmr.end()).contains(&pa))
    }

    /// Returns whether `pa` lies in the PAMT of a TDMR.
    pub fn is_pamt(&self, pa: u64) -> bool {
        self.0.iter().any(|tdmr| {
            let info = &tdmr.info;
            [&info.pamt_4k, &info.pamt_2m, &info.pamt_1g]
                .into_iter()
                .any(|pamt| (pamt.base..pamt.base + pamt.size).contains(&pa))
        })
    }
}

/// TDH.SYS.TDMR.INIT: initialises the PAMT entries of the next part of a TDMR.
pub fn tdmr_init<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    regs.rdx = 0;
    let tdmr = cx
        .module
        .tdmr_covering(regs.rcx)
        .filter(|tdmr| tdmr.info.base == regs.rcx)
        .ok_or(Status::OPERAND_INVALID.with(Operand::RCX))?;
    if tdmr.taken.swap(true, Ordering::Acquire) {
        return Err(Status::OPERAND_BUSY.with(Operand::RCX));
    }
    let start = tdmr.initialized();
    let result = if start < tdmr.end() {
        cx.reached(Point::Movdir64b);
        let pages = if tdmr.is_dynamic {
            PAGES_PER_CALL_DYNAMIC
        } else {
            PAGES_PER_CALL
        };
        let end = (start + pages * PAGE_4K).min(tdmr.end());
        pamt::initialize(cx.machine, tdmr, start, end);
        tdmr.initialized.store(end, Ordering::Release);
        regs.rdx = end & !(PAGE_1G - 1);
        Ok(())
    } else {
        Err(Status::TDMR_ALREADY_INITIALIZED)
    };
    tdmr.taken.store(false, Ordering::Release);
    result
}

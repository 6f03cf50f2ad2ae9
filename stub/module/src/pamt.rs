//! PAMT: the type and owner of each page of a TDMR, in memory that the host donated.
//!
//! Every page has an entry of 16 bytes at each of the three sizes. The first word holds a lock (bits 15:0), the page
//! type (23:16) and the owner's page number (63:24). The second word holds the epoch at which the page was blocked.
//!
//! In a dynamic PAMT the entries of 4 KiB pages lie in a pair of pages for each 2 MiB, which the host adds and removes.
//! The entry of the 2 MiB page then holds the pair's page numbers (63:28 of both words), and in bits 9:0 of its second
//! word the number of 4 KiB pages in use. A bitmap tells which pages belong to a pair.

mod pair;

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::{Operand, PAGE_1G, PAGE_2M, PAGE_4K, PAMT_ENTRY_SIZE, PageSize, PageType, Status};

use crate::call::Call;
use crate::lock::{Busy, Guard, Lock, Mode};
use crate::sys::tdmr::Tdmr;
use crate::{Machine, Module, memory};

pub use pair::{PairOperands, add_pair, check_pair_page, remove_pair};
use pair::{check_pair_address, find_pair_page, return_pair, take_pair};

const TYPE: u64 = 0xff << 16;
const OWNER: u64 = !0 << 24;
const OWNER_SHIFT: u32 = 12;
/// The page number of a page of a pair, in either word.
const PAIR: u64 = !0 << 28;
const PAIR_SHIFT: u32 = 16;
/// Number of 4 KiB pages in use.
const COUNT: u64 = 0x3FF;
/// Flag in the address of a returned page: no other page of its 2 MiB is in use.
pub const REMOVABLE: u64 = 1 << 62;
/// Memory whose 4 KiB entries fill one page of the PAMT.
const PER_PAGE_OF_ENTRIES: u64 = PAGE_4K / PAMT_ENTRY_SIZE * PAGE_4K;

/// The reason why a walk to an entry failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The page is in no TDMR, or in an uninitialised part of one.
    OutOfRange,
    /// An entry on the way is locked.
    Busy,
}

impl WalkError {
    /// Returns the corresponding status, without an operand.
    pub fn status(self) -> Status {
        match self {
            Self::OutOfRange => Status::OPERAND_ADDR_RANGE_ERROR,
            Self::Busy => Status::OPERAND_BUSY,
        }
    }
}

impl From<Busy> for WalkError {
    fn from(_: Busy) -> Self {
        Self::Busy
    }
}

/// A PAMT entry.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'m> {
    word: &'m AtomicU64,
    bepoch: &'m AtomicU64,
    /// The word that holds the lock: the entry's own word, except for pages of 1 GiB.
    lock: &'m AtomicU64,
}

impl<'m> Entry<'m> {
    #[inline(always)]
    fn at<M: Machine>(machine: &'m M, pa: u64) -> Self {
        let page = machine.page(pa & !(PAGE_4K - 1));
        let index = (pa % PAGE_4K / 8) as usize;
        Self {
            word: &page[index],
            bepoch: &page[index | 1],
            lock: &page[index],
        }
    }

    /// Returns the entry's lock.
    pub fn lock(&self) -> Lock<'m> {
        Lock::with_host_priority(self.lock, 0)
    }

    /// Returns the page type.
    pub fn page_type(&self) -> PageType {
        page_type(self.word.load(Ordering::Acquire))
    }

    /// Returns the TDR of the TD that owns the page, or owned it last; 0 for none.
    pub fn owner(&self) -> u64 {
        (self.word.load(Ordering::Acquire) & OWNER) >> (24 - OWNER_SHIFT)
    }

    /// Sets the page type, and keeps the owner.
    pub fn set_type(&self, page_type: PageType) {
        self.replace(TYPE, (page_type as u64) << 16);
    }

    /// Sets the page type and the owner.
    pub fn assign(&self, page_type: PageType, owner: u64) {
        self.replace(
            TYPE | OWNER,
            (page_type as u64) << 16 | owner << (24 - OWNER_SHIFT),
        );
    }

    fn replace(&self, mask: u64, value: u64) {
        // The lock bits may change at any time, so this cannot be a plain store.
        let mut old = self.word.load(Ordering::Relaxed);
        while let Err(now) = self.word.compare_exchange_weak(
            old,
            old & !mask | value,
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            old = now;
        }
    }

    /// Returns the epoch at which the page was blocked.
    pub fn bepoch(&self) -> u64 {
        self.bepoch.load(Ordering::Acquire)
    }

    /// Sets the epoch at which the page was blocked.
    pub fn set_bepoch(&self, epoch: u64) {
        self.bepoch.store(epoch, Ordering::Release);
    }

    /// Returns the pages with the entries of the smaller pages.
    pub fn pair(&self) -> [u64; 2] {
        [self.word, self.bepoch].map(|word| (word.load(Ordering::Acquire) & PAIR) >> PAIR_SHIFT)
    }

    /// Sets the pages with the entries of the smaller pages, of which `used` are in use.
    fn set_pair(&self, pair: [u64; 2], used: u64) {
        self.bepoch
            .store(pair[1] << PAIR_SHIFT | used, Ordering::Release);
        let page_type = (PageType::Pamt as u64) << 16;
        self.replace(TYPE | PAIR, page_type | pair[0] << PAIR_SHIFT);
    }

    /// Resets the entry to an unused one.
    fn reset(&self, page_type: PageType) {
        self.word.store((page_type as u64) << 16, Ordering::Release);
        self.bepoch.store(0, Ordering::Release);
    }
}

/// Returns the page type in the first word of an entry.
fn page_type(word: u64) -> PageType {
    PageType::from_number((word >> 16) as u8).unwrap_or(PageType::Rsvd)
}

/// The PAMT of the TDMR that contains a page.
#[derive(Clone, Copy)]
pub struct Pamt<'m> {
    tdmr: &'m Tdmr,
}

impl<'m> Pamt<'m> {
    /// Returns the PAMT that covers `pa`; `None` where there is no TDMR or an uninitialised one.
    #[inline(always)]
    pub fn of(module: &'m Module, pa: u64) -> Option<Self> {
        let tdmr = module.tdmr_covering(pa)?;
        (pa < tdmr.initialized() & !(PAGE_1G - 1)).then_some(Self { tdmr })
    }

    /// Returns the address of the entry of the 4 KiB page that contains `pa`, if there is one.
    #[inline(always)]
    fn entry_4k_pa<M: Machine>(self, machine: &'m M, pa: u64) -> Option<u64> {
        if !self.tdmr.is_dynamic() {
            return Some(self.tdmr.entry_pa(pa, PageSize::Size4K));
        }
        self.node(machine, pa).map(|node| small_entry_pa(node, pa))
    }

    /// Returns the entry of the 2 MiB page that contains `pa`, if it has a pair of pages for the smaller ones.
    fn node<M: Machine>(self, machine: &'m M, pa: u64) -> Option<Entry<'m>> {
        let entry = self.large_entry(machine, pa, PageSize::Size2M);
        (self.tdmr.is_dynamic() && entry.page_type() == PageType::Pamt).then_some(entry)
    }

    /// Returns the entry of the 4 KiB page that contains `pa`. A dynamic PAMT need not have one.
    #[inline(always)]
    pub fn entry_4k<M: Machine>(self, machine: &'m M, pa: u64) -> Option<Entry<'m>> {
        let pa = self.entry_4k_pa(machine, pa)?;
        Some(Entry::at(machine, pa))
    }

    /// Returns the entry of the page of that size that contains `pa`. A dynamic PAMT need not have one.
    pub fn entry<M: Machine>(self, machine: &'m M, pa: u64, size: PageSize) -> Option<Entry<'m>> {
        match size {
            PageSize::Size4K => self.entry_4k(machine, pa),
            _ => Some(self.large_entry(machine, pa, size)),
        }
    }

    /// Returns the word with the bit of the page at `pa` in the bitmap of pages of pairs, and the bit.
    fn bit<M: Machine>(self, machine: &'m M, pa: u64) -> (&'m AtomicU64, u64) {
        let (word, bit) = self.tdmr.bitmap_word(pa);
        let page = machine.page(word & !(PAGE_4K - 1));
        (&page[(word % PAGE_4K / 8) as usize], bit)
    }

    /// Returns whether the page at `pa` belongs to a pair.
    pub fn is_pair_page<M: Machine>(self, machine: &'m M, pa: u64) -> bool {
        let is_set = |(word, bit): (&AtomicU64, u64)| word.load(Ordering::Acquire) & bit != 0;
        self.tdmr.is_dynamic() && is_set(self.bit(machine, pa))
    }

    /// Returns the entry of the page of that size, at least 2 MiB, that contains `pa`.
    #[inline(always)]
    fn large_entry<M: Machine>(self, machine: &'m M, pa: u64, size: PageSize) -> Entry<'m> {
        let entry = Entry::at(machine, self.tdmr.entry_pa(pa, size));
        match size {
            PageSize::Size1G => Entry {
                lock: self.tdmr.lock_1g(pa),
                ..entry
            },
            _ => entry,
        }
    }

    /// Returns the type of the page of that size that contains `pa`. Unlike [`Self::entry`], it does not make the entry
    /// resident on a machine with sparse memory.
    pub fn page_type<M: Machine>(self, machine: &M, pa: u64, size: PageSize) -> PageType {
        let entry = match size {
            PageSize::Size4K => self.entry_4k_pa(machine, pa),
            _ => Some(self.tdmr.entry_pa(pa, size)),
        };
        entry.map_or(PageType::Nda, |entry| page_type(machine.word(entry)))
    }

    /// Walks to the entry of the page that contains `pa`, no deeper than `target`. Locks are shared on the way and
    /// `mode` at the end. The walk ends early where a larger page is assigned, and where a dynamic PAMT has no entries.
    ///
    /// # Errors
    /// [`WalkError::Busy`].
    #[inline(always)]
    pub fn walk<M: Machine>(
        self,
        machine: &'m M,
        pa: u64,
        mode: Mode,
        target: PageSize,
    ) -> Result<Held<'m>, WalkError> {
        let mut above = [None, None];
        for (i, size) in [PageSize::Size1G, PageSize::Size2M].into_iter().enumerate() {
            let entry = self.large_entry(machine, pa, size);
            let mut guard = entry.lock().acquire(Mode::Shared)?;
            let ends = match entry.page_type() {
                PageType::Reg => true,
                PageType::Pamt => false,
                _ => self.tdmr.is_dynamic() && size == PageSize::Size2M,
            };
            if ends || target == size {
                if mode == Mode::Exclusive {
                    guard.promote()?;
                }
                return Ok(Held {
                    entry,
                    pa: pa & !(size.bytes() - 1),
                    size,
                    _leaf: guard,
                    _above: above,
                });
            }
            above[i] = Some(guard);
        }
        let entry = self.entry_4k(machine, pa).ok_or(WalkError::OutOfRange)?;
        let guard = entry.lock().acquire(mode)?;
        Ok(Held {
            entry,
            pa: pa & !(PAGE_4K - 1),
            size: PageSize::Size4K,
            _leaf: guard,
            _above: above,
        })
    }
}

/// A locked PAMT entry, with shared locks on those above it, until this is dropped.
#[derive(Debug)]
pub struct Held<'m> {
    entry: Entry<'m>,
    pa: u64,
    size: PageSize,
    // Locks are released in the order of these fields, from the leaf up.
    _leaf: Guard<'m>,
    _above: [Option<Guard<'m>>; 2],
}

impl<'m> Held<'m> {
    /// Returns the entry.
    pub const fn entry(&self) -> Entry<'m> {
        self.entry
    }

    /// Returns the size at which the walk ended.
    pub const fn size(&self) -> PageSize {
        self.size
    }

    /// Releases the locks as dropping does, inlined into the caller.
    #[inline(always)]
    pub fn release(self) {
        let Self {
            _leaf: leaf,
            _above: [giant, large],
            ..
        } = self;
        leaf.release();
        if let Some(giant) = giant {
            giant.release();
        }
        if let Some(large) = large {
            large.release();
        }
    }

    /// Returns the addresses of the page that the entry describes.
    pub const fn pages(&self) -> Range<u64> {
        self.pa..self.pa + self.size.bytes()
    }
}

/// Returns the entry of a TD's page, without a walk.
///
/// # Panics
/// If no initialised TDMR contains the page. It can't be a TD's page then.
pub fn entry_of<'m, M: Machine>(cx: Call<'m, M>, pa: u64, size: PageSize) -> Entry<'m> {
    Pamt::of(cx.module, pa)
        .and_then(|pamt| pamt.entry(cx.machine, pa, size))
        .expect("a TD's page is in an initialised TDMR, and has an entry")
}

/// Returns the address of the entry of a 4 KiB page in a pair.
fn small_entry_pa(node: Entry<'_>, pa: u64) -> u64 {
    let index = pa % PAGE_2M / PAGE_4K;
    let per_page = PAGE_4K / PAMT_ENTRY_SIZE;
    node.pair()[(index / per_page) as usize] + index % per_page * PAMT_ENTRY_SIZE
}

/// Counts a page that is in use from now on.
pub fn count_used<M: Machine>(cx: Call<'_, M>, pages: &Range<u64>) {
    if let Some(node) = node_of(cx, pages) {
        node.bepoch.fetch_add(1, Ordering::AcqRel);
    }
}

/// Counts a page that is no longer in use. Returns [`REMOVABLE`] if it was the last of its 2 MiB.
pub fn count_free<M: Machine>(cx: Call<'_, M>, pages: &Range<u64>) -> u64 {
    match node_of(cx, pages) {
        Some(node) if node.bepoch.fetch_sub(1, Ordering::AcqRel) & COUNT == 1 => REMOVABLE,
        _ => 0,
    }
}

/// Returns the entry that counts a page, if there is one.
fn node_of<'m, M: Machine>(cx: Call<'m, M>, pages: &Range<u64>) -> Option<Entry<'m>> {
    if !cx.module.has_dynamic_pamt() || pages.end - pages.start != PAGE_4K {
        return None;
    }
    Pamt::of(cx.module, pages.start)?.node(cx.machine, pages.start)
}

/// Locks the entry of a TD's page, without a walk.
///
/// # Errors
/// OPERAND_BUSY with RCX, which holds the page's guest-physical address.
pub fn lock_entry_of<'m, M: Machine>(
    cx: Call<'m, M>,
    pa: u64,
    size: PageSize,
) -> Result<(Guard<'m>, Entry<'m>), Status> {
    let entry = entry_of(cx, pa, size);
    let guard = entry
        .lock()
        .acquire(Mode::Exclusive)
        .map_err(|_| Status::OPERAND_BUSY.with(Operand::RCX))?;
    Ok((guard, entry))
}

/// Returns the first words of the 512 entries of the next smaller size below the page of `size` at `pa`.
fn children<'m, M: Machine>(
    cx: Call<'m, M>,
    pa: u64,
    size: PageSize,
) -> impl Iterator<Item = Entry<'m>> {
    let smaller = match size {
        PageSize::Size1G => PageSize::Size2M,
        _ => PageSize::Size4K,
    };
    (0..512).map(move |i| entry_of(cx, pa + i * smaller.bytes(), smaller))
}

/// Returns whether all 4 KiB pages of the 2 MiB page at `pa` belong to the host.
///
/// # Panics
/// As [`entry_of`].
pub fn is_2m_free<M: Machine>(cx: Call<'_, M>, pa: u64) -> bool {
    let pamt = Pamt::of(cx.module, pa).expect("the walk to the page ended in an initialised TDMR");
    if pamt.tdmr.is_dynamic() {
        let (first, _) = pamt.tdmr.bitmap_word(pa);
        let words = (PAGE_2M / PAGE_4K / 64) as usize;
        let from = (first % PAGE_4K / 8) as usize;
        let page = cx.machine.page(first & !(PAGE_4K - 1));
        let mut bits = page[from..from + words].iter();
        return bits.all(|word| word.load(Ordering::Acquire) == 0);
    }
    let is_free = |page| pamt.page_type(cx.machine, page, PageSize::Size4K) == PageType::Nda;
    (pa..pa + PAGE_2M)
        .step_by(PER_PAGE_OF_ENTRIES as usize)
        .all(|part| {
            let entries = pamt.tdmr.entry_pa(part, PageSize::Size4K);
            match cx.machine.repeated(entries) {
                Some(word) => page_type(word) == PageType::Nda,
                None => (part..part + PER_PAGE_OF_ENTRIES)
                    .step_by(PAGE_4K as usize)
                    .all(is_free),
            }
        })
}

/// Merges the 512 smaller pages at `pa`, which belong to the same TD, into one page of `size`. Returns the pair of pages
/// that described them in a dynamic PAMT.
///
/// # Errors
/// OPERAND_BUSY with RCX.
pub fn merge<M: Machine>(
    cx: Call<'_, M>,
    pa: u64,
    size: PageSize,
) -> Result<Option<[u64; 2]>, Status> {
    let (_guard, merged) = lock_entry_of(cx, pa, size)?;
    if size == PageSize::Size2M && cx.module.has_dynamic_pamt() {
        let pair = merged.pair();
        let first = Entry::at(cx.machine, pair[0]);
        merged.assign(first.page_type(), first.owner());
        merged.set_bepoch(0);
        return_pair(cx, pair);
        return Ok(Some(pair));
    }
    for (i, child) in children(cx, pa, size).enumerate() {
        if i == 0 {
            merged.assign(child.page_type(), child.owner());
        }
        child.set_type(PageType::Nda);
    }
    Ok(None)
}

/// Splits the page of `size` at `pa` into 512 smaller ones. A dynamic PAMT describes those of 4 KiB in `pair`.
///
/// # Errors
/// OPERAND_BUSY with RCX; of the pair OPERAND_INVALID, OPERAND_ADDR_RANGE_ERROR, OPERAND_BUSY, PAGE_NOT_FREE.
pub fn split<M: Machine>(
    cx: Call<'_, M>,
    pa: u64,
    size: PageSize,
    pair: [u64; 2],
    operands: PairOperands,
) -> Result<(), Status> {
    let (_guard, whole) = lock_entry_of(cx, pa, size)?;
    if size == PageSize::Size2M && cx.module.has_dynamic_pamt() {
        for i in 0..2 {
            check_pair_address(cx, pair[i], operands[i])?;
        }
        let pamts = [
            find_pair_page(cx, pair[0], operands[0])?,
            find_pair_page(cx, pair[1], operands[1])?,
        ];
        take_pair(cx, pair, pamts, operands, None)?;
        describe_parts(cx, pair, whole);
        whole.set_pair(pair, PAGE_2M / PAGE_4K);
        return Ok(());
    }
    for child in children(cx, pa, size) {
        child.assign(whole.page_type(), whole.owner());
        child.set_bepoch(0);
    }
    whole.set_type(PageType::Nda);
    Ok(())
}

/// Fills a pair of pages with the entries of the parts of a page that one entry described.
fn describe_parts<M: Machine>(cx: Call<'_, M>, pair: [u64; 2], whole: Entry<'_>) {
    let entry = whole.word.load(Ordering::Acquire) & (TYPE | OWNER);
    for pa in pair {
        for (i, word) in cx.machine.page(pa).iter().enumerate() {
            let value = if i % 2 == 0 { entry } else { 0 };
            word.store(value, Ordering::Release);
        }
    }
}

/// Initialises the entries of the 4 KiB pages in `[start, end)` and of the larger pages that start there. `start` is a
/// multiple of 1 MiB from the TDMR's base, so that the entries of 4 KiB pages fill whole pages.
pub fn initialize<M: Machine>(machine: &M, tdmr: &Tdmr, start: u64, end: u64) {
    if tdmr.is_dynamic() {
        let (first, last) = (tdmr.bitmap_word(start).0, tdmr.bitmap_word(end - PAGE_4K).0);
        for word in (first..=last).step_by(8) {
            memory::write(machine, word, 0);
        }
    } else {
        let last = tdmr.entry_pa(end - PAGE_4K, PageSize::Size4K);
        for page in (tdmr.entry_pa(start, PageSize::Size4K)..=last).step_by(PAGE_4K as usize) {
            // A zero entry describes a page of the host that never had an owner.
            machine.fill_page(page, 0);
        }
    }
    for size in [PageSize::Size2M, PageSize::Size1G] {
        let first = start.next_multiple_of(size.bytes());
        for pa in (first..end).step_by(size.bytes() as usize) {
            let entry = tdmr.entry_pa(pa, size);
            if [entry, entry + 8].map(|pa| machine.word(pa)) != [0, 0] {
                Entry::at(machine, entry).reset(PageType::Nda);
            }
        }
    }
    for pa in tdmr.reserved_pages(start..end) {
        if tdmr.is_dynamic() {
            let (word, bit) = tdmr.bitmap_word(pa);
            memory::write(machine, word, memory::read(machine, word) | bit);
        } else {
            Entry::at(machine, tdmr.entry_pa(pa, PageSize::Size4K)).reset(PageType::Rsvd);
        }
    }
}

const _: () = assert!(PageType::Nda as u8 == 0);
const _: () = assert!(PAMT_ENTRY_SIZE == 16);

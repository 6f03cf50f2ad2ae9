//! Checks of memory operands, in the module's order.

use seam::abi::{GpaLevel, Operand, PAGE_4K, PageSize, PageType, Status};

use crate::call::Call;
use crate::lock::Mode;
use crate::pamt::{Held, Pamt, WalkError};
use crate::td::{Tdcs, Tdr};
use crate::{Machine, Platform};

impl Platform<'_> {
    /// Returns the KeyID in a physical address.
    pub fn keyid(&self, pa: u64) -> u32 {
        let shift = self.max_pa - self.keyid_bits;
        (pa >> shift & ((1 << self.keyid_bits) - 1)) as u32
    }

    /// Returns a physical address without its KeyID.
    pub fn without_keyid(&self, pa: u64) -> u64 {
        pa & ((1 << (self.max_pa - self.keyid_bits)) - 1)
    }

    /// Returns a physical address with this KeyID.
    pub fn with_keyid(&self, pa: u64, keyid: u32) -> u64 {
        self.without_keyid(pa) | u64::from(keyid) << (self.max_pa - self.keyid_bits)
    }

    /// Returns the first private KeyID.
    pub fn first_private_hkid(&self) -> u32 {
        self.num_mktme_keyids + 1
    }

    /// Returns whether `hkid` is a private KeyID.
    pub fn is_private_hkid(&self, hkid: u64) -> bool {
        let first = u64::from(self.first_private_hkid());
        (first..first + u64::from(self.num_tdx_keyids)).contains(&hkid)
    }

    /// Checks the form of an address that the module assigns a KeyID to: aligned, no KeyID, not beyond the last
    /// physical address.
    pub fn is_plain_page(&self, pa: u64, alignment: u64) -> bool {
        pa.is_multiple_of(alignment) && self.keyid(pa) == 0 && pa >> self.max_pa == 0
    }

    /// Checks the form of a buffer of the host: aligned, with a shared KeyID, outside the SEAM range.
    pub fn is_shared_buffer(&self, pa: u64, alignment: u64, size: u64) -> bool {
        let (seam, seam_size) = self.seamrr;
        let start = self.without_keyid(pa);
        pa.is_multiple_of(alignment)
            && pa >> self.max_pa == 0
            && (start + size <= seam || start >= seam + seam_size)
            && self.keyid(pa) < self.first_private_hkid()
    }
}

/// Checks a buffer of the host of `size` bytes, aligned to its size. Returns its address without KeyID.
///
/// # Errors
/// OPERAND_INVALID.
pub fn shared_buffer<M: Machine>(
    cx: Call<'_, M>,
    pa: u64,
    size: u64,
    operand: Operand,
) -> Result<u64, Status> {
    let platform = cx.machine.platform();
    if platform.is_shared_buffer(pa, size, size) {
        Ok(platform.without_keyid(pa))
    } else {
        Err(Status::OPERAND_INVALID.with(operand))
    }
}

/// Checks and locks the 4 KiB page of a given type in an operand.
///
/// # Errors
/// OPERAND_INVALID, OPERAND_ADDR_RANGE_ERROR, OPERAND_BUSY, PAGE_METADATA_INCORRECT, in this order.
pub fn private_page<'m, M: Machine>(
    cx: Call<'m, M>,
    pa: u64,
    operand: Operand,
    mode: Mode,
    expected: PageType,
) -> Result<Held<'m>, Status> {
    let expected = Expected {
        size: PageSize::Size4K,
        page_type: expected,
    };
    sized_page(cx, pa, operand, mode, expected)
}

/// The page that an operand must name.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Its size.
    pub size: PageSize,
    /// Its type.
    pub page_type: PageType,
}

/// Checks and locks the page of a given size and type in an operand.
///
/// # Errors
/// As [`private_page`].
#[inline(never)]
pub fn sized_page<'m, M: Machine>(
    cx: Call<'m, M>,
    pa: u64,
    operand: Operand,
    mode: Mode,
    expected: Expected,
) -> Result<Held<'m>, Status> {
    page_here(cx, pa, operand, mode, expected)
}

/// Does the same as [`sized_page`], inlined into the caller: for TDH.VP.ENTER.
///
/// # Errors
/// As [`private_page`].
#[inline(always)]
pub fn page_here<'m, M: Machine>(
    cx: Call<'m, M>,
    pa: u64,
    operand: Operand,
    mode: Mode,
    expected: Expected,
) -> Result<Held<'m>, Status> {
    let Expected { size, page_type } = expected;
    if !cx.machine.platform().is_plain_page(pa, size.bytes()) {
        return Err(Status::OPERAND_INVALID.with(operand));
    }
    let held = Pamt::of(cx.module, pa)
        .ok_or(WalkError::OutOfRange)
        .and_then(|pamt| pamt.walk(cx.machine, pa, mode, size))
        .map_err(|error| error.status().with(operand))?;
    if held.size() != size || held.entry().page_type() != page_type {
        return Err(wrong_page(cx, &held, size, page_type).with(operand));
    }
    if page_type == PageType::Nda && is_pair_page(cx, pa) {
        return Err(Status::PAGE_METADATA_INCORRECT.with(operand));
    }
    Ok(held)
}

/// Checks and locks, shared, the unused 4 KiB page in an operand. A dynamic PAMT need not describe it.
///
/// # Errors
/// As [`private_page`].
pub fn unused_page<M: Machine>(
    cx: Call<'_, M>,
    pa: u64,
    operand: Operand,
) -> Result<Held<'_>, Status> {
    if !cx.machine.platform().is_plain_page(pa, PAGE_4K) {
        return Err(Status::OPERAND_INVALID.with(operand));
    }
    let held = Pamt::of(cx.module, pa)
        .ok_or(WalkError::OutOfRange)
        .and_then(|pamt| pamt.walk(cx.machine, pa, Mode::Shared, PageSize::Size4K))
        .map_err(|error| error.status().with(operand))?;
    if held.entry().page_type() != PageType::Nda || is_pair_page(cx, pa) {
        return Err(Status::PAGE_METADATA_INCORRECT.with(operand));
    }
    Ok(held)
}

/// Returns the status for a page of another size or type.
#[cold]
fn wrong_page<M: Machine>(
    cx: Call<'_, M>,
    held: &Held<'_>,
    size: PageSize,
    expected: PageType,
) -> Status {
    let is_unused = held.size() == PageSize::Size2M
        && size == PageSize::Size4K
        && [held.entry().page_type(), expected] == [PageType::Nda; 2];
    if is_unused && cx.module.has_dynamic_pamt() {
        Status::MISSING_PAMT_PAGE_PAIR
    } else {
        Status::PAGE_METADATA_INCORRECT
    }
}

fn is_pair_page<M: Machine>(cx: Call<'_, M>, pa: u64) -> bool {
    Pamt::of(cx.module, pa).is_some_and(|pamt| pamt.is_pair_page(cx.machine, pa))
}

/// Checks and locks the TDR in an operand.
///
/// # Errors
/// As [`private_page`].
pub fn tdr<'m, M: Machine>(
    cx: Call<'m, M>,
    pa: u64,
    operand: Operand,
    mode: Mode,
) -> Result<(Held<'m>, Tdr<'m>), Status> {
    let held = private_page(cx, pa, operand, mode, PageType::Tdr)?;
    let tdr = Tdr::at(cx.machine, pa);
    if mode == Mode::Exclusive && tdr.is_being_reclaimed() {
        return Err(Status::OPERAND_BUSY.with(operand));
    }
    Ok((held, tdr))
}

/// Checks an address with a level: no reserved bits, level in range, address aligned to the level.
///
/// # Errors
/// OPERAND_INVALID with RCX, the register that every leaf uses for it.
pub fn gpa_level(raw: u64, levels: core::ops::RangeInclusive<u8>) -> Result<GpaLevel, Status> {
    let value = GpaLevel(raw);
    if value.is_well_formed() && levels.contains(&value.level()) && value.is_aligned() {
        Ok(value)
    } else {
        Err(Status::OPERAND_INVALID.with(Operand::RCX))
    }
}

/// Returns whether an address is private to a TD: below its width, with the shared bit clear.
pub fn is_private_gpa<M: Machine>(tdcs: &Tdcs<'_, M>, gpa: u64) -> bool {
    gpa >> (tdcs.gpa_width() - 1) == 0 && tdcs.is_valid_gpa(gpa)
}

//! The pairs of pages that hold the 4 KiB entries of a dynamic PAMT: checked, taken from the host, and given back.

use core::sync::atomic::Ordering;

use seam::abi::{Operand, PAGE_2M, PAGE_4K, PageSize, PageType, Status};

use super::{Held, Pamt, page_type};
use crate::call::Call;
use crate::lock::Mode;
use crate::{Machine, Point};

/// The operands that hold a pair of pages.
pub type PairOperands = [Operand; 2];

/// Returns the PAMT of a page for a pair.
///
/// # Errors
/// OPERAND_INVALID, OPERAND_ADDR_RANGE_ERROR.
pub fn check_pair_page<'m, M: Machine>(
    cx: Call<'m, M>,
    pa: u64,
    operand: Operand,
) -> Result<Pamt<'m>, Status> {
    check_pair_address(cx, pa, operand)?;
    find_pair_page(cx, pa, operand)
}

pub(super) fn check_pair_address<M: Machine>(
    cx: Call<'_, M>,
    pa: u64,
    operand: Operand,
) -> Result<(), Status> {
    if cx.machine.platform().is_plain_page(pa, PAGE_4K) {
        Ok(())
    } else {
        Err(Status::OPERAND_INVALID.with(operand))
    }
}

pub(super) fn find_pair_page<'m, M: Machine>(
    cx: Call<'m, M>,
    pa: u64,
    operand: Operand,
) -> Result<Pamt<'m>, Status> {
    Pamt::of(cx.module, pa).ok_or(Status::OPERAND_ADDR_RANGE_ERROR.with(operand))
}

/// Takes a pair of pages for the entries of the 2 MiB at `range`, whose entry is held exclusively. A page of the pair
/// that lies in `own` needs no walk.
///
/// # Errors
/// OPERAND_BUSY, PAGE_NOT_FREE.
pub(super) fn take_pair<M: Machine>(
    cx: Call<'_, M>,
    pair: [u64; 2],
    pamts: [Pamt<'_>; 2],
    operands: PairOperands,
    own: Option<u64>,
) -> Result<(), Status> {
    let mut held = [const { None }; 2];
    for (i, held) in held.iter_mut().enumerate() {
        if own == Some(pair[i] & !(PAGE_2M - 1)) {
            continue;
        }
        let page = pamts[i]
            .walk(cx.machine, pair[i], Mode::Shared, PageSize::Size4K)
            .map_err(|error| error.status().with(operands[i]))?;
        if page.entry().page_type() != PageType::Nda {
            return Err(Status::PAGE_NOT_FREE.with(operands[i]));
        }
        *held = Some(page);
    }
    for i in 0..2 {
        let (word, bit) = pamts[i].bit(cx.machine, pair[i]);
        if word.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            if i == 1 {
                let (word, bit) = pamts[0].bit(cx.machine, pair[0]);
                word.fetch_and(!bit, Ordering::AcqRel);
            }
            return Err(Status::PAGE_NOT_FREE.with(operands[i]));
        }
    }
    cx.reached(Point::Movdir64b);
    for pa in pair {
        cx.machine.guard(cx.lp, pa..pa + PAGE_4K, true);
    }
    Ok(())
}

/// Gives a pair of pages back to the host.
pub(super) fn return_pair<M: Machine>(cx: Call<'_, M>, pair: [u64; 2]) {
    for pa in pair {
        if let Some(pamt) = Pamt::of(cx.module, pa) {
            let (word, bit) = pamt.bit(cx.machine, pa);
            word.fetch_and(!bit, Ordering::AcqRel);
        }
        cx.machine.guard(cx.lp, pa..pa + PAGE_4K, false);
    }
}

/// Adds a pair of pages for the 4 KiB pages of the unused 2 MiB page that `large` holds exclusively.
///
/// # Errors
/// OPERAND_BUSY, PAGE_NOT_FREE.
pub fn add_pair<M: Machine>(
    cx: Call<'_, M>,
    large: &Held<'_>,
    pair: [u64; 2],
    pamts: [Pamt<'_>; 2],
    operands: PairOperands,
) -> Result<(), Status> {
    take_pair(cx, pair, pamts, operands, Some(large.pages().start))?;
    for pa in pair {
        cx.machine.fill_page(pa, 0);
    }
    large.entry().set_pair(pair, 0);
    Ok(())
}

/// Removes the pair of pages of the 2 MiB page that `large` holds exclusively.
///
/// # Errors
/// PAMT_PAGE_NOT_EMPTY with the number of the page that describes a page in use.
pub fn remove_pair<M: Machine>(cx: Call<'_, M>, large: &Held<'_>) -> Result<[u64; 2], Status> {
    let entry = large.entry();
    let pair = entry.pair();
    for (i, pa) in (0..).zip(pair) {
        let mut entries = cx.machine.page(pa).iter().step_by(2);
        if entries.any(|word| page_type(word.load(Ordering::Acquire)) != PageType::Nda) {
            return Err(Status::PAMT_PAGE_NOT_EMPTY.with_detail(i));
        }
    }
    return_pair(cx, pair);
    entry.set_type(PageType::Nda);
    Ok(pair)
}

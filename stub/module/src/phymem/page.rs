//! Physical page metadata and cache lines: TDH.PHYMEM.PAGE.RDMD, TDH.PHYMEM.PAGE.WBINVD.

use seam::abi::{Gprs, Operand, PAGE_4K, PageSize, PageType, Status};

use crate::call::Call;
use crate::lock::Mode;
use crate::pamt::{Held, Pamt};
use crate::{Machine, Point, operand};

/// Walks to the entry of the page in RCX, whatever its size, and zeroes the output registers.
///
/// # Errors
/// OPERAND_INVALID, OPERAND_ADDR_RANGE_ERROR, OPERAND_BUSY, all with RCX.
pub(super) fn take_page<'m, M: Machine>(
    cx: Call<'m, M>,
    mode: Mode,
    regs: &mut Gprs,
) -> Result<(u64, Held<'m>), Status> {
    let pa = regs.rcx;
    (regs.rcx, regs.rdx, regs.r8) = (0, 0, 0);
    (regs.r9, regs.r10, regs.r11) = (0, 0, 0);
    if !cx.machine.platform().is_plain_page(pa, PAGE_4K) {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    let held = Pamt::of(cx.module, pa)
        .ok_or(Status::OPERAND_ADDR_RANGE_ERROR)
        .and_then(|pamt| {
            pamt.walk(cx.machine, pa, mode, PageSize::Size4K)
                .map_err(|error| error.status())
        })
        .map_err(|status| status.with(Operand::RCX))?;
    Ok((pa, held))
}

/// TDH.PHYMEM.PAGE.RDMD: RCX returns the page's type, RDX its owner, R8 its size, R9 the epoch at which it was blocked.
/// With dynamic PAMTs RCX takes the least size of the page too, and R10 and R11 return the pair of pages with the entries
/// of the smaller pages.
pub fn page_rdmd<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    const LEVEL: u64 = 7;
    const NON_LEAF: u64 = 1 << 63;
    let raw = regs.rcx;
    (regs.rcx, regs.rdx, regs.r8) = (0, 0, 0);
    (regs.r9, regs.r10, regs.r11) = (0, 0, 0);
    let invalid = Status::OPERAND_INVALID.with(Operand::RCX);
    let sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
    let is_dynamic = cx.module.has_dynamic_pamt();
    let level = (raw & LEVEL) as usize;
    let size = *sizes.get(level).ok_or(invalid)?;
    let pa = raw & !LEVEL;
    if level > 0 && !is_dynamic || !cx.machine.platform().is_plain_page(pa, size.bytes()) {
        return Err(invalid);
    }
    let pamt =
        Pamt::of(cx.module, pa).ok_or(Status::OPERAND_ADDR_RANGE_ERROR.with(Operand::RCX))?;
    let held = pamt
        .walk(cx.machine, pa, Mode::Shared, size)
        .map_err(|error| error.status().with(Operand::RCX))?;
    let page_type = held.entry().page_type();
    if level == 0 && page_type == PageType::Nda && pamt.is_pair_page(cx.machine, pa) {
        regs.rcx = PageType::Pamt as u64;
        return Ok(());
    }
    regs.rcx = page_type as u64;
    regs.r8 = held.size() as u64;
    if page_type == PageType::Pamt {
        regs.rcx |= NON_LEAF;
        [regs.r10, regs.r11] = held.entry().pair();
        return Ok(());
    }
    regs.rdx = held.entry().owner();
    if matches!(page_type, PageType::Reg | PageType::Ept) {
        regs.r9 = held.entry().bepoch();
    }
    Ok(())
}

/// TDH.PHYMEM.PAGE.WBINVD: writes back and invalidates the cache lines of a page that has returned to the host, under
/// the KeyID in RCX.
pub fn page_wbinvd<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let platform = cx.machine.platform();
    // Bits beyond the last physical address are not part of the KeyID. They remain for the check.
    let beyond = regs.rcx >> platform.max_pa << platform.max_pa;
    let pa = platform.without_keyid(regs.rcx) | beyond;
    let _page = operand::unused_page(cx, pa, Operand::RCX)?;
    cx.reached(Point::Clflush);
    Ok(())
}

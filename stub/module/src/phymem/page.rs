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
pub fn page_rdmd<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (_, held) = take_page(cx, Mode::Shared, regs)?;
    let page_type = held.entry().page_type();
    regs.rcx = page_type as u64;
    regs.rdx = held.entry().owner();
    regs.r8 = held.size() as u64;
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
    let _page = operand::private_page(cx, pa, Operand::RCX, Mode::Shared, PageType::Nda)?;
    cx.reached(Point::Clflush);
    Ok(())
}

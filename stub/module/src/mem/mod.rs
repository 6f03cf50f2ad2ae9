//! TDH.MEM.*: a TD's private memory.

mod debug;
mod page;
mod page_add;
mod range;
mod resize;
mod sept_page;
mod sept_rd;

pub use debug::{rd, wr};
pub use page::{page_aug, page_relocate, page_remove};
pub use page_add::page_add;
pub use range::{range_block, range_unblock, track};
pub use resize::{page_demote, page_promote};
pub use sept_page::{sept_add, sept_remove};
pub use sept_rd::sept_rd;

use seam::abi::{GpaLevel, Gprs, NULL_PA, PageSize, Status};

use crate::operand;

/// RCX and RDX as they were; both are zero from here on, unless the leaf has something to say in them.
fn take_rcx_rdx(regs: &mut Gprs) -> (u64, u64) {
    let taken = (regs.rcx, regs.rdx);
    (regs.rcx, regs.rdx) = (0, 0);
    taken
}

/// The pages for the S-EPTs of nested VMs in R9, R10, R11.
fn l2_pages(regs: &Gprs) -> [u64; 3] {
    [regs.r9, regs.r10, regs.r11]
}

/// Writes back the pages for the S-EPTs of nested VMs.
fn set_l2_pages(regs: &mut Gprs, pages: [u64; 3]) {
    [regs.r9, regs.r10, regs.r11] = pages;
}

/// No page for any nested VM's S-EPT.
const NO_L2_PAGES: [u64; 3] = [NULL_PA; 3];

/// The size of a page that an entry of `level`, one that can map a page, maps.
fn page_size(level: u8) -> PageSize {
    PageSize::from_level(level).unwrap_or(PageSize::Size1G)
}

/// Checks an address whose level must be one of `levels`.
///
/// # Errors
/// OPERAND_INVALID with RCX.
fn range(raw: u64, lowest: u8, highest: u8) -> Result<GpaLevel, Status> {
    operand::gpa_level(raw, lowest..=highest)
}

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

/// Returns RCX and RDX and zeroes both, so that they are zero on return unless the leaf sets them.
fn take_rcx_rdx(regs: &mut Gprs) -> (u64, u64) {
    let taken = (regs.rcx, regs.rdx);
    (regs.rcx, regs.rdx) = (0, 0);
    taken
}

/// Returns the pages for the S-EPTs of nested VMs in R9, R10, R11.
fn l2_pages(regs: &Gprs) -> [u64; 3] {
    [regs.r9, regs.r10, regs.r11]
}

/// Stores the pages for the S-EPTs of nested VMs in R9, R10, R11.
fn set_l2_pages(regs: &mut Gprs, pages: [u64; 3]) {
    [regs.r9, regs.r10, regs.r11] = pages;
}

/// No page for the S-EPT of any nested VM.
const NO_L2_PAGES: [u64; 3] = [NULL_PA; 3];

/// Returns the size of the page that an entry of `level` maps. The level must be one that can map a page.
fn page_size(level: u8) -> PageSize {
    PageSize::from_level(level).unwrap_or(PageSize::Size1G)
}

/// Checks that an address has a level between `lowest` and `highest`.
///
/// # Errors
/// OPERAND_INVALID with RCX.
fn range(raw: u64, lowest: u8, highest: u8) -> Result<GpaLevel, Status> {
    operand::gpa_level(raw, lowest..=highest)
}

//! Acceptance of memory that the host promised.

use core::ops::Range;

use seam::abi::{PAGE_2M, PAGE_4K, Status};

use crate::tdcall;

/// The pages that were accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Number of pages of 2 MiB.
    pub large: u64,
    /// Number of pages of 4 KiB.
    pub small: u64,
}

/// Accepts a range, 2 MiB at a time where possible.
///
/// # Errors
/// The address of the page that can't be accepted, and the status. A page that is accepted already is an error too:
/// the host has promised the same memory twice, and its content is not zero.
pub fn range(range: Range<u64>) -> Result<Accepted, (u64, Status)> {
    let mut accepted = Accepted::default();
    let mut at = range.start;
    while at < range.end {
        let fits = at.is_multiple_of(PAGE_2M) && range.end - at >= PAGE_2M;
        if fits {
            match tdcall::page_accept(at, 1) {
                Status::SUCCESS => {
                    accepted.large += 1;
                    at += PAGE_2M;
                    continue;
                }
                status if status.code() == Status::PAGE_SIZE_MISMATCH => {}
                status => return Err((at, status)),
            }
        }
        let end = if fits { at + PAGE_2M } else { at + PAGE_4K };
        while at < end {
            match tdcall::page_accept(at, 0) {
                Status::SUCCESS => accepted.small += 1,
                status => return Err((at, status)),
            }
            at += PAGE_4K;
        }
    }
    Ok(accepted)
}

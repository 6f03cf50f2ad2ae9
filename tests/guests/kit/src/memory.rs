//! Memory: the host's description of it, acceptance, and allocation.
//!
//! All memory is identity-mapped, and mapped again as shared in a window above.
#![expect(
    unsafe_code,
    reason = "reads the hand-off block at the address that the host chose"
)]

use core::ops::Range;

use arrayvec::ArrayVec;
use seam::abi::{PAGE_2M, PAGE_4K, Status};
use spin::Mutex;
pub use td_base::accept::{Accepted, range as accept};
use td_base::long_mode;

use crate::hob::{self, Kind};
use crate::layout::HOB_BYTES;
use crate::tdcall;

struct Memory {
    /// Memory that is not accepted yet, ascending.
    unaccepted: ArrayVec<Range<u64>, 16>,
    /// Memory that is accepted and free.
    free: Range<u64>,
    accepted: Accepted,
}

static MEMORY: Mutex<Memory> = Mutex::new(Memory {
    unaccepted: ArrayVec::new_const(),
    free: 0..0,
    accepted: Accepted { large: 0, small: 0 },
});

/// Reads the ranges of memory from the list at `gpa`.
pub(crate) fn read_hob(gpa: u64) {
    // SAFETY: the host wrote the list into memory that the image reserves for it, and nobody else uses that.
    let list = unsafe { core::slice::from_raw_parts(gpa as *const u8, HOB_BYTES as usize) };
    let ranges = hob::memory::<16>(list).expect("a list of hand-off blocks");
    let unaccepted = ranges
        .into_iter()
        .filter(|(_, kind)| *kind == Kind::Unaccepted);
    let mut memory = MEMORY.lock();
    memory.unaccepted = unaccepted.map(|(range, _)| range).collect();
    memory.unaccepted.sort_unstable_by_key(|range| range.start);
    // Rust does not allow address 0, although it is memory like any other.
    if let Some(first) = memory
        .unaccepted
        .first_mut()
        .filter(|range| range.start == 0)
    {
        first.start = PAGE_4K;
    }
}

/// Allocates memory for good: accepted, zeroed, at a multiple of `align`.
pub fn take(bytes: u64, align: u64) -> u64 {
    let mut memory = MEMORY.lock();
    loop {
        let start = memory.free.start.next_multiple_of(align);
        if start + bytes <= memory.free.end {
            memory.free.start = start + bytes;
            return start;
        }
        memory.accept_more(bytes + align);
    }
}

/// Allocates `bytes` at a multiple of 2 MiB for good, without accepting them. The caller does that.
pub fn take_unaccepted(bytes: u64) -> Option<u64> {
    let mut memory = MEMORY.lock();
    let ranges = &mut memory.unaccepted;
    let at = ranges.iter().position(|range| {
        let start = range.end.saturating_sub(bytes) & !(PAGE_2M - 1);
        start >= range.start && range.start < range.end
    })?;
    let range = &mut ranges[at];
    range.end = (range.end - bytes) & !(PAGE_2M - 1);
    Some(range.end)
}

/// Accepts all remaining memory. Returns what was accepted since the start.
pub fn accept_all() -> Accepted {
    let mut memory = MEMORY.lock();
    while let Some(range) = memory.unaccepted.pop() {
        let accepted = accept(range.clone()).expect("memory that the host promised");
        memory.accepted.large += accepted.large;
        memory.accepted.small += accepted.small;
        if range.end - range.start > memory.free.end - memory.free.start {
            memory.free = range;
        }
    }
    memory.accepted
}

impl Memory {
    /// Accepts at least the next `bytes`, which replace the free range.
    fn accept_more(&mut self, bytes: u64) {
        let range = self
            .unaccepted
            .iter_mut()
            .find(|range| range.end - range.start >= bytes)
            .expect("enough memory");
        let end = (range.start + bytes)
            .next_multiple_of(PAGE_2M)
            .min(range.end);
        let chunk = range.start..end;
        range.start = end;
        let accepted = accept(chunk.clone()).expect("memory that the host promised");
        self.accepted.large += accepted.large;
        self.accepted.small += accepted.small;
        self.free = chunk;
    }
}

/// Accepts the page that an access to `gpa` missed.
///
/// # Errors
/// The status of the module.
pub(crate) fn accept_at(gpa: u64) -> Result<(), Status> {
    let large = tdcall::page_accept(gpa & !(PAGE_2M - 1), 1);
    let status = if large == Status::SUCCESS {
        large
    } else {
        tdcall::page_accept(gpa & !(PAGE_4K - 1), 0)
    };
    match status.code() {
        // Another vCPU, or the host, may have accepted the page or be using it. The access is repeated, and faults
        // again if necessary.
        Status::SUCCESS | Status::PAGE_ALREADY_ACCEPTED | Status::OPERAND_BUSY => Ok(()),
        _ => Err(status),
    }
}

/// Returns the address at which the memory at `gpa` is mapped as shared.
pub fn shared_alias(gpa: u64) -> u64 {
    gpa + long_mode::SHARED_WINDOW
}

/// Returns the SHARED bit of a guest-physical address.
pub fn shared_bit() -> u64 {
    1 << (tdcall::vp_info().gpa_width - 1)
}

/// Reads the word at an address of memory that was taken, or accepted, or is shared.
pub fn word(at: u64) -> u64 {
    // SAFETY: all memory is mapped, words in it can be read, and no reference to it exists. An access to memory that
    // is not the guest's is reported as an exception.
    unsafe { (at as *const u64).read_volatile() }
}

/// Writes the word at an address of memory that was taken, or accepted, or is shared.
pub fn set_word(at: u64, value: u64) {
    // SAFETY: as for `word`; only the code that took the memory uses it.
    unsafe { (at as *mut u64).write_volatile(value) }
}

//! The memory that keeps a report where a reset leaves memory alone. Firmware on servers may clear it, and memory
//! encryption whose key changes with each reset makes it unreadable.
#![expect(
    unsafe_code,
    reason = "the area is memory that the boot path reserved at a fixed address"
)]

use core::{
    arch::x86_64::{_mm_clflush, _mm_mfence},
    slice,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use boot::keep::AREA_BYTES;
use crashlog::piece::{Identity, Piece};

use crate::memory;

/// The area's address, or 0.
static AREA: AtomicU64 = AtomicU64::new(0);

/// Uses the area at physical address `pa`.
pub fn prepare(pa: Option<u64>) {
    AREA.store(pa.map_or(0, memory::direct), Relaxed);
}

/// Returns true if there is an area.
pub fn is_there() -> bool {
    AREA.load(Relaxed) != 0
}

/// Keeps a report.
pub fn keep(of: Identity, text: &[u8]) {
    write(|area| {
        let piece = Piece {
            of,
            offset: 0,
            part: text,
        };
        // The area is larger than the longest text.
        let _ = piece.encode(area);
    });
}

/// Wipes the area.
pub fn wipe() {
    write(|area| area.fill(0));
}

fn write(work: impl FnOnce(&mut [u8])) {
    const LINE: usize = 64;
    let at = AREA.load(Relaxed);
    if at == 0 {
        return;
    }
    // SAFETY: the boot path reserved the area for this alone, and the direct map has it. The console's CPU wipes it, or
    // the one CPU that reports a crash writes it when the others have stopped.
    let area = unsafe { slice::from_raw_parts_mut(at as *mut u8, AREA_BYTES as usize) };
    work(area);
    // A reset discards what is only in a cache.
    for line in area.chunks(LINE) {
        // SAFETY: writing a line of this program's memory back changes nothing; every CPU with VMX has CLFLUSH.
        unsafe { _mm_clflush(line.as_ptr()) };
    }
    // SAFETY: a fence changes nothing.
    unsafe { _mm_mfence() };
}

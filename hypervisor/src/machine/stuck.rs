//! Memory of TDs whose termination is stuck. It is reported as quarantined until the termination continues.

use console::host::{Ledger, Memory};
use host::td::Frames;

/// Counts `held` as quarantined in the report. In the frame allocator the memory is still used, because it can be
/// reclaimed later.
pub fn show(held: Frames, memory: &mut Memory) {
    for (count, frames) in memory.frames.iter_mut().zip(held.0) {
        let frames = frames.min(count.used);
        count.used -= frames;
        count.quarantined += frames;
    }
    let ledger = &memory.ledger;
    let bytes = held.bytes().min(ledger.used_bytes);
    memory.ledger = Ledger::new(
        ledger.total_bytes,
        ledger.free_bytes,
        ledger.used_bytes - bytes,
        ledger.quarantined_bytes + bytes,
    );
}

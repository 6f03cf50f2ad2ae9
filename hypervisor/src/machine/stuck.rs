//! Memory of TDs whose end got stuck, as the operator is told of it: in quarantine, until the end goes on.

use console::host::{Ledger, Memory};
use host::td::Frames;

/// Counts what those TDs hold as quarantined. To the frame allocator it is used: it can still come back.
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

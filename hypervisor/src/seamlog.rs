//! A record of the last SEAMCALLs on each CPU, for the crash record.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use seam::{abi::Gprs, call::Fault};

/// Number of SEAMCALLs that are remembered for each CPU.
pub const REMEMBERED: usize = 8;

/// The status of a call that has not returned.
pub const PENDING: u64 = u64::MAX;
/// The status of a call whose instruction failed.
pub const FAULTED: u64 = u64::MAX - 1;

/// The last SEAMCALLs of one CPU. Only that CPU writes; the CPU that reports a crash reads.
#[derive(Debug, Default)]
pub struct SeamLog {
    next: AtomicUsize,
    entries: [Slot; REMEMBERED],
}

/// The record of one SEAMCALL.
#[derive(Debug, Default)]
pub struct Slot {
    tsc: AtomicU64,
    leaf: AtomicU64,
    rcx: AtomicU64,
    status: AtomicU64,
}

/// One remembered SEAMCALL.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The time-stamp counter before the call; 0 in an entry that was never used.
    pub tsc: u64,
    /// RAX in.
    pub leaf: u64,
    /// RCX in.
    pub rcx: u64,
    /// RAX out, [`PENDING`] or [`FAULTED`].
    pub status: u64,
}

impl SeamLog {
    /// Creates an empty log.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            next: AtomicUsize::new(0),
            entries: [const {
                Slot {
                    tsc: AtomicU64::new(0),
                    leaf: AtomicU64::new(0),
                    rcx: AtomicU64::new(0),
                    status: AtomicU64::new(0),
                }
            }; REMEMBERED],
        }
    }

    /// Records a call that begins with these registers. The entry is [`PENDING`] until [`Slot::end`].
    pub fn begin(&self, tsc: u64, regs: &Gprs) -> &Slot {
        let slot = &self.entries[self.next.fetch_add(1, Relaxed) % REMEMBERED];
        slot.tsc.store(tsc, Relaxed);
        slot.leaf.store(regs.rax, Relaxed);
        slot.rcx.store(regs.rcx, Relaxed);
        slot.status.store(PENDING, Relaxed);
        slot
    }

    /// Returns the remembered calls, oldest first.
    #[must_use]
    pub fn entries(&self) -> [Entry; REMEMBERED] {
        let next = self.next.load(Relaxed);
        core::array::from_fn(|i| {
            let slot = &self.entries[(next + i) % REMEMBERED];
            Entry {
                tsc: slot.tsc.load(Relaxed),
                leaf: slot.leaf.load(Relaxed),
                rcx: slot.rcx.load(Relaxed),
                status: slot.status.load(Relaxed),
            }
        })
    }
}

impl Slot {
    /// Records how the call ended, and its registers.
    pub fn end(&self, outcome: &Result<(), Fault>, regs: &Gprs) {
        let status = if outcome.is_ok() { regs.rax } else { FAULTED };
        self.status.store(status, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_calls_are_kept_in_order() {
        let log = SeamLog::new();
        for leaf in 0..REMEMBERED as u64 + 3 {
            let regs = Gprs {
                rax: leaf,
                ..Gprs::default()
            };
            log.begin(leaf + 1, &regs);
        }
        let leafs = log.entries().map(|e| e.leaf);
        assert_eq!(leafs, [3, 4, 5, 6, 7, 8, 9, 10]);
        assert!(log.entries().iter().all(|e| e.status == PENDING));
    }
}

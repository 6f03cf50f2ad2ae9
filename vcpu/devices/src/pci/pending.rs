//! The fact that functions of a bus may have work, and the side that does it: the CPUs that run the guest, or one other CPU
//! that helps them.
//!
//! # Memory ordering
//!
//! Both facts are bits of one word, and every change is a read-modify-write. Work that is added while a CPU helps comes
//! before the change by which that CPU stops, which returns it, or after it, and is then found by the CPUs that run the
//! guest, as if nobody had helped. No work is left behind.

use sync::atomic::{AtomicU8, Ordering::SeqCst};

/// A function may have work.
const WORK: u8 = 1 << 0;
/// A CPU helps.
const HELPED: u8 = 1 << 1;

/// The work of a bus.
#[derive(Debug, Default)]
pub(super) struct Pending(AtomicU8);

impl Pending {
    /// Returns whether there is work for the CPUs that run the guest.
    #[inline]
    pub fn is_guests(&self) -> bool {
        self.0.load(SeqCst) == WORK
    }

    /// Returns whether there is any.
    pub fn is_any(&self) -> bool {
        self.0.load(SeqCst) & WORK != 0
    }

    /// Returns whether a CPU helps.
    pub fn is_helped(&self) -> bool {
        self.0.load(SeqCst) & HELPED != 0
    }

    pub fn add(&self) {
        self.0.fetch_or(WORK, SeqCst);
    }

    /// Notes that the caller looks for all work there is.
    pub fn take(&self) {
        self.0.fetch_and(!WORK, SeqCst);
    }

    /// Makes it the work of the calling CPU. Returns `false` if another one helps.
    pub fn begin_help(&self) -> bool {
        self.0.fetch_or(HELPED, SeqCst) & HELPED == 0
    }

    /// Makes it the work of the CPUs that run the guest again. Returns whether there is any.
    pub fn end_help(&self) -> bool {
        self.0.fetch_and(!HELPED, SeqCst) & WORK != 0
    }
}

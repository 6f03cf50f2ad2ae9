//! Exit counters of a vCPU, by cause. One CPU writes them, any CPU reads them.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! tally {
    ($($name:ident: $text:literal,)*) => {
        /// Counters of one vCPU.
        #[derive(Debug, Default)]
        pub struct Tally {
            $(#[doc = $text] pub $name: Count,)*
        }

        impl Tally {
            /// Returns the name and the value of each counter.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                [$(($text, self.$name.get()),)*].into_iter()
            }
        }
    };
}

tally! {
    entries: "TDH.VP.ENTER",
    calls: "TDVMCALLs",
    interrupts: "host interrupts",
    nmis: "host NMIs",
    faults: "private addresses that were not mapped",
    splits: "large pages split for the guest",
    small: "pages mapped as 4 KiB because no larger one could be",
    retries: "entries or pages for which something was busy",
    bus_locks: "bus locks",
    notifies: "notification windows passed",
    passed: "SMIs and INITs",
    priority: "TDCALLs that the host's priority delayed",
    posted: "notifications sent to itself",
    timers: "timers expired",
    nmis_in: "NMIs injected",
}

/// A counter that one CPU increments.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Returns the value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Increments the counter. Only the CPU that runs the vCPU calls this, so no count is lost.
    pub(crate) fn add(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

//! The cost model: every number of the simulation, with its origin. Nothing else in the simulation contains a time.

use core::ops::Index;

use seam::abi::Leaf;

use super::machine::{Charge, Line};

/// CPUs in a package: the cores of an Intel Xeon Platinum 8480+, one thread each (Intel ARK).
pub const CPUS_PER_PACKAGE: u32 = 56;

/// The origin of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Chosen so that Linux's way takes the measured time; see [`super::fit`].
    Fitted,
    /// Published.
    Source(&'static str),
    /// Assumed; there is no measurement.
    Assumed(&'static str),
}

/// A number of the model, in nanoseconds per operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Number {
    /// A SEAMCALL, from the host's call to its return, no line contended.
    Seamcall,
    /// Linux's work for a page of 4 KiB besides the SEAMCALLs, and clearing it.
    LinuxPage,
    /// Making one vCPU in the same package leave the guest, and waiting for it.
    KickNear,
    /// The same for a vCPU in another package.
    KickFar,
    /// Transferring a cache line from a CPU of the same package.
    LineNear,
    /// Transferring a cache line from another package.
    LineFar,
    /// A locked operation on a line that the CPU has.
    Atomic,
    /// Clearing 4 KiB by MOVDIR64B at one CPU's maximum speed.
    ClearCpu,
    /// Clearing 4 KiB at the maximum speed of all CPUs together in the memory of one package.
    ClearPackage,
    /// The hypervisor's work for a page besides the SEAMCALL: mirror, accounting.
    HostPage,
    /// The hypervisor's work for a step of at most 8 pages.
    HostStep,
    /// Freeing frames while holding the allocator's lock.
    Ledger,
    /// The interval at which an idle CPU looks for work.
    Poll,
    /// The time from sending an IPI until its handler runs.
    Ipi,
    /// Sending one more IPI.
    IpiSend,
    /// TDH.VP.FLUSH, beyond a SEAMCALL.
    VpFlush,
    /// TDH.MEM.PAGE.DEMOTE and PROMOTE, beyond a SEAMCALL.
    Resize,
    /// TDH.PHYMEM.CACHE.WB of one package's caches, beyond a SEAMCALL.
    CacheWriteBack,
}

use Number as N;
use Origin::{Assumed, Fitted, Source};

/// Every number: its name, its value in nanoseconds, its origin. Fitted ones get their value from [`super::fit`].
const NUMBERS: [(Number, &str, f64, Origin); 18] = [
    (N::Seamcall, "SEAMCALL", 0.0, Fitted),
    (N::LinuxPage, "Linux, each page", 0.0, Fitted),
    (N::KickNear, "kick, same package", 0.0, Fitted),
    (N::KickFar, "kick, other package", 0.0, Fitted),
    (
        N::LineNear,
        "cache line, same package",
        100.0,
        Source("given by the requirements of this simulation"),
    ),
    (
        N::LineFar,
        "cache line, other package",
        200.0,
        Source("given by the requirements of this simulation"),
    ),
    (
        N::Atomic,
        "locked operation",
        10.0,
        Assumed("some 20 cycles at 2 GHz"),
    ),
    (
        N::ClearCpu,
        "clear 4 KiB, one CPU",
        410.0,
        Assumed("10 GB/s of direct stores"),
    ),
    (
        N::ClearPackage,
        "clear 4 KiB, one package",
        27.0,
        Assumed(
            "150 GB/s: half of eight channels of DDR5-4800 (Intel ARK, Xeon Platinum 8480+), the rest for turning the bus",
        ),
    ),
    (
        N::HostPage,
        "host, each page",
        50.0,
        Assumed("twice what the code takes on a desktop CPU"),
    ),
    (
        N::HostStep,
        "host, each step",
        100.0,
        Assumed("a hand-out, two looks at the clock"),
    ),
    (
        N::Ledger,
        "frame allocator",
        300.0,
        Assumed("one block given back, or 512 that are one again"),
    ),
    (
        N::Poll,
        "idle CPU",
        20_000.0,
        Assumed("it looks 50 times in a millisecond"),
    ),
    (
        N::Ipi,
        "IPI",
        1_500.0,
        Assumed("delivery and the way into the handler"),
    ),
    (
        N::IpiSend,
        "IPI, each further one",
        200.0,
        Assumed("a WRMSR to the x2APIC's ICR"),
    ),
    (
        N::VpFlush,
        "TDH.VP.FLUSH",
        3_000.0,
        Assumed("INVEPT and VMCLEAR in the module"),
    ),
    (
        N::Resize,
        "DEMOTE, PROMOTE",
        10_000.0,
        Assumed("512 entries are written"),
    ),
    (
        N::CacheWriteBack,
        "cache write-back",
        5_400_000.0,
        Assumed(
            "217 MB at 40 GB/s: 105 MB of L3 and 56 times 2 MB of L2 (Intel ARK, Xeon Platinum 8480+)",
        ),
    ),
];

impl Number {
    /// Iterates over all numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        NUMBERS.iter().map(|(number, ..)| *number)
    }

    /// Returns the number's name in tables.
    pub fn name(self) -> &'static str {
        NUMBERS[self as usize].1
    }

    /// Returns the number's origin.
    pub fn origin(self) -> Origin {
        NUMBERS[self as usize].3
    }
}

/// A value for each number.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost([f64; NUMBERS.len()]);

impl Cost {
    /// Creates the model from the values in the table, with these for the fitted ones.
    pub fn with_fitted(fitted: [(Number, f64); 4]) -> Self {
        let mut cost = Self(NUMBERS.map(|(_, _, value, _)| value));
        for (number, value) in fitted {
            cost.0[number as usize] = value;
        }
        cost
    }

    /// Returns a copy with one number multiplied by `factor`.
    pub fn scaled(&self, number: Number, factor: f64) -> Self {
        let mut cost = self.clone();
        cost.0[number as usize] *= factor;
        cost
    }

    /// Returns the picoseconds for `count` operations.
    pub fn ps(&self, number: Number, count: f64) -> u64 {
        (self[number] * count * 1e3 + 0.5) as u64
    }
}

impl Index<Number> for Cost {
    type Output = f64;

    /// Returns the nanoseconds for one operation.
    fn index(&self, number: Number) -> &f64 {
        &self.0[number as usize]
    }
}

/// Charges the cost of a SEAMCALL and of the hypervisor's work around it.
pub fn of_call(leaf: u64, page: u64, charge: impl FnOnce(&[Charge])) {
    let is = |one: Leaf| leaf == one.rax();
    let call = |share| Charge::Spend(N::Seamcall, share);
    if is(Leaf::PhymemPageReclaim) {
        // Source: intel/tdx-module, tdx_1.5, tdh_phymem_page_reclaim.c: pamt_walk locks the entries above the page
        // shared, lock_and_map_implicit_tdr the TDR's; then chldcnt changes, then all are released. The entries of 2
        // MiB and 4 KiB are in lines that only the CPU of the region touches.
        let above = Charge::Touch(Line::Pamt1g((page >> 32) as u32));
        let tdr = Charge::Touch(Line::TdrLock);
        let count = Charge::Touch(Line::TdrCount);
        let host = Charge::Spend(N::HostPage, 1.0);
        charge(&[host, call(0.5), above, tdr, count, tdr, above, call(0.5)]);
    } else if is(Leaf::MemRangeBlock) {
        // The mirror is updated once for a page that is taken.
        charge(&[call(1.0), Charge::Spend(N::HostPage, 1.0)]);
    } else if is(Leaf::PhymemCacheWb) {
        charge(&[call(1.0), Charge::Spend(N::CacheWriteBack, 1.0)]);
    } else if is(Leaf::VpFlush) {
        charge(&[call(1.0), Charge::Spend(N::VpFlush, 1.0)]);
    } else if is(Leaf::MemPageDemote) || is(Leaf::MemPagePromote) {
        charge(&[call(1.0), Charge::Spend(N::Resize, 1.0)]);
    } else {
        charge(&[call(1.0)]);
    }
}

/// A CPU's work before the step of a reclaim: it finds the TD in the host's list and checks its map's root, each under
/// a lock.
pub const BEFORE_STEP: [Charge; 5] = [
    Charge::Spend(N::HostStep, 1.0),
    Charge::Touch(Line::Entry),
    Charge::Touch(Line::Holders),
    Charge::Touch(Line::Entry),
    Charge::Touch(Line::Root),
];
/// A CPU's work after the step of a reclaim; see [`BEFORE_STEP`].
pub const AFTER_STEP: [Charge; 4] = [
    Charge::Touch(Line::Root),
    Charge::Touch(Line::Holders),
    Charge::Touch(Line::Entry),
    Charge::Touch(Line::Entry),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_listed_in_order_and_at_most_4_are_fitted() {
        for (index, number) in Number::all().enumerate() {
            assert_eq!(number as usize, index);
        }
        let fitted = Number::all().filter(|number| number.origin() == Origin::Fitted);
        assert_eq!(fitted.count(), 4);
    }
}

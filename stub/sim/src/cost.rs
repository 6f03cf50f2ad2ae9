//! The cost model: every number that simulated time is made of, with where it is from.
//!
//! Nobody has published what a SEAMCALL costs on a server, so four numbers are *fitted*: with them, the model of Linux's way
//! ([`crate::linux`]) takes as long as what was measured there. Others were *given* with the task or follow from a data
//! sheet; the rest is *assumed*. A reader who doubts one halves or doubles it ([`Costs::scaled`]) and looks again.

use seam::abi::Leaf;

/// Where a number is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Chosen so that the model of Linux's way takes as long as Linux did.
    Fitted,
    /// Given with the task.
    Given,
    /// A guess, for the reason that the source tells.
    Assumed,
}

impl Basis {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fitted => "fitted",
            Self::Given => "given",
            Self::Assumed => "assumed",
        }
    }
}

/// The numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// One SEAMCALL there and back, with what a short leaf does.
    Seamcall,
    /// What Linux does for each page beside the SEAMCALLs and clearing.
    LinuxPage,
    /// What one more vCPU adds to a round of kicks, when its CPU is in the package of who kicks.
    KickInside,
    /// The same in another package.
    KickAcross,
    /// A cache line from one CPU to another of its package.
    LineInside,
    /// The same to another package.
    LineAcross,
    /// Clearing by one CPU.
    ClearRate,
    /// What the memory of one package takes in.
    PackageBandwidth,
    /// TDH.PHYMEM.PAGE.WBINVD's 64 lines.
    PageFlush,
    /// TDH.VP.FLUSH's INVEPT and VMCLEAR.
    VpFlush,
    /// TDH.PHYMEM.CACHE.WB of one package.
    WriteBack,
    /// From an interrupt's sending to its handler's first line.
    Interrupt,
    /// What our code does for each step of a reclaim.
    StepBooks,
    /// What our code does for each page.
    PageBooks,
    /// Holding the frame allocator's lock once.
    FrameLock,
    /// What the frame allocator does under its lock for each frame.
    FrameBooks,
}

/// One row of the model.
#[derive(Clone, Copy, Debug)]
pub struct Number {
    /// Which.
    pub item: Item,
    /// Its name in tables.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// Where it is from.
    pub basis: Basis,
    /// The same in more words.
    pub source: &'static str,
}

/// The model.
pub const NUMBERS: [Number; 16] = [
    Number {
        item: Item::Seamcall,
        name: "SEAMCALL",
        value: 3.18,
        unit: "us",
        basis: Basis::Fitted,
        source: "what Linux's way takes before less what it takes after, with 4 vCPUs: three calls and a page flush",
    },
    Number {
        item: Item::LinuxPage,
        name: "Linux, a page",
        value: 1.05,
        unit: "us",
        basis: Basis::Fitted,
        source: "what Linux's way takes after, less one call and clearing 4 KiB",
    },
    Number {
        item: Item::KickInside,
        name: "kick inside a package",
        value: 0.113,
        unit: "us",
        basis: Basis::Fitted,
        source: "Linux before, from 4 to 32 vCPUs",
    },
    Number {
        item: Item::KickAcross,
        name: "kick across packages",
        value: 1.075,
        unit: "us",
        basis: Basis::Fitted,
        source: "Linux before, from 32 to 64 vCPUs, half of which are in the other package",
    },
    Number {
        item: Item::LineInside,
        name: "line inside a package",
        value: 0.1,
        unit: "us",
        basis: Basis::Given,
        source: "the task",
    },
    Number {
        item: Item::LineAcross,
        name: "line across packages",
        value: 0.2,
        unit: "us",
        basis: Basis::Given,
        source: "the task",
    },
    Number {
        item: Item::ClearRate,
        name: "clearing by a CPU",
        value: 8.0,
        unit: "GB/s",
        basis: Basis::Assumed,
        source: "MOVDIR64B of 64 bytes every 8 ns: ten or so direct stores under way, some 80 ns each",
    },
    Number {
        item: Item::PackageBandwidth,
        name: "memory of a package",
        value: 153.6,
        unit: "GB/s",
        basis: Basis::Assumed,
        source: "half of what eight channels of DDR5-4800 can do (Xeon Platinum 8480+ data sheet)",
    },
    Number {
        item: Item::PageFlush,
        name: "flush of a page",
        value: 0.64,
        unit: "us",
        basis: Basis::Assumed,
        source: "CLFLUSHOPT of 64 lines, 10 ns each",
    },
    Number {
        item: Item::VpFlush,
        name: "flush of a vCPU",
        value: 3.0,
        unit: "us",
        basis: Basis::Assumed,
        source: "one INVEPT and one VMCLEAR, beside the SEAMCALL",
    },
    Number {
        item: Item::WriteBack,
        name: "write-back of a package",
        value: 10_000.0,
        unit: "us",
        basis: Basis::Assumed,
        source: "217 MB of L2 and L3 (Xeon Platinum 8480+), all dirty, at 22 GB/s",
    },
    Number {
        item: Item::Interrupt,
        name: "interrupt",
        value: 2.0,
        unit: "us",
        basis: Basis::Assumed,
        source: "from the ICR's write to the handler, the target being in its idle loop or a TD",
    },
    Number {
        item: Item::StepBooks,
        name: "our books, a step",
        value: 0.3,
        unit: "us",
        basis: Basis::Assumed,
        source: "a few hundred instructions: the seat, the map's lock, the tally",
    },
    Number {
        item: Item::PageBooks,
        name: "our books, a page",
        value: 0.05,
        unit: "us",
        basis: Basis::Assumed,
        source: "a hundred instructions: the mirror's entry, the call's operands, its counters",
    },
    Number {
        item: Item::FrameLock,
        name: "frame allocator's lock",
        value: 0.1,
        unit: "us",
        basis: Basis::Assumed,
        source: "taking and releasing it, beside the line's transfer",
    },
    Number {
        item: Item::FrameBooks,
        name: "frame allocator, a frame",
        value: 0.02,
        unit: "us",
        basis: Basis::Assumed,
        source: "a few bits of its bitmaps",
    },
];

/// Picoseconds in a microsecond.
const US: f64 = 1e6;

/// The numbers of one simulation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs([f64; NUMBERS.len()]);

impl Default for Costs {
    fn default() -> Self {
        Self(NUMBERS.map(|number| number.value))
    }
}

impl Costs {
    /// The same, with one number multiplied by `factor`.
    #[must_use]
    pub fn scaled(mut self, item: Item, factor: f64) -> Self {
        self.0[item as usize] *= factor;
        self
    }

    /// One number, in its unit.
    pub const fn get(&self, item: Item) -> f64 {
        self.0[item as usize]
    }

    /// A time, in picoseconds.
    pub const fn ps(&self, item: Item) -> u64 {
        (self.get(item) * US) as u64
    }

    /// What one byte takes at a rate, in picoseconds; a rate of 1 GB/s is 1,000.
    pub const fn ps_per_byte(&self, item: Item) -> f64 {
        1e3 / self.get(item)
    }

    /// What a SEAMCALL takes on a CPU that nobody disturbs, in picoseconds.
    pub const fn call(&self, leaf: Leaf) -> u64 {
        let own = match leaf {
            Leaf::PhymemPageWbinvd => self.ps(Item::PageFlush),
            Leaf::VpFlush => self.ps(Item::VpFlush),
            Leaf::PhymemCacheWb => self.ps(Item::WriteBack),
            _ => 0,
        };
        self.ps(Item::Seamcall) + own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_are_in_the_order_of_the_items() {
        for (at, number) in NUMBERS.iter().enumerate() {
            assert_eq!(number.item as usize, at);
        }
    }

    #[test]
    fn at_most_four_numbers_are_fitted_and_every_one_has_a_source() {
        let fitted = NUMBERS.iter().filter(|n| n.basis == Basis::Fitted);
        assert!(fitted.count() <= 4);
        for number in &NUMBERS {
            assert!(number.value > 0.0 && !number.source.is_empty());
        }
    }

    #[test]
    fn a_rate_becomes_a_time_per_byte() {
        let costs = Costs::default();
        assert_eq!(costs.ps_per_byte(Item::ClearRate), 125.0);
        let doubled = costs.scaled(Item::Seamcall, 2.0);
        assert_eq!(doubled.ps(Item::Seamcall), 2 * costs.ps(Item::Seamcall));
    }
}

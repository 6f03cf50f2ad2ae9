//! The accesses of a TD that nothing answered: ports and memory without a device, and MSRs that it does not have.
//!
//! The list shows the operator, and developers, what a guest looks for in vain. It is bounded, and no access takes a
//! lock.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use seam::abi::PAGE_4K;

/// Largest number of places in the list. The accesses to further places are counted together.
const MOST: usize = 32;
/// In a place's word, the kind is above the address, which is less than this.
const ADDRESS_BITS: u32 = 56;

/// The kind of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// IN or OUT.
    Port = 1,
    /// A load or store of memory-mapped registers. All of a page of 4 KiB are one place.
    Memory = 2,
    /// RDMSR or WRMSR.
    Msr = 3,
}

/// The accesses to one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accesses {
    /// The kind.
    pub kind: Kind,
    /// The port, the address of the page, or the number of the MSR.
    pub at: u64,
    /// Number of reads.
    pub reads: u64,
    /// Number of writes.
    pub writes: u64,
}

/// The list.
#[derive(Debug)]
pub struct Unanswered {
    /// In use from the first on, each for ever.
    places: [Place; MOST],
    others: AtomicU64,
}

#[derive(Debug)]
struct Place {
    /// Kind and address; zero while the place is free.
    word: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Default for Unanswered {
    fn default() -> Self {
        let place = || Place {
            word: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        };
        Self {
            places: core::array::from_fn(|_| place()),
            others: AtomicU64::new(0),
        }
    }
}

impl Unanswered {
    /// Counts a read.
    #[inline(never)]
    pub(crate) fn read(&self, kind: Kind, at: u64) {
        let count = self.place(kind, at).map(|place| &place.reads);
        count.unwrap_or(&self.others).fetch_add(1, Relaxed);
    }

    /// Counts a write.
    #[inline(never)]
    pub(crate) fn write(&self, kind: Kind, at: u64) {
        let count = self.place(kind, at).map(|place| &place.writes);
        count.unwrap_or(&self.others).fetch_add(1, Relaxed);
    }

    /// Returns the place of an address, which gets one if there is a free one.
    fn place(&self, kind: Kind, at: u64) -> Option<&Place> {
        let at = match kind {
            Kind::Memory => at & !(PAGE_4K - 1),
            Kind::Port | Kind::Msr => at,
        };
        let word = (kind as u64) << ADDRESS_BITS | at & ((1 << ADDRESS_BITS) - 1);
        self.places.iter().find(|place| {
            let is = match place.word.load(Relaxed) {
                // Another CPU may take the place first.
                0 => place.word.compare_exchange(0, word, Relaxed, Relaxed),
                is => Err(is),
            };
            is.map_or_else(|is| is == word, |_| true)
        })
    }

    /// Returns the places in the order of the first accesses.
    pub fn list(&self) -> impl Iterator<Item = Accesses> + '_ {
        self.places.iter().map_while(|place| {
            let word = place.word.load(Relaxed);
            Some(Accesses {
                kind: Kind::of(word >> ADDRESS_BITS)?,
                at: word & ((1 << ADDRESS_BITS) - 1),
                reads: place.reads.load(Relaxed),
                writes: place.writes.load(Relaxed),
            })
        })
    }

    /// Returns the number of accesses to places that the list has no room for.
    pub fn others(&self) -> u64 {
        self.others.load(Relaxed)
    }
}

impl Kind {
    const fn of(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Port),
            2 => Some(Self::Memory),
            3 => Some(Self::Msr),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn each_place_is_counted_and_a_page_is_one() {
        let list = Unanswered::default();
        list.read(Kind::Port, 0x80);
        list.write(Kind::Port, 0x80);
        list.write(Kind::Port, 0x80);
        list.read(Kind::Memory, 0x7000_0000_0123);
        list.read(Kind::Memory, 0x7000_0000_0FF8);
        list.read(Kind::Msr, 0x80);
        let is = |kind, at, reads, writes| Accesses {
            kind,
            at,
            reads,
            writes,
        };
        let all: Vec<_> = list.list().collect();
        assert_eq!(
            all,
            [
                is(Kind::Port, 0x80, 1, 2),
                is(Kind::Memory, 0x7000_0000_0000, 2, 0),
                is(Kind::Msr, 0x80, 1, 0),
            ]
        );
        assert_eq!(list.others(), 0);
    }

    #[test]
    fn a_guest_that_tries_every_port_fills_the_list_and_no_more() {
        let list = Unanswered::default();
        for port in 0..=u16::MAX {
            list.read(Kind::Port, port.into());
        }
        assert_eq!(list.list().count(), MOST);
        assert!(list.list().all(|place| place.reads == 1));
        assert_eq!(list.others(), (1 << 16) - MOST as u64);
        // Those in the list are still counted there.
        list.write(Kind::Port, 5);
        assert_eq!(list.list().nth(5).map(|place| place.writes), Some(1));
    }

    #[test]
    fn no_count_is_lost_between_cpus() {
        let list = Unanswered::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for at in 0..4000 {
                        list.read(Kind::Msr, at % 40);
                    }
                });
            }
        });
        let counted: u64 = list.list().map(|place| place.reads).sum();
        assert_eq!(counted + list.others(), 16_000);
        let mut places: Vec<_> = list.list().map(|place| place.at).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), MOST, "no place twice");
    }
}

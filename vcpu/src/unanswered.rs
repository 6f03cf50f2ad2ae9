//! The accesses of a TD that nothing answered: ports and memory without a device, and MSRs that it does not have.
//!
//! The lists show the operator, and developers, what a guest looks for in vain. Each vCPU has its own, which is bounded;
//! one CPU writes it, any CPU reads it.

use alloc::vec::Vec;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use seam::abi::PAGE_4K;

use crate::tally::Count;

/// Largest number of places in the list. The accesses to further places are counted together.
const MOST: usize = 64;
/// Number of places that are tried for an address, one behind the other, which bounds the cost of an access.
const TRIED: usize = 8;
/// In a place's word, the kind is above the number of the port, page or MSR, which is less than this.
const NUMBER_BITS: u32 = 56;

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

/// The accesses of a TD, or of one of its vCPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The places in the order of the first accesses of each vCPU.
    pub places: Vec<Accesses>,
    /// Number of accesses to places that the lists have no room for.
    pub others: u64,
}

impl Report {
    /// Adds a vCPU's accesses.
    fn add(mut self, of: &Unanswered) -> Self {
        for one in of.list() {
            let known = self
                .places
                .iter_mut()
                .find(|place| (place.kind, place.at) == (one.kind, one.at));
            match known {
                Some(place) => {
                    place.reads += one.reads;
                    place.writes += one.writes;
                }
                None => self.places.push(one),
            }
        }
        self.others += of.others.get();
        self
    }

    /// Returns the accesses of all these vCPUs.
    pub(crate) fn of<'a>(all: impl Iterator<Item = &'a Unanswered>) -> Self {
        all.fold(Self::default(), Self::add)
    }
}

/// The list of one vCPU: a hash table, so that no access takes long, however many places there are.
#[derive(Debug)]
pub(crate) struct Unanswered {
    places: [Place; MOST],
    /// Number of places in use.
    used: AtomicU32,
    others: Count,
}

#[derive(Debug, Default)]
struct Place {
    /// Kind and number; zero while the place is free.
    word: AtomicU64,
    reads: Count,
    writes: Count,
    /// Number of places that were in use before.
    order: AtomicU32,
}

impl Default for Unanswered {
    fn default() -> Self {
        Self {
            places: core::array::from_fn(|_| Place::default()),
            used: AtomicU32::new(0),
            others: Count::default(),
        }
    }
}

impl Unanswered {
    /// Counts a read. Only the CPU that runs the vCPU calls this.
    #[inline]
    pub fn read(&self, kind: Kind, at: u64) {
        match self.place(kind, at) {
            Some(place) => place.reads.add(),
            None => self.others.add(),
        }
    }

    /// Counts a write. Only the CPU that runs the vCPU calls this.
    #[inline]
    pub fn write(&self, kind: Kind, at: u64) {
        match self.place(kind, at) {
            Some(place) => place.writes.add(),
            None => self.others.add(),
        }
    }

    /// Returns the place of an address, which gets one if there is a free one.
    #[inline(always)]
    fn place(&self, kind: Kind, at: u64) -> Option<&Place> {
        let number = at / kind.granule() % (1 << NUMBER_BITS);
        let word = (kind as u64) << NUMBER_BITS | number;
        // Neighbours get different places.
        let first = (number ^ number >> 6) as usize % MOST;
        let place = &self.places[first];
        if place.word.load(Relaxed) == word {
            return Some(place);
        }
        self.place_from(first, word)
    }

    /// Returns the place of a word, or makes a free one its place.
    #[cold]
    #[inline(never)]
    fn place_from(&self, first: usize, word: u64) -> Option<&Place> {
        for next in first..first + TRIED {
            let place = &self.places[next % MOST];
            match place.word.load(Relaxed) {
                0 => {
                    let order = self.used.load(Relaxed);
                    place.order.store(order, Relaxed);
                    self.used.store(order + 1, Relaxed);
                    // A reader that finds the word finds the order.
                    place.word.store(word, Release);
                    return Some(place);
                }
                there if there == word => return Some(place),
                _ => {}
            }
        }
        None
    }

    /// Returns the places in the order of the first accesses.
    fn list(&self) -> Vec<Accesses> {
        let mut all: Vec<_> = self.places.iter().filter_map(Place::listed).collect();
        all.sort_by_key(|(order, _)| *order);
        all.into_iter().map(|(_, accesses)| accesses).collect()
    }
}

impl Place {
    /// Returns the place's order and accesses, if it is in use.
    fn listed(&self) -> Option<(u32, Accesses)> {
        let word = self.word.load(Acquire);
        let kind = Kind::of(word >> NUMBER_BITS)?;
        let accesses = Accesses {
            kind,
            at: (word & ((1 << NUMBER_BITS) - 1)) * kind.granule(),
            reads: self.reads.get(),
            writes: self.writes.get(),
        };
        Some((self.order.load(Relaxed), accesses))
    }
}

impl Kind {
    /// Returns the number of addresses that are one place.
    const fn granule(self) -> u64 {
        match self {
            Self::Memory => PAGE_4K,
            Self::Port | Self::Msr => 1,
        }
    }

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
        assert_eq!(
            list.list(),
            [
                is(Kind::Port, 0x80, 1, 2),
                is(Kind::Memory, 0x7000_0000_0000, 2, 0),
                is(Kind::Msr, 0x80, 1, 0),
            ]
        );
        assert_eq!(list.others.get(), 0);
    }

    #[test]
    fn a_guest_that_tries_every_port_fills_the_list_and_no_more() {
        let list = Unanswered::default();
        for port in 0..=u16::MAX {
            list.read(Kind::Port, port.into());
        }
        let listed = list.list();
        assert_eq!(listed.len(), MOST);
        assert!(listed.iter().all(|place| place.reads == 1));
        assert_eq!(list.others.get(), (1 << 16) - MOST as u64);
        // Those in the list are still counted there.
        list.write(Kind::Port, 5);
        assert_eq!((list.list()[5].at, list.list()[5].writes), (5, 1));
    }

    #[test]
    fn places_that_share_their_first_place_have_room_nearby_and_keep_their_order() {
        let list = Unanswered::default();
        // The same number is a page, a port and an MSR; the others begin at the same place of the table.
        let all = [
            (Kind::Memory, 0x3F * PAGE_4K),
            (Kind::Port, 0x3F),
            (Kind::Msr, 0x3F),
            (Kind::Port, 0x7E),
            (Kind::Port, 0xBD),
            (Kind::Port, 0xFC),
            (Kind::Port, 0x13B),
            (Kind::Port, 0x17A),
        ];
        assert_eq!(all.len(), TRIED);
        for _ in 0..2 {
            all.iter().for_each(|(kind, at)| list.read(*kind, *at));
            list.write(Kind::Port, 0x1B9);
        }
        let listed: Vec<_> = list.list();
        let places: Vec<_> = listed.iter().map(|place| (place.kind, place.at)).collect();
        assert_eq!(places, all);
        assert!(listed.iter().all(|place| place.reads == 2));
        assert_eq!(list.others.get(), 2);
    }

    #[test]
    fn a_report_adds_the_vcpus_up() {
        let all: [Unanswered; 3] = core::array::from_fn(|_| Unanswered::default());
        all[0].read(Kind::Port, 0x80);
        all[1].write(Kind::Msr, 0x80);
        all[1].read(Kind::Port, 0x80);
        for port in 0..72 {
            all[2].write(Kind::Port, 0x40 + port);
        }
        let report = Report::of(all.iter());
        let first = Accesses {
            kind: Kind::Port,
            at: 0x80,
            reads: 2,
            writes: 0,
        };
        assert_eq!(report.places[0], first);
        assert_eq!(
            report.places.len(),
            2 + MOST,
            "0x80 is beyond the third's list"
        );
        assert_eq!(report.others, 72 - MOST as u64);
    }
}

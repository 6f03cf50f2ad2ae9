//! The accesses of a TD that nothing answered: ports and memory without a device, and MSRs that it does not have.
//!
//! The lists show the operator, and developers, what a guest looks for in vain. Each vCPU has its own, which is bounded;
//! one CPU writes it, any CPU reads it.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use seam::abi::PAGE_4K;

use crate::tally::Count;

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

/// The list of one vCPU.
#[derive(Debug, Default)]
pub(crate) struct Unanswered {
    /// In use from the first on, each for ever.
    places: [Place; MOST],
    others: Count,
}

#[derive(Debug, Default)]
struct Place {
    /// Kind and address; zero while the place is free.
    word: AtomicU64,
    reads: Count,
    writes: Count,
}

impl Unanswered {
    /// Counts a read. Only the CPU that runs the vCPU calls this.
    pub fn read(&self, kind: Kind, at: u64) {
        let place = self.place(kind, at).map(|place| &place.reads);
        place.unwrap_or(&self.others).add();
    }

    /// Counts a write. Only the CPU that runs the vCPU calls this.
    pub fn write(&self, kind: Kind, at: u64) {
        let place = self.place(kind, at).map(|place| &place.writes);
        place.unwrap_or(&self.others).add();
    }

    /// Returns the place of an address, which gets one if there is a free one.
    fn place(&self, kind: Kind, at: u64) -> Option<&Place> {
        let at = match kind {
            Kind::Memory => at & !(PAGE_4K - 1),
            Kind::Port | Kind::Msr => at,
        };
        let wanted = (kind as u64) << ADDRESS_BITS | at & ((1 << ADDRESS_BITS) - 1);
        for place in &self.places {
            let word = place.word.load(Relaxed);
            if word == 0 {
                place.word.store(wanted, Relaxed);
            }
            if word == 0 || word == wanted {
                return Some(place);
            }
        }
        None
    }

    /// Returns the places in the order of the first accesses.
    fn list(&self) -> impl Iterator<Item = Accesses> + '_ {
        self.places.iter().map_while(|place| {
            let word = place.word.load(Relaxed);
            Some(Accesses {
                kind: Kind::of(word >> ADDRESS_BITS)?,
                at: word & ((1 << ADDRESS_BITS) - 1),
                reads: place.reads.get(),
                writes: place.writes.get(),
            })
        })
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
        assert_eq!(list.others.get(), 0);
    }

    #[test]
    fn a_guest_that_tries_every_port_fills_the_list_and_no_more() {
        let list = Unanswered::default();
        for port in 0..=u16::MAX {
            list.read(Kind::Port, port.into());
        }
        assert_eq!(list.list().count(), MOST);
        assert!(list.list().all(|place| place.reads == 1));
        assert_eq!(list.others.get(), (1 << 16) - MOST as u64);
        // Those in the list are still counted there.
        list.write(Kind::Port, 5);
        assert_eq!(list.list().nth(5).map(|place| place.writes), Some(1));
    }

    #[test]
    fn a_report_adds_the_vcpus_up() {
        let all: [Unanswered; 3] = core::array::from_fn(|_| Unanswered::default());
        all[0].read(Kind::Port, 0x80);
        all[1].write(Kind::Msr, 0x80);
        all[1].read(Kind::Port, 0x80);
        for port in 0..40 {
            all[2].write(Kind::Port, 0x60 + port);
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
        assert_eq!(report.others, 40 - MOST as u64);
    }
}

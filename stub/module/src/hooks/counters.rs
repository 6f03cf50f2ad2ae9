//! Counts of the calls of each leaf, by status.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::{Leaf, Status};
use spin::Mutex;

use crate::module::Lp;

const LEAFS: usize = 128;

/// Capacity, preallocated for each logical processor, for pairs of a leaf and a status. It keeps the first call with a
/// new pair from looking like a memory leak. It grows on demand.
const OTHERS: usize = 128;

/// The counts of one logical processor. Calls of unknown leafs are not counted.
pub struct Counts {
    successes: [AtomicU64; LEAFS],
    others: Mutex<Others>,
}

/// Rare outcomes, by leaf and status code.
pub(crate) type Others = Vec<((Leaf, u64), u64)>;

/// Returns the capacity for rare outcomes that a processor has from the start.
pub(crate) fn room() -> Others {
    Others::with_capacity(OTHERS)
}

impl fmt::Debug for Counts {
    /// Omits the counts, so that a module's debug output is the same before and after a failed call.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").finish_non_exhaustive()
    }
}

impl Counts {
    /// Creates counters at zero.
    pub(crate) fn with_room(room: Others) -> Self {
        Self {
            successes: [const { AtomicU64::new(0) }; LEAFS],
            others: Mutex::new(room),
        }
    }

    #[inline(always)]
    pub(crate) fn count(&self, leaf: Leaf, status: Status) {
        match self.successes.get(leaf.number() as usize) {
            Some(successes) if status.code() == Status::SUCCESS => {
                successes.fetch_add(1, Ordering::Relaxed);
            }
            _ => self.count_other(leaf, status),
        }
    }

    #[inline(never)]
    fn count_other(&self, leaf: Leaf, status: Status) {
        let key = (leaf, status.code().0);
        let mut others = self.others.lock();
        match others.iter_mut().find(|(other, _)| *other == key) {
            Some((_, count)) => *count += 1,
            None => others.push((key, 1)),
        }
    }
}

/// Counters per leaf and status, without operands and details.
#[derive(Debug)]
pub struct Counters<'m>(&'m [Lp]);

impl<'m> Counters<'m> {
    /// Sums the counts of these processors.
    pub(crate) fn new(lps: &'m [Lp]) -> Self {
        Self(lps)
    }

    /// Returns how often `leaf` ended with `status`, whatever its details.
    pub fn of(&self, leaf: Leaf, status: Status) -> u64 {
        self.all()
            .get(&(leaf, status.code().0))
            .copied()
            .unwrap_or(0)
    }

    /// Returns every nonzero count, by leaf and status code.
    pub fn all(&self) -> BTreeMap<(Leaf, u64), u64> {
        let mut all = BTreeMap::new();
        for Lp { counts, .. } in self.0 {
            for leaf in Leaf::ALL {
                let successes = counts.successes.get(leaf.number() as usize);
                let count = successes.map_or(0, |count| count.load(Ordering::Relaxed));
                if count > 0 {
                    *all.entry((*leaf, Status::SUCCESS.0)).or_default() += count;
                }
            }
            for (key, count) in counts.others.lock().iter() {
                *all.entry(*key).or_default() += count;
            }
        }
        all
    }
}

const _: () = {
    let mut i = 0;
    while i < Leaf::ALL.len() {
        assert!((Leaf::ALL[i].number() as usize) < LEAFS);
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;
    use seam::abi::Operand;

    #[test]
    fn processors_count_apart_and_are_added_up() {
        let lps = [room(), room()].map(Lp::with_room);
        let [first, second] = lps.each_ref().map(|lp| &lp.counts);
        first.count(Leaf::MemTrack, Status::SUCCESS);
        second.count(Leaf::MemTrack, Status::SUCCESS);
        second.count(Leaf::MemTrack, Status::OPERAND_BUSY.with(Operand::TDR));
        first.count(Leaf::MemTrack, Status::OPERAND_BUSY.with(Operand::RCX));
        let counters = Counters::new(&lps);
        assert_eq!(counters.of(Leaf::MemTrack, Status::SUCCESS), 2);
        assert_eq!(counters.of(Leaf::MemTrack, Status::OPERAND_BUSY), 2);
        assert_eq!(counters.all().len(), 2);
    }
}

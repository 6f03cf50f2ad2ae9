//! How often each leaf was called, and how it ended.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::{Leaf, Status};
use spin::Mutex;

const LEAFS: usize = 128;

/// Pairs of a leaf and a status that each logical processor has room for from the start, so that the first call which
/// meets another does not look like something that is never given back. There is more room when it is needed.
const OTHERS: usize = 128;

/// The counts of one logical processor, away from the cache lines of its neighbours.
#[repr(align(128))]
struct Lp {
    successes: [AtomicU64; LEAFS],
    others: Mutex<Vec<((Leaf, u64), u64)>>,
}

impl Lp {
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

/// Counters per leaf and status, operands and details aside. Calls of unknown leafs are not counted.
pub struct Counters(Box<[Lp]>);

impl fmt::Debug for Counters {
    /// Nothing that counts: what a module's state shows is the same before and after a call that failed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    pub(crate) fn new(lps: usize) -> Self {
        let lp = || Lp {
            successes: [const { AtomicU64::new(0) }; LEAFS],
            others: Mutex::new(Vec::with_capacity(OTHERS)),
        };
        Self((0..lps).map(|_| lp()).collect())
    }

    #[inline(always)]
    pub(crate) fn count(&self, lp: u32, leaf: Leaf, status: Status) {
        let Some(lp) = self.0.get(lp as usize) else {
            return;
        };
        if status == Status::SUCCESS {
            if let Some(successes) = lp.successes.get(leaf.number() as usize) {
                successes.fetch_add(1, Ordering::Relaxed);
            }
        } else {
            lp.count_other(leaf, status);
        }
    }

    /// How often `leaf` ended with `status`, whatever its details.
    pub fn of(&self, leaf: Leaf, status: Status) -> u64 {
        self.all()
            .get(&(leaf, status.code().0))
            .copied()
            .unwrap_or(0)
    }

    /// Every count that is not zero, by leaf and status code.
    pub fn all(&self) -> BTreeMap<(Leaf, u64), u64> {
        let mut all = BTreeMap::new();
        for lp in &self.0 {
            for leaf in Leaf::ALL {
                let successes = lp.successes.get(leaf.number() as usize);
                let count = successes.map_or(0, |count| count.load(Ordering::Relaxed));
                if count > 0 {
                    *all.entry((*leaf, Status::SUCCESS.0)).or_default() += count;
                }
            }
            for (key, count) in lp.others.lock().iter() {
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
        let counters = Counters::new(2);
        counters.count(0, Leaf::MemTrack, Status::SUCCESS);
        counters.count(1, Leaf::MemTrack, Status::SUCCESS);
        counters.count(1, Leaf::MemTrack, Status::OPERAND_BUSY.with(Operand::TDR));
        counters.count(0, Leaf::MemTrack, Status::OPERAND_BUSY.with(Operand::RCX));
        assert_eq!(counters.of(Leaf::MemTrack, Status::SUCCESS), 2);
        assert_eq!(counters.of(Leaf::MemTrack, Status::OPERAND_BUSY), 2);
        assert_eq!(counters.all().len(), 2);
    }
}

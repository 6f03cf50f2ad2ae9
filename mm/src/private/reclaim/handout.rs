//! Distribution of work among CPUs: units, handed out in order and without a lock, stage by stage.
//!
//! A stage begins when every unit of the previous one is finished. Units that left something behind come again in
//! another pass over their stage. After a few passes the work is stuck, until a retry is requested.

use sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// Maximum number of passes over one stage. In each pass the module is called as often as the retry policy says.
const MAX_PASSES: u32 = 3;

/// The stages of a reclaim, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Private pages, and the page tables above them.
    Pages,
    /// The other pages of the S-EPT, and the control pages.
    Rest,
    /// The TDR.
    Root,
}

impl Stage {
    pub const ALL: [Self; 3] = [Self::Pages, Self::Rest, Self::Root];
}

/// Result of a request for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A unit of a stage, by number. It belongs to the CPU until [`Handout::finish`].
    Unit(Stage, u64),
    /// All units are handed out, and some are not finished.
    Wait,
    /// Repeated passes left something behind.
    Stuck,
    /// Everything is finished.
    Done,
}

/// The units of all stages.
#[derive(Debug)]
pub struct Handout {
    units: [u64; Stage::ALL.len()],
    /// The phase in bits 63:60, the number of the next unit below.
    at: AtomicU64,
    /// Number of units of this pass that are not finished.
    unfinished: AtomicU64,
    /// Number of pages that this pass left behind.
    left: AtomicU64,
    /// Number of passes over this stage so far.
    passes: AtomicU32,
}

/// Phases after those of the stages.
const DONE: u64 = 3;
/// Stuck in the stage that the unit's number gives.
const STUCK: u64 = 4;
/// The counters are being set up.
const CHANGING: u64 = 5;

const PHASE_SHIFT: u32 = 60;

const fn place(phase: u64, unit: u64) -> u64 {
    phase << PHASE_SHIFT | unit
}

const fn phase_and_unit(at: u64) -> (u64, u64) {
    (at >> PHASE_SHIFT, at & ((1 << PHASE_SHIFT) - 1))
}

impl Handout {
    /// Creates a handout of `units` units, by stage.
    pub fn new(units: [u64; Stage::ALL.len()]) -> Self {
        let handout = Self {
            units,
            at: AtomicU64::new(place(CHANGING, 0)),
            unfinished: AtomicU64::new(0),
            left: AtomicU64::new(0),
            passes: AtomicU32::new(0),
        };
        handout.begin(0);
        handout
    }

    /// Hands out the next unit.
    pub fn next(&self) -> Turn {
        let mut at = self.at.load(SeqCst);
        loop {
            let (phase, unit) = phase_and_unit(at);
            let stage = match phase {
                DONE => return Turn::Done,
                STUCK => return Turn::Stuck,
                CHANGING => return Turn::Wait,
                stage => stage as usize,
            };
            if unit == self.units[stage] {
                return Turn::Wait;
            }
            // If a new pass has made the same unit available again, taking it is just as good.
            match self.at.compare_exchange(at, at + 1, SeqCst, SeqCst) {
                Ok(_) => return Turn::Unit(Stage::ALL[stage], unit),
                Err(now) => at = now,
            }
        }
    }

    /// Finishes a unit of which `left` pages are still there.
    pub fn finish(&self, left: u64) {
        self.left.fetch_add(left, SeqCst);
        if self.unfinished.fetch_sub(1, SeqCst) > 1 {
            return;
        }
        // All units are handed out and finished: no other CPU changes anything until `at` is set.
        let (stage, _) = phase_and_unit(self.at.load(SeqCst));
        if self.left.load(SeqCst) == 0 {
            self.passes.store(0, SeqCst);
            self.begin(stage + 1);
        } else if self.passes.fetch_add(1, SeqCst) + 1 < MAX_PASSES {
            self.begin(stage);
        } else {
            self.at.store(place(STUCK, stage), SeqCst);
        }
    }

    /// Begins the first stage from `stage` on that has units.
    fn begin(&self, stage: u64) {
        let later = (stage..).zip(&self.units[stage as usize..]);
        let found = later.into_iter().find(|(_, units)| **units > 0);
        let (phase, units) = found.map_or((DONE, 0), |(stage, units)| (stage, *units));
        self.left.store(0, SeqCst);
        self.unfinished.store(units, SeqCst);
        self.at.store(place(phase, 0), SeqCst);
    }

    /// Returns what [`Self::next`] would, without handing out a unit.
    pub fn phase(&self) -> Turn {
        let (phase, unit) = phase_and_unit(self.at.load(SeqCst));
        match phase {
            DONE => Turn::Done,
            STUCK => Turn::Stuck,
            CHANGING => Turn::Wait,
            stage => Turn::Unit(Stage::ALL[stage as usize], unit),
        }
    }

    /// Restarts the stage in which the work is stuck. Returns whether it was stuck.
    pub fn retry(&self) -> bool {
        let at = self.at.load(SeqCst);
        let (phase, stage) = phase_and_unit(at);
        let changing = place(CHANGING, 0);
        if phase != STUCK
            || self
                .at
                .compare_exchange(at, changing, SeqCst, SeqCst)
                .is_err()
        {
            return false;
        }
        self.passes.store(0, SeqCst);
        self.begin(stage);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_begins_when_the_one_before_is_finished() {
        let handout = Handout::new([2, 1, 1]);
        assert_eq!(handout.next(), Turn::Unit(Stage::Pages, 0));
        assert_eq!(handout.next(), Turn::Unit(Stage::Pages, 1));
        handout.finish(0);
        assert_eq!(handout.next(), Turn::Wait);
        handout.finish(0);
        assert_eq!(handout.next(), Turn::Unit(Stage::Rest, 0));
        handout.finish(0);
        assert_eq!(handout.next(), Turn::Unit(Stage::Root, 0));
        assert_eq!(handout.next(), Turn::Wait);
        handout.finish(0);
        assert_eq!(handout.next(), Turn::Done);
    }

    #[test]
    fn stages_without_units_are_skipped() {
        let handout = Handout::new([0, 0, 1]);
        assert_eq!(handout.next(), Turn::Unit(Stage::Root, 0));
        assert_eq!(Handout::new([0, 0, 0]).next(), Turn::Done);
    }

    #[test]
    fn remaining_units_are_handed_out_again_a_few_times() {
        let handout = Handout::new([1, 1, 1]);
        for _ in 0..MAX_PASSES {
            assert_eq!(handout.next(), Turn::Unit(Stage::Pages, 0));
            handout.finish(5);
        }
        assert_eq!(handout.next(), Turn::Stuck);
        assert!(handout.retry());
        assert!(!handout.retry());
        assert_eq!(handout.next(), Turn::Unit(Stage::Pages, 0));
        handout.finish(0);
        assert_eq!(handout.next(), Turn::Unit(Stage::Rest, 0));
    }
}

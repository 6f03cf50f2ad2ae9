//! The part of the machine that the functions of one TD share: where their interrupts go, how many they may have, and
//! how often they may interrupt.

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use devices::Message;
use host::functions::Sink;

use super::machine::Machine;
use crate::cpu::line::Slot;

/// The time in microseconds for which a budget of interrupts holds.
pub const PERIOD_US: u64 = 1000;
/// The number of interrupts that the functions of one TD may raise on one CPU in that time. The entry that raised one
/// more is masked until the time is over: its function keeps the interrupt, and raises it then.
pub const BUDGET: u32 = 100;
/// The part of the machine's lines that one TD gets at most: one in this many.
const FAIR_SHARE: usize = 8;
/// The number of lines that a TD gets in any case, as long as there are some.
const LEAST: usize = 16;

/// The part that the functions of one TD share.
#[derive(Debug)]
pub struct Share<M> {
    /// The machine.
    pub machine: M,
    /// The receiver of messages.
    pub sink: Slot<Arc<dyn Sink>>,
    /// Rests that interrupts had to take, by the functions' indices.
    rests: Box<[AtomicU64]>,
    /// True once the functions are given back: nobody may access them for the TD.
    is_over: AtomicBool,
    /// The number of lines that the TD may still take.
    left: AtomicU32,
    /// By the CPUs' numbers.
    budgets: Box<[Budget]>,
}

/// The interrupts of one TD's functions at one CPU. Only the CPU itself changes it, in its handlers.
#[derive(Debug, Default)]
struct Budget {
    period: AtomicU64,
    spent: AtomicU32,
}

impl<M: Machine> Share<M> {
    /// Creates the share of a TD with so many functions.
    pub fn new(machine: &M, functions: usize) -> Self {
        let lines = machine.lines();
        let cap = fair_share(lines.count());
        Self {
            machine: machine.clone(),
            sink: Slot::default(),
            rests: (0..functions).map(|_| AtomicU64::new(0)).collect(),
            is_over: AtomicBool::new(false),
            left: AtomicU32::new(cap),
            budgets: (0..lines.cpus()).map(|_| Budget::default()).collect(),
        }
    }

    /// Takes one of the lines that the TD may have.
    pub fn take_line(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        self.left.fetch_update(AcqRel, Relaxed, less).is_ok()
    }

    /// Gives one back that led nowhere: the machine has no line, or no interrupt entry.
    pub fn give_line(&self) {
        self.left.fetch_add(1, AcqRel);
    }

    /// Notes that the functions are given back.
    pub fn end(&self) {
        self.is_over.store(true, Release);
    }

    /// Returns true once the functions are given back.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Acquire)
    }

    /// Returns the rests that interrupts of a function had to take.
    pub fn rests(&self, function: usize) -> u64 {
        self.rests
            .get(function)
            .map_or(0, |rests| rests.load(Relaxed))
    }

    /// Counts an interrupt of a function at the CPU of this number. Returns how long its entry must rest, in
    /// microseconds, if it must.
    pub fn spend(&self, function: usize, cpu: usize) -> Option<u64> {
        let rest = self.budgets.get(cpu)?.spend(self.machine.us())?;
        if let Some(rests) = self.rests.get(function) {
            rests.fetch_add(1, Relaxed);
        }
        Some(rest)
    }

    /// Delivers a message of a function to the TD, if it is connected.
    pub fn deliver(&self, function: usize, message: Message) {
        if let Some(executor) = self.machine.executor() {
            self.sink
                .with(|sink| sink.deliver(function, message, executor));
        }
    }
}

impl Budget {
    fn spend(&self, now_us: u64) -> Option<u64> {
        let period = now_us / PERIOD_US;
        if self.period.swap(period, Relaxed) != period {
            self.spent.store(0, Relaxed);
        }
        let spent = self.spent.load(Relaxed) + 1;
        self.spent.store(spent, Relaxed);
        (spent > BUDGET).then(|| PERIOD_US - now_us % PERIOD_US)
    }
}

/// Returns the number of lines that one TD gets at most on a machine with `lines` of them.
fn fair_share(lines: usize) -> u32 {
    let share = (lines / FAIR_SHARE).max(LEAST).min(lines);
    u32::try_from(share).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_td_gets_an_eighth_of_the_lines_and_at_least_sixteen() {
        assert_eq!(fair_share(288), 36);
        assert_eq!(fair_share(9216), 1152);
        assert_eq!(fair_share(64), 16);
        assert_eq!(fair_share(3), 3);
    }

    #[test]
    fn a_budget_lasts_for_its_period_and_the_rest_ends_with_it() {
        let budget = Budget::default();
        let at = |us| (0..BUDGET).filter_map(|_| budget.spend(us)).count();
        assert_eq!(at(5 * PERIOD_US + 10), 0);
        assert_eq!(budget.spend(5 * PERIOD_US + 400), Some(PERIOD_US - 400));
        assert_eq!(at(6 * PERIOD_US), 0);
        assert_eq!(budget.spend(7 * PERIOD_US - 1), Some(1));
    }
}

//! The scheduling of CPUs in simulated time: the CPU with the earliest clock runs next.
//!
//! The code under simulation runs a step at a time and notes its costs. The charges of a step take place one after the
//! other on its CPU's clock, interleaved with those of all others.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem;
use std::vec;

use anyhow::Result;

use super::machine::Charge;

/// The result of a CPU's step.
pub enum Turn {
    /// The CPU did some work, at this cost.
    Work(Vec<Charge>),
    /// The CPU looked for work, at this cost, and found none.
    Idle(Vec<Charge>),
    /// All work is done.
    Done,
}

struct Worker {
    noted: vec::IntoIter<Charge>,
    /// True if the noted charges are work.
    is_work: bool,
}

/// Lets every CPU run steps, from these start times (picoseconds), until all are done. Returns the time at which the
/// last of them had worked.
///
/// `step` runs a step of a CPU; `pass` returns the end of a charge that a CPU incurs at a time.
pub fn take(
    starts: &[u64],
    mut step: impl FnMut(u32) -> Result<Turn>,
    mut pass: impl FnMut(u32, u64, Charge) -> u64,
) -> Result<u64> {
    let mut end = starts.iter().copied().min().unwrap_or(0);
    let mut workers: Vec<_> = starts
        .iter()
        .map(|_| Worker {
            noted: Vec::new().into_iter(),
            is_work: false,
        })
        .collect();
    let mut turns: BinaryHeap<_> = (0..)
        .zip(starts)
        .map(|(cpu, at)| Reverse((*at, cpu)))
        .collect();
    // The current CPU is not in the queue.
    let mut turn = turns.pop();
    while let Some(Reverse(mine)) = &mut turn {
        // Its turn lasts until another CPU is earlier.
        if let Some(mut next) = turns.peek_mut()
            && next.0 < *mine
        {
            mem::swap(&mut next.0, mine);
        }
        let (now, cpu) = mine;
        let worker = &mut workers[*cpu as usize];
        if let Some(charge) = worker.noted.next() {
            *now = pass(*cpu, *now, charge);
            continue;
        }
        if mem::take(&mut worker.is_work) {
            end = end.max(*now);
        }
        let (noted, is_work) = match step(*cpu)? {
            Turn::Work(noted) => (noted, true),
            Turn::Idle(noted) => (noted, false),
            Turn::Done => {
                turn = turns.pop();
                continue;
            }
        };
        *worker = Worker {
            noted: noted.into_iter(),
            is_work,
        };
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::cost::{Cost, Number};
    use super::super::machine::{Line, Machine, Sums};
    use super::*;

    const UNFITTED: [(Number, f64); 4] = [
        (Number::Seamcall, 1000.0),
        (Number::LinuxPage, 1000.0),
        (Number::KickNear, 100.0),
        (Number::KickFar, 200.0),
    ];

    /// Lets each CPU run the steps in its list. Returns the end and the sums.
    fn run(lists: &[Vec<Vec<Charge>>]) -> (u64, Sums) {
        let cpus = lists.len() as u32;
        let mut machine = Machine::new(Cost::with_fitted(UNFITTED), cpus, 0, 1 << 30);
        let mut left: Vec<_> = lists.iter().map(|steps| steps.iter()).collect();
        let step = |cpu: u32| {
            let next = left[cpu as usize].next();
            Ok(next.map_or(Turn::Done, |step| Turn::Work(step.clone())))
        };
        let pass = |cpu, now, charge| machine.pass(cpu, now, charge);
        let end = take(&vec![0; lists.len()], step, pass).unwrap();
        (end, machine.sums())
    }

    #[test]
    fn charges_of_two_cpus_take_place_in_the_order_of_time() {
        let spend = Charge::Spend(Number::Seamcall, 1.0);
        let touch = Charge::Touch(Line::TdrLock);
        // CPU 0 wants the line at 1 us and at 2.11 us, CPU 1 at 0 and at 1.11 us: they alternate.
        let lists = [
            vec![vec![spend, touch, spend, touch]],
            vec![vec![touch, spend, touch]],
        ];
        let (end, sums) = run(&lists);
        assert_eq!(sums.counts[&Number::LineNear], 4.0);
        assert_eq!(end, 2_220_000);
    }

    #[test]
    fn looking_for_work_is_no_work() {
        let mut steps = 0;
        let step = |_| {
            steps += 1;
            Ok(match steps {
                1 => Turn::Work(vec![Charge::Spend(Number::Seamcall, 1.0)]),
                2..9 => Turn::Idle(vec![Charge::Spend(Number::Poll, 1.0)]),
                _ => Turn::Done,
            })
        };
        let end = take(&[7], step, |_, now, _| now + 100).unwrap();
        assert_eq!(end, 107);
    }

    fn charge() -> impl Strategy<Value = Charge> {
        prop_oneof![
            (0u8..5).prop_map(|count| Charge::Spend(Number::Seamcall, count.into())),
            prop_oneof![
                Just(Line::TdrLock),
                Just(Line::TdrCount),
                Just(Line::Pamt1g(3))
            ]
            .prop_map(Charge::Touch),
            (1u32..600, 0u64..1 << 30).prop_map(|(units, at)| Charge::Clear { units, at }),
        ]
    }

    proptest! {
        /// No schedule is faster than the busiest resource, none is slower than one CPU that does everything, and one
        /// CPU alone never waits.
        #[test]
        fn the_end_is_between_the_busiest_part_and_the_sum(
            lists in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(charge(), 0..9), 0..9),
                1..65,
            ),
        ) {
            let (end, sums) = run(&lists);
            let cpus = lists.len() as u64;
            prop_assert!(end >= sums.work.div_ceil(cpus));
            prop_assert!(end >= sums.busiest_line);
            prop_assert!(end >= sums.busiest_memory);
            prop_assert!(end <= sums.work);
            if cpus == 1 {
                prop_assert_eq!(end, sums.work);
            }
            // Nothing is lost: each charge is counted once.
            let all = || lists.iter().flatten().flatten();
            let touches = all().filter(|charge| matches!(charge, Charge::Touch(_))).count();
            prop_assert_eq!(sums.counts.get(&Number::Atomic).copied().unwrap_or(0.0), touches as f64);
            let units: u32 = all()
                .map(|charge| match charge {
                    Charge::Clear { units, .. } => *units,
                    _ => 0,
                })
                .sum();
            prop_assert_eq!(sums.counts.get(&Number::ClearCpu).copied().unwrap_or(0.0), f64::from(units));
        }
    }
}

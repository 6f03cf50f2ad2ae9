//! Playing back what steps cost, in the order of simulated time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::vec;

use super::lines::Lines;
use super::{Event, KINDS, Kind, Machine, PS, Topology, Usage};
use crate::cost::{Costs, Item};

/// What a CPU says after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has more to do.
    More,
    /// Others have all that is left.
    Idle,
    /// There is nothing left.
    Done,
}

/// How long a CPU that has nothing to do waits before it looks again, in picoseconds: doubled each time.
const IDLE: [u64; 2] = [1_000_000, 128_000_000];

/// What all CPUs share, and the books about it.
pub struct Player {
    pub lines: Lines,
    memory: Vec<Memory>,
    ps_per_byte: f64,
    spent: [u64; KINDS],
    waited: [u64; 2],
}

/// The memory of one package.
#[derive(Clone, Debug)]
struct Memory {
    free_at: u64,
    ps_per_byte: f64,
}

impl Player {
    pub fn new(topology: &Topology, costs: &Costs) -> Self {
        let memory = Memory {
            free_at: 0,
            ps_per_byte: costs.ps_per_byte(Item::PackageBandwidth),
        };
        Self {
            lines: Lines::new(topology, costs),
            memory: vec![memory; topology.packages as usize],
            ps_per_byte: costs.ps_per_byte(Item::ClearRate),
            spent: [0; KINDS],
            waited: [0; 2],
        }
    }

    /// What `cpu` begins at `now`. When it is through.
    pub fn play(&mut self, event: Event, cpu: u32, now: u64, topology: &Topology) -> u64 {
        match event {
            Event::Work(kind, ps) => {
                self.spent[kind as usize] += ps;
                now + ps
            }
            Event::Line { number, hold } => {
                let end = self.lines.write(number, cpu, now, hold, topology);
                self.spent[Kind::Books as usize] += hold;
                self.waited[0] += end - now - hold;
                end
            }
            Event::Clear { package, bytes } => {
                let memory = &mut self.memory[package as usize];
                let alone = (bytes as f64 * self.ps_per_byte) as u64;
                let taken = (bytes as f64 * memory.ps_per_byte) as u64;
                memory.free_at = memory.free_at.max(now) + taken;
                let end = memory.free_at.max(now + alone);
                self.spent[Kind::Clearing as usize] += alone;
                self.waited[1] += end - now - alone;
                end
            }
        }
    }

    pub fn usage(&self) -> Usage {
        Usage {
            spent: self.spent.map(|ps| ps as f64 / PS),
            waited: self.waited.map(|ps| ps as f64 / PS),
            line: self.lines.busiest(),
        }
    }
}

/// A CPU in a playback.
struct Cpu {
    number: u32,
    events: vec::IntoIter<Event>,
    /// The event that it has come to.
    next: Option<Event>,
    idle: u64,
    /// Whether it makes steps when its events are used up.
    steps: bool,
}

impl Machine {
    /// Lets `cpus` make steps, from the time on that the CPU that runs has, until all of them say that they are done. The
    /// CPU that runs has then the time at which the last work ended.
    pub fn run(&self, cpus: u32, step: impl FnMut(u32) -> Turn) {
        self.settle();
        let begin = self.now();
        let all = (0..cpus).map(|number| {
            let cpu = Cpu {
                number,
                events: Vec::new().into_iter(),
                next: None,
                idle: IDLE[0],
                steps: true,
            };
            (begin, cpu)
        });
        self.play_all(all.collect(), step);
    }

    /// Runs `work` on each of `cpus` at once, by interrupting them, and waits for all.
    pub fn on_each(&self, cpus: &[u32], work: &(dyn Fn(u32) + Sync)) {
        self.settle();
        let me = self.cpu();
        let mut all = Vec::new();
        for &number in cpus {
            if number != me {
                self.interrupt(std::iter::once(number));
                self.settle();
            }
            let answer = self.state().costs.ps(Item::Interrupt);
            let begin = self.now() + if number == me { 0 } else { answer };
            self.set_cpu(number);
            self.state().clocks[number as usize] = begin;
            work(number);
            let events = self.take_record().into_iter();
            self.set_cpu(me);
            let cpu = Cpu {
                number,
                events,
                next: None,
                idle: 0,
                steps: false,
            };
            all.push((begin, cpu));
        }
        self.play_all(all, |_| Turn::Done);
    }

    fn take_record(&self) -> Vec<Event> {
        let mut state = self.state();
        state.recorded = 0;
        std::mem::take(&mut state.record)
    }

    fn play_all(&self, cpus: Vec<(u64, Cpu)>, mut step: impl FnMut(u32) -> Turn) {
        let me = self.cpu();
        let mut last = self.now();
        let (mut times, mut cpus): (Vec<u64>, Vec<Cpu>) = cpus.into_iter().unzip();
        let mut queue: BinaryHeap<_> = (0..cpus.len()).map(|at| Reverse((times[at], at))).collect();
        while let Some(Reverse((mut now, at))) = queue.pop() {
            let until = queue.peek().map_or(u64::MAX, |Reverse((time, _))| *time);
            let cpu = &mut cpus[at];
            let is_done = loop {
                let begun = now;
                now = self.play_until(cpu, now, until);
                times[at] = now;
                if now > begun {
                    last = last.max(now);
                }
                if now > until || cpu.next.is_some() {
                    break false;
                }
                if !cpu.steps {
                    break true;
                }
                self.set_cpu(cpu.number);
                self.state().clocks[cpu.number as usize] = now;
                match step(cpu.number) {
                    Turn::Done => break true,
                    Turn::More => cpu.idle = IDLE[0],
                    Turn::Idle => {
                        now += cpu.idle;
                        cpu.idle = IDLE[1].min(cpu.idle * 2);
                    }
                }
                cpu.events = self.take_record().into_iter();
            };
            if !is_done {
                queue.push(Reverse((now, at)));
            }
        }
        let mut state = self.state();
        state.cpu = me;
        for (cpu, time) in cpus.iter().zip(times) {
            state.clocks[cpu.number as usize] = time;
        }
        state.clocks[me as usize] = last;
    }

    /// Plays events of one CPU up to one that others may come before.
    fn play_until(&self, cpu: &mut Cpu, mut now: u64, until: u64) -> u64 {
        let mut state = self.state();
        let state = &mut *state;
        while let Some(event) = cpu.next.take().or_else(|| cpu.events.next()) {
            if now > until && !matches!(event, Event::Work(..)) {
                cpu.next = Some(event);
                break;
            }
            now = state.player.play(event, cpu.number, now, &state.topology);
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::super::Line;
    use super::*;

    fn machine(cpus: u32) -> Machine {
        let topology = Topology::new(cpus, 0..1 << 32);
        let machine = Machine::new(topology, Costs::default());
        machine.begin();
        machine
    }

    #[test]
    fn cpus_that_share_nothing_work_at_the_same_time() {
        let machine = machine(4);
        let mut left = [3; 4];
        machine.run(4, |cpu| {
            if left[cpu as usize] == 0 {
                return Turn::Done;
            }
            left[cpu as usize] -= 1;
            machine.spend(Kind::Books, 1000);
            Turn::More
        });
        assert_eq!(machine.now(), 3000);
        assert_eq!(machine.usage().spent[Kind::Books as usize], 12e-9);
    }

    #[test]
    fn a_line_that_all_write_to_goes_from_one_to_the_other() {
        let machine = machine(4);
        let mut left = [100; 4];
        machine.run(4, |cpu| {
            if left[cpu as usize] == 0 {
                return Turn::Done;
            }
            left[cpu as usize] -= 1;
            machine.spend(Kind::Books, 10_000);
            machine.write(Line::TdrLock);
            Turn::More
        });
        // 400 writes, each by another CPU than the last, 100 ns each.
        let ns = machine.now() / 1000;
        assert!((39_900..40_100).contains(&ns), "{ns}");
        assert_eq!(machine.usage().line, "the TDR's lock");
    }

    #[test]
    fn a_step_sees_what_began_before_it_and_time_orders_the_writes_inside_steps() {
        let machine = machine(2);
        // CPU 0 writes late in its one step, CPU 1 early in each of its ten: it need not wait.
        let mut left = [1, 10];
        machine.run(2, |cpu| {
            if left[cpu as usize] == 0 {
                return Turn::Done;
            }
            left[cpu as usize] -= 1;
            machine.spend(Kind::Books, [1_000_000_000, 1_000][cpu as usize]);
            machine.write(Line::TdrCount);
            Turn::More
        });
        assert_eq!(machine.now(), 1_000_100_000);
        assert_eq!(machine.usage().waited[0], 100e-9);
    }

    #[test]
    fn memory_takes_in_no_more_than_it_can() {
        let machine = machine(56);
        let mut left = [8; 56];
        machine.run(56, |cpu| {
            if left[cpu as usize] == 0 {
                return Turn::Done;
            }
            left[cpu as usize] -= 1;
            machine.clear(0, 2 << 20);
            Turn::More
        });
        let bytes = f64::from(56 * 8 * (2 << 20));
        let rate = bytes / (machine.now() as f64 / PS) / 1e9;
        assert!((rate - 153.6).abs() < 0.5, "{rate} GB/s");
    }

    #[test]
    fn calls_to_other_cpus_run_at_once_and_the_caller_waits_for_the_last() {
        let machine = machine(4);
        machine.on_each(&[1, 2, 3], &|cpu| {
            assert_eq!(machine.cpu(), cpu);
            machine.spend(Kind::Calls, 1_000_000_000);
        });
        assert_eq!(machine.cpu(), 0);
        let costs = Costs::default();
        let sent = 3 * costs.ps(Item::KickInside);
        assert_eq!(
            machine.now(),
            sent + costs.ps(Item::Interrupt) + 1_000_000_000
        );
    }

    #[test]
    fn nothing_is_on_record_before_the_beginning_and_after_the_end() {
        let topology = Topology::new(1, 0..1 << 32);
        let machine = Machine::new(topology, Costs::default());
        machine.spend(Kind::Books, 5);
        assert_eq!(machine.now(), 0);
        machine.begin();
        machine.spend(Kind::Books, 5);
        machine.end();
        machine.spend(Kind::Books, 5);
        assert_eq!(machine.now(), 5);
    }
}

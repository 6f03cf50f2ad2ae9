//! The machine in simulated time: CPUs with a clock each, and what they share.
//!
//! Time comes after the fact. A step of the host's code runs at once and for real, and what it costs is put on record as
//! [`Event`]s; then they are played back ([`Machine::run`]) together with those of all other CPUs, in the order of
//! simulated time, so that CPUs that write to one line or one memory wait for each other there. A CPU whose events are
//! used up makes its next step. So no thread is needed, the same steps come in the same order every time, and a step sees
//! what all steps did that began before it.

mod lines;
mod playback;
mod topology;

use std::sync::{Mutex, MutexGuard, PoisonError};

use seam::abi::{Gprs, Leaf, PageSize};

use crate::cost::{Costs, Item};
pub use lines::Line;
use playback::Player;
pub use playback::Turn;
pub use topology::{CPUS_PER_PACKAGE, Topology};

/// What a CPU spends its time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SEAMCALLs.
    Calls,
    /// Clearing.
    Clearing,
    /// The host's own work.
    Books,
    /// Kicks and other interrupts.
    Interrupts,
}

/// Kinds of [`Kind`].
const KINDS: usize = 4;

/// A piece of a step's cost.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// So many picoseconds, which depend on nobody else.
    Work(Kind, u64),
    /// A write to a line, which is then held.
    Line { number: u32, hold: u64 },
    /// Clearing memory of a package.
    Clear { package: u32, bytes: u64 },
}

/// The machine.
pub struct Machine {
    state: Mutex<State>,
}

struct State {
    topology: Topology,
    costs: Costs,
    /// The CPU that runs.
    cpu: u32,
    /// Whether its costs are put on record.
    records: bool,
    record: Vec<Event>,
    /// Picoseconds on record, waiting aside.
    recorded: u64,
    clocks: Vec<u64>,
    player: Player,
}

/// Where the time went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Seconds of CPUs, all added up, by [`Kind`].
    pub spent: [f64; KINDS],
    /// Seconds of CPUs, all added up, that waited for lines and for memory.
    pub waited: [f64; 2],
    /// The line that was on its way or held for the longest time.
    pub line: &'static str,
}

const PS: f64 = 1e12;

impl Machine {
    /// A machine on which nothing has happened and which puts nothing on record.
    pub fn new(topology: Topology, costs: Costs) -> Self {
        Self {
            state: Mutex::new(State::new(topology, costs)),
        }
    }

    /// Makes another machine of it.
    pub fn reset(&self, topology: Topology, costs: Costs) {
        *self.state() = State::new(topology, costs);
    }

    /// Begins anew at time 0, and puts everything on record from now on.
    pub fn begin(&self) {
        let mut state = self.state();
        *state = State::new(state.topology.clone(), state.costs);
        state.records = true;
    }

    /// Puts nothing more on record.
    pub fn end(&self) {
        self.settle();
        self.state().records = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The CPU that runs.
    pub fn cpu(&self) -> u32 {
        self.state().cpu
    }

    /// The number by which the module knows it.
    pub fn lp(&self) -> u32 {
        let state = self.state();
        state.topology.lp(state.cpu)
    }

    /// Lets another CPU run; what it costs counts for it.
    pub fn set_cpu(&self, cpu: u32) {
        self.state().cpu = cpu;
    }

    /// Picoseconds since [`Self::begin`], as the CPU that runs has them.
    pub fn now(&self) -> u64 {
        let state = self.state();
        state.clocks[state.cpu as usize] + state.recorded
    }

    /// Plays back what the CPU that runs has on record, while no other one is at work.
    pub fn settle(&self) {
        let mut state = self.state();
        let State {
            topology,
            cpu,
            record,
            clocks,
            player,
            ..
        } = &mut *state;
        let clock = &mut clocks[*cpu as usize];
        for event in record.drain(..) {
            *clock = player.play(event, *cpu, *clock, topology);
        }
        state.recorded = 0;
    }

    /// Where the time went so far.
    pub fn usage(&self) -> Usage {
        self.state().player.usage()
    }

    /// The CPU spends some time.
    pub fn spend(&self, kind: Kind, ps: u64) {
        self.state().push(Event::Work(kind, ps), ps);
    }

    /// The CPU spends what something costs.
    pub fn pay(&self, kind: Kind, item: Item) {
        let mut state = self.state();
        let ps = state.costs.ps(item);
        state.push(Event::Work(kind, ps), ps);
    }

    /// The CPU has the frame allocator for itself, which takes or gives so many frames.
    pub fn lock_frames(&self, frames: u64) {
        let costs = self.state().costs;
        let each = costs.ps(Item::FrameBooks);
        self.hold(Line::Frames, costs.ps(Item::FrameLock) + frames * each);
    }

    /// The CPU writes to a line.
    pub fn write(&self, line: Line) {
        self.hold(line, 0);
    }

    /// The CPU takes a lock in a line and holds it for some picoseconds.
    pub fn hold(&self, line: Line, ps: u64) {
        let mut state = self.state();
        let number = state.player.lines.number(line);
        state.push(Event::Line { number, hold: ps }, ps);
    }

    /// The CPU clears memory.
    pub fn clear(&self, hpa: u64, bytes: u64) {
        let mut state = self.state();
        let package = state.topology.package_of_memory(hpa);
        let ps = (bytes as f64 * state.costs.ps_per_byte(Item::ClearRate)) as u64;
        state.push(Event::Clear { package, bytes }, ps);
    }

    /// The CPU interrupts others.
    pub fn interrupt(&self, cpus: impl Iterator<Item = u32>) {
        let mut state = self.state();
        let me = state.cpu;
        let ps = cpus
            .filter(|cpu| *cpu != me)
            .map(|cpu| state.interrupt_ps(me, cpu))
            .sum();
        state.push(Event::Work(Kind::Interrupts, ps), ps);
    }

    /// The CPU makes a SEAMCALL, which succeeded.
    pub fn call(&self, leaf: Leaf, asked: &Gprs, answered: &Gprs) {
        let mut state = self.state();
        let ps = state.costs.call(leaf);
        if leaf != Leaf::PhymemPageReclaim {
            state.push(Event::Work(Kind::Calls, ps), ps);
            return;
        }
        // The locks and the count that it writes to, in their order (tdh_phymem_page_reclaim.c of module 1.5): the PAMT
        // entries above the page and its own, the TDR's, the TDR's count; then the locks again, to release them.
        let half = Event::Work(Kind::Calls, ps / 2);
        let hpa = asked.rcx;
        let lines = [
            Some(Line::Pamt1g(hpa)),
            (answered.r8 < PageSize::Size1G as u64).then_some(Line::Pamt2m(hpa)),
        ];
        let lines = lines.into_iter().flatten();
        state.push(half, ps / 2);
        for line in lines.clone() {
            state.push_line(line);
        }
        for line in [Line::TdrLock, Line::TdrCount, Line::TdrLock] {
            state.push_line(line);
        }
        for line in lines.rev() {
            state.push_line(line);
        }
        state.push(half, ps / 2);
    }
}

impl State {
    fn new(topology: Topology, costs: Costs) -> Self {
        Self {
            player: Player::new(&topology, &costs),
            clocks: vec![0; topology.cpus as usize],
            cpu: 0,
            records: false,
            record: Vec::new(),
            recorded: 0,
            topology,
            costs,
        }
    }

    fn push(&mut self, event: Event, ps: u64) {
        if self.records {
            self.record.push(event);
            self.recorded += ps;
        }
    }

    fn push_line(&mut self, line: Line) {
        let number = self.player.lines.number(line);
        self.push(Event::Line { number, hold: 0 }, 0);
    }

    fn interrupt_ps(&self, from: u32, to: u32) -> u64 {
        let item = if self.topology.package(from) == self.topology.package(to) {
            Item::KickInside
        } else {
            Item::KickAcross
        };
        self.costs.ps(item)
    }
}

//! A TD in the run queue, and its vCPUs.

use alloc::vec::Vec;

use super::{Ticks, Times};

/// The run state of a vCPU.
#[derive(Clone, Copy, Debug)]
pub enum State {
    /// The vCPU does not run before its TD is started.
    Off,
    /// The vCPU waits for a CPU.
    Ready,
    /// A CPU runs the vCPU.
    Running,
    /// The vCPU waits for an event, and until this time at the latest.
    Halted(Option<Ticks>),
}

/// The scheduling entity of a vCPU: its run state and CPU time.
#[derive(Clone, Copy, Debug)]
pub struct Entity {
    pub state: State,
    pub since: Ticks,
    /// The CPU on which the vCPU ran last, or is to run first.
    pub home: u32,
    /// CPU time of the vCPU, for comparison with the others of its TD.
    pub runtime: Ticks,
    pub times: Times,
}

impl Entity {
    pub fn go(&mut self, state: State, now: Ticks) {
        let spent = now.saturating_sub(self.since);
        match self.state {
            State::Off => {}
            State::Ready => self.times.steal += spent,
            State::Running => {
                self.times.run += spent;
                self.runtime += spent;
            }
            State::Halted(_) => self.times.wait += spent,
        }
        self.state = state;
        self.since = now;
    }
}

/// The scheduling group of one TD: its vCPUs, shares, cap and CPU time.
#[derive(Debug)]
pub struct Group {
    pub shares: u32,
    pub cap: Option<u32>,
    /// CPU time of the TD, divided by its share: its virtual run time.
    pub vruntime: u128,
    /// Ticks used in the period that began at `period`. Turns that are not over are counted in full.
    pub used: Ticks,
    pub period: Ticks,
    pub suspended: bool,
    pub ready: usize,
    pub vcpus: Vec<Entity>,
}

/// Scale of weighted CPU time, so that small differences count.
const SHARE_UNIT: u128 = 10_000;

impl Group {
    pub fn weighed(&self, ticks: Ticks) -> u128 {
        u128::from(ticks) * SHARE_UNIT / u128::from(self.shares.max(1))
    }

    /// Returns the ticks that the TD may still use in the period that contains `now`.
    pub fn left(&mut self, now: Ticks, period: Ticks) -> Ticks {
        let Some(cap) = self.cap else {
            return Ticks::MAX;
        };
        if now.saturating_sub(self.period) >= period {
            // Use beyond the budget is paid back from the following periods.
            let passed = now.saturating_sub(self.period) / period;
            self.used = self.used.saturating_sub(passed * budget(cap, period));
            self.period += passed * period;
        }
        budget(cap, period).saturating_sub(self.used)
    }

    /// Makes the vCPU ready. It does not save up time that it did not use.
    pub fn awake(&mut self, vcpu: usize, now: Ticks) {
        let others = self.vcpus.iter();
        let floor = others
            .filter(|vcpu| matches!(vcpu.state, State::Ready | State::Running))
            .map(|vcpu| vcpu.runtime)
            .min();
        let vcpu = &mut self.vcpus[vcpu];
        vcpu.go(State::Ready, now);
        vcpu.runtime = vcpu.runtime.max(floor.unwrap_or(0));
        self.ready += 1;
    }

    pub fn is_active(&self) -> bool {
        !self.suspended
            && self
                .vcpus
                .iter()
                .any(|vcpu| matches!(vcpu.state, State::Ready | State::Running))
    }
}

fn budget(cap: u32, period: Ticks) -> Ticks {
    (u128::from(period) * u128::from(cap) / 100) as Ticks
}

/// Chooses the ready vCPU with the least CPU time, or one that ran last on `cpu` and has had at most `hardly` more.
pub fn choose(vcpus: &[Entity], cpu: u32, hardly: Ticks) -> u16 {
    let ready = || {
        let all = (0..).zip(vcpus);
        all.filter(|(_, vcpu)| matches!(vcpu.state, State::Ready))
    };
    let least = ready().min_by_key(|(_, vcpu)| (vcpu.runtime, vcpu.since));
    let here = ready()
        .filter(|(_, vcpu)| vcpu.home == cpu)
        .min_by_key(|(_, vcpu)| (vcpu.runtime, vcpu.since));
    match (least, here) {
        (Some((_, least)), Some((number, here))) if here.runtime - least.runtime <= hardly => {
            number
        }
        (Some((number, _)), _) => number,
        // Unreachable: the caller has checked that a vCPU is ready.
        (None, _) => 0,
    }
}

//! The run queue: distributes the CPUs among the vCPUs of all TDs.
//!
//! TDs share the CPUs by weight. The TD with the least weighted CPU time comes first. Within it, the vCPU with the
//! least CPU time comes first, unless one that ran last on this CPU has had hardly more. A time slice is charged when it
//! begins and settled when it ends, so that CPUs that choose at the same time do not all choose the same TD. The queue
//! is pure: time is an argument.
//!
//! If it knows the cores ([`RunQueue::with_cores`]), the threads of a core run vCPUs of one TD at a time.

mod cores;
mod group;
#[cfg(test)]
mod tests;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use self::{
    cores::Cores,
    group::{Entity, Group, State, choose},
};

/// A time or duration in ticks of the host's time-stamp counter.
pub type Ticks = u64;

/// Settings that are the same for all TDs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The longest time slice of a vCPU while others wait.
    pub slice: Ticks,
    /// The period over which a TD's cap is enforced.
    pub period: Ticks,
    /// Number of CPUs.
    pub cpus: usize,
}

/// A vCPU in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VcpuId {
    /// The TD.
    pub td: u32,
    /// The vCPU's number within the TD.
    pub vcpu: u16,
}

/// The next action of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run this vCPU.
    Run {
        /// The vCPU.
        id: VcpuId,
        /// End of the time slice, or the time at which something else may be due.
        until: Ticks,
    },
    /// Stay idle until something may be due.
    Idle {
        /// `None` if nothing is due before the CPU is woken.
        until: Option<Ticks>,
    },
}

/// State of a vCPU at the end of its time slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// The vCPU could continue.
    Ready,
    /// The vCPU waits for an event, and until this time at the latest.
    Halted(Option<Ticks>),
    /// The vCPU will not run again before its TD is started anew.
    Off,
}

/// The time of a vCPU by its use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Time with a CPU.
    pub run: Ticks,
    /// Time waiting for an event.
    pub wait: Ticks,
    /// Time ready to run without a CPU.
    pub steal: Ticks,
}

/// The current activity of a CPU.
#[derive(Clone, Copy, Debug, Default)]
struct Cpu {
    current: Option<VcpuId>,
    charged: Ticks,
    idle: bool,
}

/// The run queue of all TDs.
#[derive(Debug)]
pub struct RunQueue {
    settings: Settings,
    groups: BTreeMap<u32, Group>,
    cpus: Vec<Cpu>,
    cores: Cores,
    /// Wake-up times of halted vCPUs, by the CPU on which each ran last.
    due: Vec<BTreeSet<(Ticks, VcpuId)>>,
}

/// A TD's portion of the CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Portion {
    /// Its weight against the other TDs.
    pub shares: u32,
    /// Its limit of CPU time, in percent of one CPU.
    pub cap: Option<u32>,
}

impl RunQueue {
    /// Creates an empty queue.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            groups: BTreeMap::new(),
            cpus: alloc::vec![Cpu::default(); settings.cpus],
            cores: Cores::unknown(settings.cpus),
            due: alloc::vec![BTreeSet::new(); settings.cpus],
            settings,
        }
    }

    /// Makes the queue run vCPUs of one TD at a time on the threads of a core. `cores` has the core's number for each
    /// CPU.
    #[must_use]
    pub fn with_cores(mut self, cores: &[u32]) -> Self {
        self.cores = Cores::new(cores);
        self
    }

    /// Adds a TD whose vCPUs are to run first on the CPUs `homes`. None of them runs before [`Self::start`].
    pub fn add(&mut self, td: u32, portion: Portion, homes: &[u32], now: Ticks) {
        self.remove(td);
        let vcpus = homes.iter().map(|home| Entity {
            state: State::Off,
            since: now,
            home: *home,
            runtime: 0,
            times: Times::default(),
        });
        self.groups.insert(
            td,
            Group {
                shares: portion.shares,
                cap: portion.cap,
                vruntime: 0,
                used: 0,
                period: now,
                suspended: true,
                ready: 0,
                vcpus: vcpus.collect(),
            },
        );
    }

    /// Changes the shares and the cap of a TD. A new cap counts from now on.
    pub fn set_portion(&mut self, td: u32, portion: Portion, now: Ticks) {
        let Some(group) = self.groups.get_mut(&td) else {
            return;
        };
        if group.cap.is_none() {
            group.used = 0;
            group.period = now;
        }
        group.shares = portion.shares;
        group.cap = portion.cap;
    }

    /// Removes the TD.
    pub fn remove(&mut self, td: u32) {
        if self.groups.remove(&td).is_some() {
            for due in &mut self.due {
                due.retain(|(_, id)| id.td != td);
            }
            for cpu in &mut self.cpus {
                // A vCPU that still runs must not be accounted to the next TD of this number.
                cpu.current = cpu.current.filter(|id| id.td != td);
            }
            self.cores.remove(td);
        }
    }

    /// Lets the TD's vCPUs run. Returns the idle CPUs for which there is work now.
    pub fn start(&mut self, td: u32, now: Ticks) -> Vec<u32> {
        let floor = self.floor();
        let Some(group) = self.groups.get_mut(&td) else {
            return Vec::new();
        };
        group.suspended = false;
        group.vruntime = group.vruntime.max(floor);
        for vcpu in &mut group.vcpus {
            if matches!(vcpu.state, State::Off) {
                vcpu.go(State::Ready, now);
                group.ready += 1;
            }
        }
        let mut wanted = group.ready;
        let mut idle = Vec::new();
        for (number, cpu) in (0..).zip(&mut self.cpus) {
            if wanted > 0 && cpu.idle && self.cores.allow(number, td) {
                cpu.idle = false;
                wanted -= 1;
                idle.push(number);
            }
        }
        idle
    }

    /// Gives the TD's vCPUs no further time slice before [`Self::start`]. Running ones finish theirs.
    pub fn suspend(&mut self, td: u32) {
        if let Some(group) = self.groups.get_mut(&td) {
            group.suspended = true;
        }
    }

    /// Returns how the vCPU's time was spent; `None` if the vCPU does not exist.
    #[must_use]
    pub fn times(&self, id: VcpuId, now: Ticks) -> Option<Times> {
        let mut vcpu = *self.groups.get(&id.td)?.vcpus.get(usize::from(id.vcpu))?;
        vcpu.go(vcpu.state, now);
        Some(vcpu.times)
    }

    /// Decides what `cpu` does next.
    pub fn pick(&mut self, cpu: u32, now: Ticks) -> Next {
        self.expire(cpu, now);
        let period = self.settings.period;
        let mut best: Option<(u128, u32)> = None;
        let mut later: Option<Ticks> = None;
        for (td, group) in &mut self.groups {
            if group.suspended || group.ready == 0 {
                continue;
            }
            if group.left(now, period) == 0 {
                let end = group.period + period;
                later = Some(later.map_or(end, |at| at.min(end)));
            } else if best.is_none_or(|(vruntime, _)| group.vruntime < vruntime) {
                best = Some((group.vruntime, *td));
            }
        }
        let due = self.next_due(cpu);
        let slice = self.settings.slice;
        let beside = self.cores.beside(cpu);
        let td = match (best, beside) {
            (Some((vruntime, _)), Some(beside)) => self.joins(beside.td, vruntime, now),
            (best, _) => best.map(|(_, td)| td),
        };
        let own = &mut self.cpus[cpu as usize];
        let Some(td) = td else {
            *own = Cpu {
                idle: true,
                ..Cpu::default()
            };
            // Another TD waits until this core is free.
            let free = beside.filter(|_| best.is_some());
            let free = free.map(|beside| beside.until.max(now + (slice / 8).max(1)));
            let until = [later, due, free].into_iter().flatten().min();
            return Next::Idle { until };
        };
        let group = self.groups.get_mut(&td).expect("it was just found");
        let charged = slice.min(group.left(now, period)).max(1);
        group.vruntime += group.weighed(charged);
        group.used += charged;
        group.ready -= 1;
        let vcpu = choose(&group.vcpus, cpu, slice * 2);
        let chosen = &mut group.vcpus[usize::from(vcpu)];
        chosen.go(State::Running, now);
        chosen.home = cpu;
        let id = VcpuId { td, vcpu };
        *own = Cpu {
            current: Some(id),
            charged,
            idle: false,
        };
        let until = (now + charged).min(due.unwrap_or(Ticks::MAX));
        self.cores.occupy(cpu, td, until);
        Next::Run { id, until }
    }

    /// Returns the TD `td`, which runs on this core, if one more of its vCPUs can run there: the TD is not too far
    /// ahead of the one that comes first, whose virtual run time is `first`. Otherwise the core drains for that one.
    fn joins(&mut self, td: u32, first: u128, now: Ticks) -> Option<u32> {
        let Settings { slice, period, .. } = self.settings;
        let group = self.groups.get_mut(&td)?;
        let can_run = !group.suspended && group.ready > 0 && group.left(now, period) > 0;
        let ahead = group.vruntime.saturating_sub(first);
        (can_run && ahead <= group.weighed(2 * slice)).then_some(td)
    }

    /// Returns the longest time for which a CPU may work for a TD from now on, beside its vCPUs.
    pub fn turn(&mut self, td: u32, now: Ticks) -> Ticks {
        let Settings { slice, period, .. } = self.settings;
        let group = self.groups.get_mut(&td).filter(|group| !group.suspended);
        group.map_or(0, |group| slice.min(group.left(now, period)))
    }

    /// Notes that a CPU has worked for a TD, beside its vCPUs.
    pub fn charge(&mut self, td: u32, ticks: Ticks) {
        if let Some(group) = self.groups.get_mut(&td) {
            group.vruntime += group.weighed(ticks);
            group.used += ticks;
        }
    }

    /// Takes back the vCPU that ran on `cpu`.
    pub fn put(&mut self, cpu: u32, back: Back, now: Ticks) {
        let Cpu {
            current, charged, ..
        } = core::mem::take(&mut self.cpus[cpu as usize]);
        self.cores.leave(cpu);
        let Some(id) = current else { return };
        let Some(group) = self.groups.get_mut(&id.td) else {
            return;
        };
        let Some(vcpu) = group.vcpus.get_mut(usize::from(id.vcpu)) else {
            return;
        };
        let ran = now.saturating_sub(vcpu.since);
        match back {
            Back::Ready => {
                vcpu.go(State::Ready, now);
                group.ready += 1;
            }
            Back::Halted(due) => {
                vcpu.go(State::Halted(due), now);
                if let Some(due) = due {
                    self.due[cpu as usize].insert((due, id));
                }
            }
            Back::Off => vcpu.go(State::Off, now),
        }
        group.vruntime =
            (group.vruntime + group.weighed(ran)).saturating_sub(group.weighed(charged));
        group.used = (group.used + ran).saturating_sub(charged);
    }

    /// Delivers the event that a halted vCPU waits for. Returns the CPU that should look for work because of it: an
    /// idle one, or the one on which the vCPU ran last, if the vCPU comes before the one running there.
    pub fn wake(&mut self, id: VcpuId, now: Ticks) -> Option<u32> {
        let floor = self.floor();
        let group = self.groups.get_mut(&id.td)?;
        let was_active = group.is_active();
        let vcpu = group.vcpus.get(usize::from(id.vcpu))?;
        let State::Halted(due) = vcpu.state else {
            return None;
        };
        let home = vcpu.home;
        group.awake(usize::from(id.vcpu), now);
        if let Some(due) = due {
            self.due[home as usize].remove(&(due, id));
        }
        if !was_active {
            // A TD does not save up time that it did not use.
            group.vruntime = group.vruntime.max(floor);
        }
        if group.suspended {
            return None;
        }
        let vruntime = group.vruntime;
        if self.cpus[home as usize].idle && self.cores.allow(home, id.td) {
            self.cpus[home as usize].idle = false;
            return Some(home);
        }
        let numbered = (0..).zip(&mut self.cpus);
        let mut idle =
            numbered.filter(|(number, cpu)| cpu.idle && self.cores.allow(*number, id.td));
        if let Some((number, cpu)) = idle.next() {
            cpu.idle = false;
            return Some(number);
        }
        drop(idle);
        let running = self.cpus[home as usize].current?;
        let other = self.groups.get(&running.td)?;
        (vruntime < other.vruntime).then_some(home)
    }

    /// Returns the earliest wake-up time of the vCPUs that ran last on `cpu`.
    #[must_use]
    pub fn next_due(&self, cpu: u32) -> Option<Ticks> {
        self.due[cpu as usize].first().map(|(due, _)| *due)
    }

    /// Returns the idle CPUs.
    #[must_use]
    pub fn idle(&self) -> Vec<u32> {
        let cpus = (0..).zip(&self.cpus);
        cpus.filter(|(_, cpu)| cpu.idle)
            .map(|(cpu, _)| cpu)
            .collect()
    }

    /// Makes the vCPUs ready whose wake-up time has come.
    fn expire(&mut self, cpu: u32, now: Ticks) {
        while let Some((due, id)) = self.due[cpu as usize].first().copied()
            && due <= now
        {
            self.due[cpu as usize].pop_first();
            let floor = self.floor();
            let Some(group) = self.groups.get_mut(&id.td) else {
                continue;
            };
            if !group.is_active() {
                group.vruntime = group.vruntime.max(floor);
            }
            let vcpu = usize::from(id.vcpu);
            let state = group.vcpus.get(vcpu).map(|vcpu| vcpu.state);
            if matches!(state, Some(State::Halted(_))) {
                group.awake(vcpu, now);
            }
        }
    }

    /// Returns the least weighted CPU time of the TDs that currently want CPUs.
    fn floor(&self) -> u128 {
        let active = self.groups.values().filter(|group| group.is_active());
        active.map(|group| group.vruntime).min().unwrap_or(0)
    }
}

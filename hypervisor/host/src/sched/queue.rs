//! The run queue: distributes the CPUs among the vCPUs of all TDs.
//!
//! TDs share the CPUs by weight. The TD with the least weighted CPU time comes first. Within it, the vCPU with the
//! least CPU time comes first, unless one that ran last on this CPU has had hardly more. A turn is charged when it
//! begins and settled when it ends, so that CPUs that choose at the same time do not all choose the same TD. The queue
//! is pure: time is an argument.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

/// A time or duration in ticks of the host's time-stamp counter.
pub type Ticks = u64;

/// Settings that are the same for all TDs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The longest turn of a vCPU while others wait.
    pub slice: Ticks,
    /// The period over which a TD's cap is enforced.
    pub period: Ticks,
    /// Number of CPUs.
    pub cpus: usize,
}

/// A vCPU in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
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
        member: Member,
        /// End of the turn, or the time at which something else may be due.
        until: Ticks,
    },
    /// Stay idle until something may be due.
    Idle {
        /// `None` if nothing is due before the CPU is woken.
        until: Option<Ticks>,
    },
}

/// State of a vCPU at the end of its turn.
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

#[derive(Clone, Copy, Debug)]
enum State {
    Off,
    Ready,
    Running,
    Halted(Option<Ticks>),
}

#[derive(Clone, Copy, Debug)]
struct Vcpu {
    state: State,
    since: Ticks,
    /// The CPU on which the vCPU ran last, or is to run first.
    home: u32,
    /// CPU time of the vCPU, for comparison with the others of its TD.
    had: Ticks,
    times: Times,
}

impl Vcpu {
    fn go(&mut self, state: State, now: Ticks) {
        let spent = now.saturating_sub(self.since);
        match self.state {
            State::Off => {}
            State::Ready => self.times.steal += spent,
            State::Running => {
                self.times.run += spent;
                self.had += spent;
            }
            State::Halted(_) => self.times.wait += spent,
        }
        self.state = state;
        self.since = now;
    }
}

/// The vCPUs of one TD.
#[derive(Debug)]
struct Team {
    shares: u32,
    cap: Option<u32>,
    /// CPU time of the TD, divided by its share.
    had: u128,
    /// Ticks used in the period that began at `period`. Turns that are not over are counted in full.
    used: Ticks,
    period: Ticks,
    suspended: bool,
    ready: usize,
    vcpus: Vec<Vcpu>,
}

/// Scale of weighted CPU time, so that small differences count.
const SHARE_UNIT: u128 = 10_000;

impl Team {
    fn weighed(&self, ticks: Ticks) -> u128 {
        u128::from(ticks) * SHARE_UNIT / u128::from(self.shares.max(1))
    }

    /// Returns the ticks that the TD may still use in the period that contains `now`.
    fn left(&mut self, now: Ticks, period: Ticks) -> Ticks {
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
    fn awake(&mut self, vcpu: usize, now: Ticks) {
        let others = self.vcpus.iter();
        let floor = others
            .filter(|vcpu| matches!(vcpu.state, State::Ready | State::Running))
            .map(|vcpu| vcpu.had)
            .min();
        let vcpu = &mut self.vcpus[vcpu];
        vcpu.go(State::Ready, now);
        vcpu.had = vcpu.had.max(floor.unwrap_or(0));
        self.ready += 1;
    }

    fn is_active(&self) -> bool {
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

/// The current activity of a CPU.
#[derive(Clone, Copy, Debug, Default)]
struct Seat {
    member: Option<Member>,
    charged: Ticks,
    idle: bool,
}

/// The run queue of all TDs.
#[derive(Debug)]
pub struct Queue {
    settings: Settings,
    teams: BTreeMap<u32, Team>,
    seats: Vec<Seat>,
    /// Wake-up times of halted vCPUs, by the CPU on which each ran last.
    due: Vec<BTreeSet<(Ticks, Member)>>,
}

impl Queue {
    /// Creates an empty queue.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            teams: BTreeMap::new(),
            seats: alloc::vec![Seat::default(); settings.cpus],
            due: alloc::vec![BTreeSet::new(); settings.cpus],
            settings,
        }
    }

    /// Adds a TD whose vCPUs are to run first on the CPUs `homes`. None of them runs before [`Self::start`].
    pub fn add(&mut self, td: u32, shares: u32, cap: Option<u32>, homes: &[u32], now: Ticks) {
        self.remove(td);
        let vcpus = homes.iter().map(|home| Vcpu {
            state: State::Off,
            since: now,
            home: *home,
            had: 0,
            times: Times::default(),
        });
        self.teams.insert(
            td,
            Team {
                shares,
                cap,
                had: 0,
                used: 0,
                period: now,
                suspended: true,
                ready: 0,
                vcpus: vcpus.collect(),
            },
        );
    }

    /// Removes the TD.
    pub fn remove(&mut self, td: u32) {
        if self.teams.remove(&td).is_some() {
            for due in &mut self.due {
                due.retain(|(_, member)| member.td != td);
            }
            for seat in &mut self.seats {
                // A vCPU that still runs must not be accounted to the next TD of this number.
                seat.member = seat.member.filter(|member| member.td != td);
            }
        }
    }

    /// Lets the TD's vCPUs run. Returns the idle CPUs for which there is work now.
    pub fn start(&mut self, td: u32, now: Ticks) -> Vec<u32> {
        let floor = self.floor();
        let Some(team) = self.teams.get_mut(&td) else {
            return Vec::new();
        };
        team.suspended = false;
        team.had = team.had.max(floor);
        for vcpu in &mut team.vcpus {
            if matches!(vcpu.state, State::Off) {
                vcpu.go(State::Ready, now);
                team.ready += 1;
            }
        }
        let mut wanted = team.ready;
        let mut idle = Vec::new();
        for (cpu, seat) in (0..).zip(&mut self.seats) {
            if wanted > 0 && seat.idle {
                seat.idle = false;
                wanted -= 1;
                idle.push(cpu);
            }
        }
        idle
    }

    /// Gives the TD's vCPUs no further turn before [`Self::start`]. Running ones finish their turn.
    pub fn suspend(&mut self, td: u32) {
        if let Some(team) = self.teams.get_mut(&td) {
            team.suspended = true;
        }
    }

    /// Returns how the vCPU's time was spent; `None` if the vCPU does not exist.
    #[must_use]
    pub fn times(&self, member: Member, now: Ticks) -> Option<Times> {
        let mut vcpu = *self
            .teams
            .get(&member.td)?
            .vcpus
            .get(usize::from(member.vcpu))?;
        vcpu.go(vcpu.state, now);
        Some(vcpu.times)
    }

    /// Decides what `cpu` does next.
    pub fn pick(&mut self, cpu: u32, now: Ticks) -> Next {
        self.expire(cpu, now);
        let period = self.settings.period;
        let mut best: Option<(u128, u32)> = None;
        let mut later: Option<Ticks> = None;
        for (td, team) in &mut self.teams {
            if team.suspended || team.ready == 0 {
                continue;
            }
            if team.left(now, period) == 0 {
                let end = team.period + period;
                later = Some(later.map_or(end, |at| at.min(end)));
            } else if best.is_none_or(|(had, _)| team.had < had) {
                best = Some((team.had, *td));
            }
        }
        let due = self.next_due(cpu);
        let seat = &mut self.seats[cpu as usize];
        let Some((_, td)) = best else {
            *seat = Seat {
                idle: true,
                ..Seat::default()
            };
            let until = [later, due].into_iter().flatten().min();
            return Next::Idle { until };
        };
        let slice = self.settings.slice;
        let team = self.teams.get_mut(&td).expect("it was just found");
        let charged = slice.min(team.left(now, period)).max(1);
        team.had += team.weighed(charged);
        team.used += charged;
        team.ready -= 1;
        let vcpu = choose(&team.vcpus, cpu, slice * 2);
        let chosen = &mut team.vcpus[usize::from(vcpu)];
        chosen.go(State::Running, now);
        chosen.home = cpu;
        let member = Member { td, vcpu };
        *seat = Seat {
            member: Some(member),
            charged,
            idle: false,
        };
        let until = (now + charged).min(due.unwrap_or(Ticks::MAX));
        Next::Run { member, until }
    }

    /// Takes back the vCPU that ran on `cpu`.
    pub fn put(&mut self, cpu: u32, back: Back, now: Ticks) {
        let seat = core::mem::take(&mut self.seats[cpu as usize]);
        let Some(member) = seat.member else { return };
        let Some(team) = self.teams.get_mut(&member.td) else {
            return;
        };
        let Some(vcpu) = team.vcpus.get_mut(usize::from(member.vcpu)) else {
            return;
        };
        let ran = now.saturating_sub(vcpu.since);
        match back {
            Back::Ready => {
                vcpu.go(State::Ready, now);
                team.ready += 1;
            }
            Back::Halted(due) => {
                vcpu.go(State::Halted(due), now);
                if let Some(due) = due {
                    self.due[cpu as usize].insert((due, member));
                }
            }
            Back::Off => vcpu.go(State::Off, now),
        }
        team.had = (team.had + team.weighed(ran)).saturating_sub(team.weighed(seat.charged));
        team.used = (team.used + ran).saturating_sub(seat.charged);
    }

    /// Delivers the event that a halted vCPU waits for. Returns the CPU that should look for work because of it: an
    /// idle one, or the one on which the vCPU ran last, if the vCPU comes before the one running there.
    pub fn wake(&mut self, member: Member, now: Ticks) -> Option<u32> {
        let floor = self.floor();
        let team = self.teams.get_mut(&member.td)?;
        let was_active = team.is_active();
        let vcpu = team.vcpus.get(usize::from(member.vcpu))?;
        let State::Halted(due) = vcpu.state else {
            return None;
        };
        let home = vcpu.home;
        team.awake(usize::from(member.vcpu), now);
        if let Some(due) = due {
            self.due[home as usize].remove(&(due, member));
        }
        if !was_active {
            // A TD does not save up time that it did not use.
            team.had = team.had.max(floor);
        }
        if team.suspended {
            return None;
        }
        let had = team.had;
        if self.seats[home as usize].idle {
            self.seats[home as usize].idle = false;
            return Some(home);
        }
        if let Some(idle) = self.seats.iter().position(|seat| seat.idle) {
            self.seats[idle].idle = false;
            return Some(idle as u32);
        }
        let running = self.seats[home as usize].member?;
        let other = self.teams.get(&running.td)?;
        (had < other.had).then_some(home)
    }

    /// Returns the earliest wake-up time of the vCPUs that ran last on `cpu`.
    #[must_use]
    pub fn next_due(&self, cpu: u32) -> Option<Ticks> {
        self.due[cpu as usize].first().map(|(due, _)| *due)
    }

    /// Returns the idle CPUs.
    #[must_use]
    pub fn idle(&self) -> Vec<u32> {
        let seats = (0..).zip(&self.seats);
        seats
            .filter(|(_, seat)| seat.idle)
            .map(|(cpu, _)| cpu)
            .collect()
    }

    /// Makes the vCPUs ready whose wake-up time has come.
    fn expire(&mut self, cpu: u32, now: Ticks) {
        while let Some((due, member)) = self.due[cpu as usize].first().copied()
            && due <= now
        {
            self.due[cpu as usize].pop_first();
            let floor = self.floor();
            let Some(team) = self.teams.get_mut(&member.td) else {
                continue;
            };
            if !team.is_active() {
                team.had = team.had.max(floor);
            }
            let vcpu = usize::from(member.vcpu);
            let state = team.vcpus.get(vcpu).map(|vcpu| vcpu.state);
            if matches!(state, Some(State::Halted(_))) {
                team.awake(vcpu, now);
            }
        }
    }

    /// Returns the least weighted CPU time of the TDs that currently want CPUs.
    fn floor(&self) -> u128 {
        let active = self.teams.values().filter(|team| team.is_active());
        active.map(|team| team.had).min().unwrap_or(0)
    }
}

/// Chooses the ready vCPU with the least CPU time, or one that ran last on `cpu` and has had at most `hardly` more.
fn choose(vcpus: &[Vcpu], cpu: u32, hardly: Ticks) -> u16 {
    let ready = || {
        let all = (0..).zip(vcpus);
        all.filter(|(_, vcpu)| matches!(vcpu.state, State::Ready))
    };
    let least = ready().min_by_key(|(_, vcpu)| (vcpu.had, vcpu.since));
    let here = ready()
        .filter(|(_, vcpu)| vcpu.home == cpu)
        .min_by_key(|(_, vcpu)| (vcpu.had, vcpu.since));
    match (least, here) {
        (Some((_, least)), Some((number, here))) if here.had - least.had <= hardly => number,
        (Some((number, _)), _) => number,
        // Unreachable: the caller has checked that a vCPU is ready.
        (None, _) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Ticks = 100;

    fn queue(cpus: usize) -> Queue {
        Queue::new(Settings {
            slice: SLICE,
            period: 1000,
            cpus,
        })
    }

    fn homes(vcpus: u32, cpus: u32) -> Vec<u32> {
        (0..vcpus).map(|vcpu| vcpu % cpus).collect()
    }

    /// Runs full turns of vCPUs that never halt on all CPUs, and returns the time of each vCPU.
    fn play(queue: &mut Queue, cpus: u32, until: Ticks) -> BTreeMap<Member, Ticks> {
        let mut ends: Vec<Ticks> = (0..Ticks::from(cpus)).collect();
        let mut got = BTreeMap::new();
        let mut turns: Vec<Option<(Member, Ticks)>> = alloc::vec![None; cpus as usize];
        loop {
            let (cpu, now) = ends
                .iter()
                .copied()
                .enumerate()
                .min_by_key(|(_, end)| *end)
                .unwrap();
            if now >= until {
                return got;
            }
            if let Some((member, began)) = turns[cpu].take() {
                queue.put(cpu as u32, Back::Ready, now);
                *got.entry(member).or_default() += now - began;
            }
            ends[cpu] = match queue.pick(cpu as u32, now) {
                Next::Run { member, until } => {
                    turns[cpu] = Some((member, now));
                    until
                }
                Next::Idle { until } => until.unwrap_or(now + SLICE).max(now + 1),
            };
        }
    }

    fn of(got: &BTreeMap<Member, Ticks>, td: u32) -> Vec<Ticks> {
        got.iter()
            .filter(|(member, _)| member.td == td)
            .map(|(_, ticks)| *ticks)
            .collect()
    }

    #[test]
    fn twelve_vcpus_of_three_tds_share_four_cpus_evenly() {
        let mut queue = queue(4);
        for td in 1..=3 {
            queue.add(td, 100, None, &homes(4, 4), 0);
            queue.start(td, 0);
        }
        let got = play(&mut queue, 4, 100_000);
        assert_eq!(got.len(), 12);
        let even = 100_000 * 4 / 12;
        for (member, ticks) in got {
            assert!(ticks.abs_diff(even) <= even / 50, "{member:?}: {ticks}");
        }
    }

    #[test]
    fn shares_are_kept() {
        let mut queue = queue(2);
        for (td, shares) in [(1, 100), (2, 300)] {
            queue.add(td, shares, None, &homes(4, 2), 0);
            queue.start(td, 0);
        }
        let got = play(&mut queue, 2, 200_000);
        let sum = |td| of(&got, td).iter().sum::<Ticks>();
        assert!(sum(2).abs_diff(3 * sum(1)) <= sum(2) / 50, "{got:?}");
        for td in [1, 2] {
            let own = of(&got, td);
            let (least, most) = (own.iter().min().unwrap(), own.iter().max().unwrap());
            assert!(most - least <= 10 * SLICE, "{own:?}");
        }
    }

    #[test]
    fn a_td_with_few_vcpus_leaves_the_rest_to_others() {
        let mut queue = queue(4);
        queue.add(1, 10_000, None, &homes(1, 4), 0);
        queue.add(2, 1, None, &homes(4, 4), 0);
        queue.start(1, 0);
        queue.start(2, 0);
        let got = play(&mut queue, 4, 100_000);
        assert!(of(&got, 1)[0] > 97_000, "{got:?}");
        assert!(of(&got, 2).iter().sum::<Ticks>() > 290_000, "{got:?}");
    }

    #[test]
    fn a_cap_is_kept_also_when_nobody_else_wants_the_cpus() {
        let mut queue = queue(2);
        queue.add(1, 100, Some(50), &homes(2, 2), 0);
        queue.start(1, 0);
        let got = play(&mut queue, 2, 100_000);
        let sum: Ticks = of(&got, 1).iter().sum();
        assert!(sum.abs_diff(50_000) <= 1000, "{sum}");
    }

    #[test]
    fn a_vcpu_stays_where_it_ran_while_that_costs_nobody_much() {
        let mut queue = queue(2);
        queue.add(1, 100, None, &homes(2, 2), 0);
        queue.start(1, 0);
        for round in 0..10 {
            let now = round * SLICE;
            for cpu in [1, 0] {
                queue.put(cpu, Back::Ready, now);
            }
            for cpu in [1, 0] {
                let Next::Run { member, .. } = queue.pick(cpu, now) else {
                    panic!("two are ready");
                };
                assert_eq!(u32::from(member.vcpu), cpu);
            }
        }
    }

    #[test]
    fn a_halted_vcpu_runs_when_it_is_woken_or_due() {
        let mut queue = queue(1);
        let member = Member { td: 1, vcpu: 0 };
        queue.add(1, 100, None, &[0], 0);
        assert_eq!(queue.start(1, 0), [] as [u32; 0]);
        assert!(matches!(queue.pick(0, 0), Next::Run { .. }));
        queue.put(0, Back::Halted(Some(500)), 50);
        assert_eq!(queue.pick(0, 60), Next::Idle { until: Some(500) });
        assert_eq!(queue.wake(member, 70), Some(0));
        assert_eq!(queue.wake(member, 70), None, "it is awake");
        assert!(matches!(queue.pick(0, 80), Next::Run { .. }));
        queue.put(0, Back::Halted(Some(500)), 90);
        assert!(matches!(queue.pick(0, 500), Next::Run { .. }));
        let times = queue.times(member, 510).unwrap();
        assert_eq!(
            times,
            Times {
                run: 50 + 10 + 10,
                wait: 20 + 410,
                steal: 10
            }
        );
        queue.put(0, Back::Halted(None), 520);
        assert_eq!(queue.pick(0, 530), Next::Idle { until: None });
    }

    #[test]
    fn who_sleeps_saves_nothing_up() {
        let mut queue = queue(1);
        for td in [1, 2] {
            queue.add(td, 100, None, &[0], 0);
            queue.start(td, 0);
        }
        let Next::Run {
            member: sleeper, ..
        } = queue.pick(0, 0)
        else {
            panic!("two are ready");
        };
        queue.put(0, Back::Halted(None), 1);
        let _ = play(&mut queue, 1, 50_000);
        queue.put(0, Back::Ready, 50_000);
        queue.wake(sleeper, 50_000);
        let got = play(&mut queue, 1, 60_000);
        let most = got.values().max().unwrap();
        assert!(*most < 55_000, "{got:?}");
    }

    #[test]
    fn a_suspended_td_gets_no_turn_and_goes_on_where_it_was() {
        let mut queue = queue(1);
        queue.add(1, 100, None, &[0, 0], 0);
        queue.start(1, 0);
        assert!(matches!(queue.pick(0, 0), Next::Run { .. }));
        queue.suspend(1);
        queue.put(0, Back::Ready, 10);
        assert_eq!(queue.pick(0, 20), Next::Idle { until: None });
        assert_eq!(queue.start(1, 30), [0]);
        assert!(matches!(queue.pick(0, 40), Next::Run { .. }));
        queue.remove(1);
        queue.put(0, Back::Ready, 50);
        assert_eq!(queue.pick(0, 60), Next::Idle { until: None });
    }
}

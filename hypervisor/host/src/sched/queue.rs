//! Whose turn it is: the vCPUs of all TDs, and the CPUs that they share.
//!
//! TDs share the CPUs by weight: the one that has had least for its share comes first, and within it the vCPU that has
//! had least, unless one that ran here last has had hardly more. A turn is charged when it begins, so that several
//! CPUs that choose at once do not all choose the same TD, and settled when it ends. Pure: time comes in as a number.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

/// Times and durations here are ticks of the host's time-stamp counter.
pub type Ticks = u64;

/// What is the same for all TDs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The longest that a vCPU runs while others wait.
    pub slice: Ticks,
    /// The time over which a TD's cap is kept.
    pub period: Ticks,
    /// CPUs.
    pub cpus: usize,
}

/// One vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The TD.
    pub td: u32,
    /// The vCPU's number in it.
    pub vcpu: u16,
}

/// What a CPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Runs this vCPU.
    Run {
        /// The vCPU.
        member: Member,
        /// When something else may be due.
        until: Ticks,
    },
    /// Nothing; at this time something may be due.
    Idle {
        /// `None` when nothing will be before somebody wakes it.
        until: Option<Ticks>,
    },
}

/// How a vCPU came back from its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// It could go on.
    Ready,
    /// It waits for an event, and for this time at the latest.
    Halted(Option<Ticks>),
    /// It will not run again before its TD is started anew.
    Off,
}

/// Where the time of one vCPU has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// It had a CPU.
    pub run: Ticks,
    /// It waited for an event.
    pub wait: Ticks,
    /// It could have run, and had no CPU.
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
    /// The CPU that it ran on last, or is to run on first.
    home: u32,
    /// What it has had, against the others of its TD.
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
    /// What it has had, for its share.
    had: u128,
    /// Ticks used in the period that began at `period`, those of turns that are not over counted whole.
    used: Ticks,
    period: Ticks,
    suspended: bool,
    ready: usize,
    vcpus: Vec<Vcpu>,
}

/// What a share is divided into, so that small differences count.
const SHARE_UNIT: u128 = 10_000;

impl Team {
    fn weighed(&self, ticks: Ticks) -> u128 {
        u128::from(ticks) * SHARE_UNIT / u128::from(self.shares.max(1))
    }

    /// Ticks that it may use in the period in which `now` is.
    fn left(&mut self, now: Ticks, period: Ticks) -> Ticks {
        let Some(cap) = self.cap else {
            return Ticks::MAX;
        };
        if now.saturating_sub(self.period) >= period {
            // What was used beyond the budget is paid back out of the periods that follow.
            let passed = now.saturating_sub(self.period) / period;
            self.used = self.used.saturating_sub(passed * budget(cap, period));
            self.period += passed * period;
        }
        budget(cap, period).saturating_sub(self.used)
    }

    /// The vCPU is ready again. Time that it did not want is not saved up.
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

/// What one CPU does.
#[derive(Clone, Copy, Debug, Default)]
struct Seat {
    member: Option<Member>,
    charged: Ticks,
    idle: bool,
}

/// All TDs' vCPUs.
#[derive(Debug)]
pub struct Queue {
    settings: Settings,
    teams: BTreeMap<u32, Team>,
    seats: Vec<Seat>,
    /// When halted vCPUs are due, for each CPU that they ran on last.
    due: Vec<BTreeSet<(Ticks, Member)>>,
}

impl Queue {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            teams: BTreeMap::new(),
            seats: alloc::vec![Seat::default(); settings.cpus],
            due: alloc::vec![BTreeSet::new(); settings.cpus],
            settings,
        }
    }

    /// A TD whose vCPUs are to run first on the CPUs `homes`. None of them runs before [`Self::start`].
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

    /// The TD is gone.
    pub fn remove(&mut self, td: u32) {
        if self.teams.remove(&td).is_some() {
            for due in &mut self.due {
                due.retain(|(_, member)| member.td != td);
            }
            for seat in &mut self.seats {
                // What still runs is no business of the next TD of this number.
                seat.member = seat.member.filter(|member| member.td != td);
            }
        }
    }

    /// Its vCPUs may run. Returns the CPUs that have nothing to do, for each of which there is something now.
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

    /// None of its vCPUs gets another turn before [`Self::start`]. Those that run come back by themselves.
    pub fn suspend(&mut self, td: u32) {
        if let Some(team) = self.teams.get_mut(&td) {
            team.suspended = true;
        }
    }

    /// Where the vCPU's time has gone; `None` when it is not there.
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

    /// What `cpu` does next.
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

    /// The vCPU that ran on `cpu` came back.
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

    /// The event that a halted vCPU waits for has come. Returns the CPU that is to look for work because of it: one that has
    /// nothing to do, or the one that it ran on last, if it comes before what runs there.
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
            // Time that it did not want is not saved up.
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

    /// When the next vCPU that ran on `cpu` last is due.
    #[must_use]
    pub fn next_due(&self, cpu: u32) -> Option<Ticks> {
        self.due[cpu as usize].first().map(|(due, _)| *due)
    }

    /// The CPUs that have nothing to run.
    #[must_use]
    pub fn idle(&self) -> Vec<u32> {
        let seats = (0..).zip(&self.seats);
        seats
            .filter(|(_, seat)| seat.idle)
            .map(|(cpu, _)| cpu)
            .collect()
    }

    /// Those whose time has come are ready.
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

    /// The least that a TD has had which wants CPUs now.
    fn floor(&self) -> u128 {
        let active = self.teams.values().filter(|team| team.is_active());
        active.map(|team| team.had).min().unwrap_or(0)
    }
}

/// The ready vCPU that has had least, or one that ran on `cpu` last and has had `hardly` more.
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
        // Only asked when one is ready.
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

    /// Lets all CPUs run whole turns of vCPUs that never halt, and says what each vCPU of each TD got.
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

//! Tests of the run queue: shares, caps, halts.

use super::*;

const SLICE: Ticks = 100;

/// The portion of a TD whose configuration names none.
const USUAL: Portion = Portion {
    shares: 100,
    cap: None,
};

fn queue(cpus: usize) -> RunQueue {
    RunQueue::new(Settings {
        slice: SLICE,
        period: 1000,
        cpus,
    })
}

fn homes(vcpus: u32, cpus: u32) -> Vec<u32> {
    (0..vcpus).map(|vcpu| vcpu % cpus).collect()
}

/// Runs full time slices of vCPUs that never halt on all CPUs, and returns the time of each vCPU.
fn run_slices(queue: &mut RunQueue, cpus: u32, until: Ticks) -> BTreeMap<VcpuId, Ticks> {
    let mut ends: Vec<Ticks> = (0..Ticks::from(cpus)).collect();
    let mut got = BTreeMap::new();
    let mut slices: Vec<Option<(VcpuId, Ticks)>> = alloc::vec![None; cpus as usize];
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
        if let Some((id, began)) = slices[cpu].take() {
            queue.put(cpu as u32, Back::Ready, now);
            *got.entry(id).or_default() += now - began;
        }
        ends[cpu] = match queue.pick(cpu as u32, now) {
            Next::Run { id, until } => {
                slices[cpu] = Some((id, now));
                until
            }
            Next::Idle { until } => until.unwrap_or(now + SLICE).max(now + 1),
        };
    }
}

fn of(got: &BTreeMap<VcpuId, Ticks>, td: u32) -> Vec<Ticks> {
    got.iter()
        .filter(|(id, _)| id.td == td)
        .map(|(_, ticks)| *ticks)
        .collect()
}

#[test]
fn twelve_vcpus_of_three_tds_share_four_cpus_evenly() {
    let mut queue = queue(4);
    for td in 1..=3 {
        queue.add(td, USUAL, &homes(4, 4), 0);
        queue.start(td, 0);
    }
    let got = run_slices(&mut queue, 4, 100_000);
    assert_eq!(got.len(), 12);
    let even = 100_000 * 4 / 12;
    for (id, ticks) in got {
        assert!(ticks.abs_diff(even) <= even / 50, "{id:?}: {ticks}");
    }
}

#[test]
fn shares_are_kept() {
    let mut queue = queue(2);
    for (td, shares) in [(1, 100), (2, 300)] {
        queue.add(td, Portion { shares, cap: None }, &homes(4, 2), 0);
        queue.start(td, 0);
    }
    let got = run_slices(&mut queue, 2, 200_000);
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
    queue.add(
        1,
        Portion {
            shares: 10_000,
            cap: None,
        },
        &homes(1, 4),
        0,
    );
    queue.add(
        2,
        Portion {
            shares: 1,
            cap: None,
        },
        &homes(4, 4),
        0,
    );
    queue.start(1, 0);
    queue.start(2, 0);
    let got = run_slices(&mut queue, 4, 100_000);
    assert!(of(&got, 1)[0] > 97_000, "{got:?}");
    assert!(of(&got, 2).iter().sum::<Ticks>() > 290_000, "{got:?}");
}

#[test]
fn a_cap_holds_on_an_idle_machine() {
    let mut queue = queue(2);
    queue.add(
        1,
        Portion {
            shares: 100,
            cap: Some(50),
        },
        &homes(2, 2),
        0,
    );
    queue.start(1, 0);
    let got = run_slices(&mut queue, 2, 100_000);
    let sum: Ticks = of(&got, 1).iter().sum();
    assert!(sum.abs_diff(50_000) <= 1000, "{sum}");
}

#[test]
fn a_vcpu_stays_on_its_cpu_while_the_unfairness_is_small() {
    let mut queue = queue(2);
    queue.add(1, USUAL, &homes(2, 2), 0);
    queue.start(1, 0);
    for round in 0..10 {
        let now = round * SLICE;
        for cpu in [1, 0] {
            queue.put(cpu, Back::Ready, now);
        }
        for cpu in [1, 0] {
            let Next::Run { id, .. } = queue.pick(cpu, now) else {
                panic!("two are ready");
            };
            assert_eq!(u32::from(id.vcpu), cpu);
        }
    }
}

#[test]
fn a_halted_vcpu_runs_when_it_is_woken_or_due() {
    let mut queue = queue(1);
    let id = VcpuId { td: 1, vcpu: 0 };
    queue.add(1, USUAL, &[0], 0);
    assert_eq!(queue.start(1, 0), [] as [u32; 0]);
    assert!(matches!(queue.pick(0, 0), Next::Run { .. }));
    queue.put(0, Back::Halted(Some(500)), 50);
    assert_eq!(queue.pick(0, 60), Next::Idle { until: Some(500) });
    assert_eq!(queue.wake(id, 70), Some(0));
    assert_eq!(queue.wake(id, 70), None, "it is awake");
    assert!(matches!(queue.pick(0, 80), Next::Run { .. }));
    queue.put(0, Back::Halted(Some(500)), 90);
    assert!(matches!(queue.pick(0, 500), Next::Run { .. }));
    let times = queue.times(id, 510).unwrap();
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
fn a_sleeping_vcpu_saves_no_time() {
    let mut queue = queue(1);
    for td in [1, 2] {
        queue.add(td, USUAL, &[0], 0);
        queue.start(td, 0);
    }
    let Next::Run { id: sleeper, .. } = queue.pick(0, 0) else {
        panic!("two are ready");
    };
    queue.put(0, Back::Halted(None), 1);
    let _ = run_slices(&mut queue, 1, 50_000);
    queue.put(0, Back::Ready, 50_000);
    queue.wake(sleeper, 50_000);
    let got = run_slices(&mut queue, 1, 60_000);
    let most = got.values().max().unwrap();
    assert!(*most < 55_000, "{got:?}");
}

#[test]
fn a_suspended_td_gets_no_turn_and_goes_on_where_it_was() {
    let mut queue = queue(1);
    queue.add(1, USUAL, &[0, 0], 0);
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

/// The vCPU that runs on each CPU, as the test sees it, with the end of the turn.
type Turns = Vec<Option<(VcpuId, Ticks)>>;

/// Checks that no core has vCPUs of two TDs.
fn assert_separate(turns: &Turns, threads: usize) {
    for core in turns.chunks(threads) {
        let mut tds: Vec<u32> = core.iter().flatten().map(|(id, _)| id.td).collect();
        tds.dedup();
        assert!(tds.len() <= 1, "a core runs TDs {tds:?}");
    }
}

/// Runs all CPUs until `end`. `back` says how a vCPU's turn ends. Returns the longest time that each TD waited for a
/// turn.
fn play_on_cores(
    queue: &mut RunQueue,
    threads: usize,
    end: Ticks,
    mut back: impl FnMut(&mut RunQueue, VcpuId, Ticks) -> Back,
) -> BTreeMap<u32, Ticks> {
    let cpus = queue.settings.cpus;
    let mut turns: Turns = alloc::vec![None; cpus];
    let mut next: Vec<Ticks> = (0..cpus as Ticks).collect();
    let mut last = BTreeMap::new();
    let mut longest: BTreeMap<u32, Ticks> = BTreeMap::new();
    loop {
        let (cpu, now) = next
            .iter()
            .copied()
            .enumerate()
            .min_by_key(|(_, at)| *at)
            .unwrap();
        if now >= end {
            for (td, since) in last {
                let wait = longest.entry(td).or_default();
                *wait = (*wait).max(end - since);
            }
            return longest;
        }
        if let Some((id, _)) = turns[cpu].take() {
            let how = back(queue, id, now);
            queue.put(cpu as u32, how, now);
        }
        next[cpu] = match queue.pick(cpu as u32, now) {
            Next::Run { id, until } => {
                let since = last.insert(id.td, now).unwrap_or(0);
                let wait = longest.entry(id.td).or_default();
                *wait = (*wait).max(now - since);
                turns[cpu] = Some((id, until));
                until.max(now + 1)
            }
            // Nothing pokes CPUs here, so one looks again in a while.
            Next::Idle { until } => until.unwrap_or(now + SLICE).clamp(now + 1, now + SLICE),
        };
        assert_separate(&turns, threads);
    }
}

fn on_cores(cores: usize, threads: usize) -> RunQueue {
    let numbers: Vec<u32> = (0..cores * threads)
        .map(|cpu| (cpu / threads) as u32)
        .collect();
    queue(cores * threads).with_cores(&numbers)
}

#[test]
fn without_cores_two_tds_share_one() {
    let mut queue = queue(2);
    for td in [1, 2] {
        queue.add(td, USUAL, &[0], 0);
        queue.start(td, 0);
    }
    let picked = [0, 1].map(|cpu| queue.pick(cpu, 0));
    let tds = picked.map(|next| match next {
        Next::Run { id, .. } => id.td,
        Next::Idle { .. } => 0,
    });
    assert_eq!(tds, [1, 2]);
}

#[test]
fn a_thread_joins_the_td_on_its_core_or_waits_for_its_turn_to_end() {
    let mut queue = on_cores(1, 2);
    queue.add(1, USUAL, &[0], 0);
    queue.add(2, USUAL, &[0, 1], 0);
    queue.start(1, 0);
    queue.start(2, 0);
    assert!(matches!(queue.pick(0, 0), Next::Run { id, .. } if id.td == 1));
    // TD 1 has no second vCPU, and TD 2 must not run beside it.
    assert_eq!(queue.pick(1, 10), Next::Idle { until: Some(SLICE) });
    queue.put(0, Back::Ready, SLICE);
    for cpu in [0, 1] {
        assert!(matches!(queue.pick(cpu, SLICE), Next::Run { id, .. } if id.td == 2));
    }
}

#[test]
fn a_woken_vcpu_goes_to_a_core_that_can_take_it() {
    let mut queue = on_cores(2, 2);
    queue.add(1, USUAL, &[0], 0);
    queue.add(2, USUAL, &[1], 0);
    queue.start(2, 0);
    assert!(matches!(queue.pick(1, 0), Next::Run { .. }));
    queue.put(1, Back::Halted(None), 1);
    queue.start(1, 1);
    assert!(matches!(queue.pick(0, 1), Next::Run { id, .. } if id.td == 1));
    for cpu in 1..4 {
        assert!(matches!(queue.pick(cpu, 2), Next::Idle { .. }));
    }
    // Its home, CPU 1, is idle, but TD 1 has that core.
    let id = VcpuId { td: 2, vcpu: 0 };
    assert_eq!(queue.wake(id, 3), Some(2));
}

#[test]
fn a_removed_td_keeps_its_core_until_its_last_vcpu_has_left() {
    let mut queue = on_cores(1, 2);
    queue.add(1, USUAL, &[0], 0);
    queue.start(1, 0);
    assert!(matches!(queue.pick(0, 0), Next::Run { .. }));
    queue.remove(1);
    // The next life of TD 1 is another TD.
    queue.add(1, USUAL, &[1], 5);
    queue.start(1, 5);
    assert!(matches!(queue.pick(1, 5), Next::Idle { .. }));
    queue.put(0, Back::Ready, 20);
    assert!(matches!(queue.pick(1, 20), Next::Run { .. }));
}

proptest::proptest! {
    /// No core ever runs vCPUs of two TDs, whatever vCPUs halt, wake, are suspended or removed, and no TD that always
    /// wants a CPU waits for long.
    #[test]
    fn cores_are_separate_and_nothing_starves(
        cores in 1usize..5,
        threads in 1usize..4,
        tds in proptest::collection::vec((1u32..7, 1u32..4), 1..6),
        events in proptest::collection::vec(0u8..12, 1..200),
    ) {
        let mut queue = on_cores(cores, threads);
        let cpus = (cores * threads) as u32;
        let ids = 1..=tds.len() as u32;
        for (td, (vcpus, weight)) in (1..).zip(&tds) {
            queue.add(td, Portion { shares: 100 * weight, cap: None }, &homes(*vcpus, cpus), 0);
            queue.start(td, 0);
        }
        let longest = play_on_cores(&mut queue, threads, 400 * SLICE, |_, _, _| Back::Ready);
        let shares: u32 = tds.iter().map(|(_, weight)| weight).sum();
        for td in ids.clone() {
            // A TD with one share waits for a round of all others, and for cores that drain.
            let bound = SLICE * Ticks::from(4 * shares + 8);
            let waited = longest.get(&td).copied();
            proptest::prop_assert!(waited.is_some_and(|t| t <= bound), "TD {}: {:?}", td, waited);
        }

        let mut event = events.iter().cycle();
        let mut halted: Vec<VcpuId> = Vec::new();
        let mut queue = on_cores(cores, threads);
        for (td, (vcpus, weight)) in (1..).zip(&tds) {
            queue.add(td, Portion { shares: 100 * weight, cap: Some(150) }, &homes(*vcpus, cpus), 0);
            queue.start(td, 0);
        }
        let vcpus = tds.clone();
        play_on_cores(&mut queue, threads, 400 * SLICE, |queue, id, now| {
            if let Some(sleeper) = halted.pop() {
                queue.wake(sleeper, now);
            }
            match event.next().copied().unwrap_or(0) {
                0 => {
                    halted.push(id);
                    Back::Halted(None)
                }
                1 => Back::Halted(Some(now + SLICE / 2)),
                2 => Back::Off,
                3 => {
                    queue.suspend(id.td);
                    Back::Ready
                }
                4 => {
                    let (count, weight) = vcpus[id.td as usize - 1];
                    halted.retain(|sleeper| sleeper.td != id.td);
                    queue.add(id.td, Portion { shares: 100 * weight, cap: None }, &homes(count, cpus), now);
                    queue.start(id.td, now);
                    Back::Ready
                }
                5 | 6 => {
                    for td in ids.clone() {
                        queue.start(td, now);
                    }
                    Back::Ready
                }
                _ => Back::Ready,
            }
        });
    }
}

#[test]
fn a_portion_applies_from_the_moment_it_is_set() {
    let mut queue = queue(1);
    for td in [1, 2] {
        queue.add(td, USUAL, &[0], 0);
        queue.start(td, 0);
    }
    let first = run_slices(&mut queue, 1, 50_000);
    assert!(of(&first, 1)[0].abs_diff(25_000) <= 500, "{first:?}");
    // Time that it used without a cap is not paid back.
    let capped = Portion {
        shares: 100,
        cap: Some(20),
    };
    queue.set_portion(1, capped, 50_000);
    let mut queue_alone = queue;
    queue_alone.suspend(2);
    let mut now = 50_000;
    let mut got = 0;
    while now < 100_000 {
        match queue_alone.pick(0, now) {
            Next::Run { id, until } => {
                assert_eq!(id.td, 1);
                got += until - now;
                now = until;
                queue_alone.put(0, Back::Ready, now);
            }
            Next::Idle { until } => now = until.unwrap().max(now + 1),
        }
    }
    assert!(
        got.abs_diff(10_000) <= 300,
        "{got} of 50,000 with a cap of 20 %"
    );
    queue_alone.set_portion(1, USUAL, now);
    assert!(
        matches!(queue_alone.pick(0, now), Next::Run { .. }),
        "no cap, no wait"
    );
}

#[test]
fn shares_that_are_set_count_from_then_on() {
    let mut queue = queue(1);
    for td in [1, 2] {
        queue.add(td, USUAL, &[0], 0);
        queue.start(td, 0);
    }
    let more = Portion {
        shares: 300,
        cap: None,
    };
    queue.set_portion(2, more, 0);
    let got = run_slices(&mut queue, 1, 100_000);
    assert!(of(&got, 2)[0].abs_diff(75_000) <= 1000, "{got:?}");
    queue.set_portion(7, more, 0);
}

#[test]
fn work_beside_the_vcpus_counts_as_the_td_s_time() {
    let mut queue = queue(1);
    let capped = Portion {
        cap: Some(5),
        ..USUAL
    };
    assert_eq!(queue.turn(1, 0), 0, "there is no TD");
    queue.add(1, capped, &[0], 0);
    queue.add(2, USUAL, &[0], 0);
    assert_eq!(queue.turn(1, 0), 0, "it is not started");
    queue.start(1, 0);
    queue.start(2, 0);
    assert_eq!((queue.turn(1, 0), queue.turn(2, 0)), (50, SLICE));
    queue.charge(1, 30);
    assert_eq!(queue.turn(1, 10), 20);
    let Next::Run { id, until } = queue.pick(0, 10) else {
        panic!("two wait");
    };
    assert_eq!((id.td, until), (2, 10 + SLICE), "it has had less");
    queue.charge(1, 80);
    assert_eq!(queue.turn(1, 20), 0);
    // The excess is paid back.
    assert_eq!(queue.turn(1, 1000), 0);
    assert_eq!(queue.turn(1, 2000), 40);
}

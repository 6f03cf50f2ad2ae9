//! Tests of the run queue: shares, caps, halts.

use super::*;

const SLICE: Ticks = 100;

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

/// Runs full turns of vCPUs that never halt on all CPUs, and returns the time of each vCPU.
fn play(queue: &mut RunQueue, cpus: u32, until: Ticks) -> BTreeMap<VcpuId, Ticks> {
    let mut ends: Vec<Ticks> = (0..Ticks::from(cpus)).collect();
    let mut got = BTreeMap::new();
    let mut turns: Vec<Option<(VcpuId, Ticks)>> = alloc::vec![None; cpus as usize];
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
        if let Some((id, began)) = turns[cpu].take() {
            queue.put(cpu as u32, Back::Ready, now);
            *got.entry(id).or_default() += now - began;
        }
        ends[cpu] = match queue.pick(cpu as u32, now) {
            Next::Run { id, until } => {
                turns[cpu] = Some((id, now));
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
        queue.add(td, 100, None, &homes(4, 4), 0);
        queue.start(td, 0);
    }
    let got = play(&mut queue, 4, 100_000);
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
    queue.add(1, 100, None, &[0], 0);
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
fn who_sleeps_saves_nothing_up() {
    let mut queue = queue(1);
    for td in [1, 2] {
        queue.add(td, 100, None, &[0], 0);
        queue.start(td, 0);
    }
    let Next::Run { id: sleeper, .. } = queue.pick(0, 0) else {
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

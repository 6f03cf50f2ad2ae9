//! Explores a race, and checks the state after it.

use std::sync::Arc;

use host::platform::{Platform, Running};
use host::sched::Scheduler;
use host::td::capabilities::Capabilities;
use host::td::end::{Ended, Way};
use host::td::host::{Host, NoRunner, Runner as RunsVcpus};
use host::td::life::State;
use host::td::{Td, registry::Tds};
use host::tdx::hkids::{Count, Hkids};
use host::tdx::release::Coordinator;
use mm::private::Clearing;
use seam::abi::{Leaf, PageSize};
use seam::address::Gpa;
use seam::platform::KeyIds;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};
use sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use crate::actors::FREE;
use crate::machine::{CPUS, GLOBAL_HKID, Machine, become_cpu};
use crate::sample::{Everything, image};

/// Number of orders to try with each of two schedulers.
const ORDERS: usize = 12;
/// Seed of the schedulers.
const SEED: u64 = 0x5ea_3a4c;
/// Number of departures of an order from running one CPU after the other.
const DEPARTURES: usize = 4;

/// A host with two TDs, each with two vCPUs.
pub struct World<'h> {
    pub machine: &'h Machine,
    pub tds: Tds<'h, Machine>,
    /// Set when a shrink left the rest to the TD's termination, or to its revival.
    pub is_shrink_promised: AtomicBool,
}

/// The action of a CPU.
pub type Actor = fn(&World<'_>);

impl World<'_> {
    /// Returns the TD of this number once it has a life.
    pub fn td(&self, id: u32) -> Arc<Td> {
        loop {
            match self.tds.get(id) {
                Some(td) => return td,
                None => self.machine.breathe(),
            }
        }
    }

    /// Waits until a leaf is called.
    pub fn wait_for(&self, leaf: Leaf) {
        while self.machine.begun(leaf) == 0 {
            self.machine.breathe();
        }
    }
}

/// Runs actors on CPUs 1 to 3 in many orders. CPU 0 prepares the world for them, and checks it afterwards.
pub fn explore(prepare: Actor, actors: &'static [Actor]) {
    assert!(actors.len() < CPUS);
    in_many_orders(ORDERS, move || play(prepare, actors));
}

/// Runs a race in `orders` orders of each of two schedulers.
pub fn in_many_orders(orders: usize, race: impl Fn() + Copy + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    let random = RandomScheduler::new_from_seed(SEED, orders);
    Runner::new(random, config.clone()).run(race);
    let few = PctScheduler::new_from_seed(SEED, DEPARTURES, orders);
    Runner::new(few, config).run(race);
}

fn play(prepare: Actor, actors: &'static [Actor]) {
    let machine = Machine::new();
    let coordinator = coordinator();
    let image = image();
    let world = &World {
        machine: &machine,
        tds: tds(&machine, &coordinator, &image, &NoRunner),
        is_shrink_promised: AtomicBool::new(false),
    };
    let (done, stop) = (&AtomicUsize::new(0), &AtomicBool::new(false));
    thread::scope(|scope| {
        for cpu in 1..CPUS {
            let actor = actors.get(cpu - 1);
            scope.spawn(move || {
                become_cpu(cpu as u32);
                while done.load(SeqCst) == 0 {
                    world.machine.breathe();
                }
                if let Some(actor) = actor {
                    actor(world);
                    done.fetch_add(1, SeqCst);
                }
                while !stop.load(SeqCst) {
                    world.machine.breathe();
                }
            });
        }
        prepare(world);
        // Let the actors begin.
        done.store(1, SeqCst);
        while done.load(SeqCst) <= actors.len() {
            world.machine.breathe();
        }
        finish(world);
        stop.store(true, SeqCst);
    });
    machine.take_apart();
    machine.assert_spotless();
    let Count {
        used, quarantined, ..
    } = coordinator.hkids().count();
    assert_eq!((used, quarantined), (1, 0), "the module's own alone");
}

/// Creates the HKIDs of the machine, of which the module has one.
pub fn coordinator() -> Coordinator {
    let hkids = Hkids::new(&KeyIds {
        shared: 31,
        private: 32,
        max_pa: 52,
        bits: 6,
    });
    hkids.take_global().unwrap().surrender();
    Coordinator::new(hkids)
}

/// Creates two TDs, each with two vCPUs.
pub fn tds<'h>(
    machine: &'h Machine,
    coordinator: &'h Coordinator,
    image: &'h [u8],
    runner: &'h (dyn RunsVcpus + Sync),
) -> Tds<'h, Machine> {
    tds_with(machine, coordinator, image, runner, "")
}

/// Does the same; the second TD has these lines of configuration as well.
pub fn tds_with<'h>(
    machine: &'h Machine,
    coordinator: &'h Coordinator,
    image: &'h [u8],
    runner: &'h (dyn RunsVcpus + Sync),
    more: &str,
) -> Tds<'h, Machine> {
    let td =
        |name| format!("[[td]]\nimage = \"i\"\nname = \"{name}\"\nmemory = \"16M\"\nvcpus = 2\n");
    let text = format!(
        "[[file]]\nname = \"i\"\npath = \"i\"\n{}{}{more}",
        td("one"),
        td("two")
    );
    let named = config::parse(text.as_bytes()).unwrap().td;
    tds_of(machine, coordinator, image, runner, named)
}

/// Creates these TDs.
pub fn tds_of<'h>(
    machine: &'h Machine,
    coordinator: &'h Coordinator,
    image: &'h [u8],
    runner: &'h (dyn RunsVcpus + Sync),
    named: Vec<config::Td>,
) -> Tds<'h, Machine> {
    let host = Host {
        platform: machine,
        coordinator,
        capabilities: Capabilities::read(&machine.tdh()).unwrap(),
        native: &Everything,
        keyid: machine.keyid_position(),
        global_hkid: GLOBAL_HKID,
        clearing: Clearing::Clear,
        stop_us: 1,
        runner,
    };
    Tds::new(
        host,
        named.into_iter().map(|td| (td, Some(image))).collect(),
    )
}

/// Checks that each TD is either alive and can be terminated, or that its termination runs to the last page.
fn finish(world: &World<'_>) {
    let tds = &world.tds;
    world.machine.run_clock(false);
    for id in [1, 2] {
        tds.end_asked();
        match tds.state(id) {
            State::Runnable | State::Paused => {
                let td = world.td(id);
                let map = td.map().unwrap();
                assert_eq!(map.mode(), mm::private::Mode::Keyed);
                if world.is_shrink_promised.load(SeqCst) {
                    let free = Gpa(FREE);
                    let host = tds.host();
                    let mapped = host.with_cpu(|cpu| map.map(cpu, free, PageSize::Size2M));
                    assert_eq!(mapped, Ok(()), "it was to be taken");
                }
                drop(td);
                assert!(matches!(tds.destroy(id, Way::Terminate), Ok(Ended::Now(_))));
            }
            State::Teardown => while tds.work() {},
            State::Created | State::Reclaimed => {}
            state => panic!("TD {id} is {state}: {:?}", tds.notes(id)),
        }
        let notes = tds.notes(id).unwrap_or_default();
        assert_eq!(notes.problem, None);
        assert!(notes.quarantine.is_empty());
        assert!(matches!(tds.state(id), State::Created | State::Reclaimed));
    }
}

/// Runs vCPUs as an idle CPU does, until `stop` is set.
pub fn run_until(machine: &Machine, scheduler: &Scheduler<'_, Machine>, stop: &AtomicBool) {
    /// Number of times that a CPU without a vCPU idles before it looks again.
    const LOOKS: usize = 20;
    let attention = machine.attention(machine.this_cpu());
    while !stop.load(SeqCst) {
        if scheduler.schedule() {
            machine.breathe();
            continue;
        }
        for _ in 0..LOOKS {
            if attention.is_any() || stop.load(SeqCst) {
                break;
            }
            machine.idle();
        }
    }
}

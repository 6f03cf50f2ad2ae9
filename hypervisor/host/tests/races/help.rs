//! Races of a CPU that helps with the work of a TD's devices: against the vCPUs that offer it and sleep, against new work, and
//! against what makes it leave: a poke, a pause, the TD's end.
//!
//! In every order, no work is left behind, and a TD that ends takes everything back.

use std::sync::atomic::AtomicU64;

use config::Host;
use host::platform::{Platform, Running};
use host::sched::Scheduler;
use host::td::end::Way;
use host::td::error::Error;
use host::td::registry::Tds;
use shuttle::thread;
use sync::atomic::{AtomicBool, Ordering::SeqCst};
use vcpu::Waker;

use crate::explore::{coordinator, in_many_orders, tds_with};
use crate::machine::{Machine, become_cpu};
use crate::sample::image;
use crate::wakes::Halting;

/// Number of orders to try with each scheduler.
const ORDERS: usize = 20;
/// Number of times that the devices get work in one life of the TD.
const ROUNDS: usize = 6;
/// Number of lives.
const LIVES: usize = 3;
/// Number of moments that a CPU has to begin to help.
const MOMENTS: usize = 200;
/// Number of moments within which work is done that is not left behind.
const PATIENCE: usize = 3_000;
/// The number of the TD. With its cards, its bus has more functions than a CPU serves before it enters the guest.
const TD: u32 = 2;
const CARD: &str = "[[td.net]]\nnetwork = \"lan\"\n";
const NETWORK: &str = "[[network]]\nname = \"lan\"\n";

/// The race: CPU 1 runs vCPUs, CPUs 2 and 3 help as well, CPU 0 acts.
struct World<'h> {
    machine: &'h Machine,
    scheduler: &'h Scheduler<'h, Machine>,
    tds: Tds<'h, Machine>,
    begun: AtomicBool,
    stop: AtomicBool,
    /// Microseconds for which CPUs helped.
    helped_us: AtomicU64,
}

impl World<'_> {
    /// Does what a CPU does when it has time.
    fn run(&self, runs_vcpus: bool) {
        let attention = self.machine.attention(self.machine.this_cpu());
        while !self.stop.load(SeqCst) {
            if self.begun.load(SeqCst) && runs_vcpus && self.scheduler.schedule() {
                self.machine.breathe();
                continue;
            }
            if !runs_vcpus {
                attention.clear();
            }
            if self.scheduler.help() {
                continue;
            }
            while !attention.is_any() && !self.stop.load(SeqCst) {
                self.machine.idle();
            }
        }
    }

    /// Gives the devices work.
    fn make_work(&self) {
        let guest = self.scheduler.guest(TD).unwrap();
        guest.vm().devices().pci().rouse();
        Waker::new(guest.vm(), self.scheduler).summon();
    }

    /// Counts the help in a life of the TD.
    fn note_help(&self) {
        self.helped_us
            .fetch_add(self.scheduler.helped_us(TD), SeqCst);
    }

    /// Waits until the work is done.
    fn settle(&self) {
        let guest = self.scheduler.guest(TD).unwrap();
        let bus = guest.vm().devices().pci();
        let mut left = PATIENCE;
        while bus.has_any_work() || bus.is_helped() {
            assert!(left > 0, "work was left behind: {:?}", guest.vm().vcpus());
            left -= 1;
            self.machine.breathe();
        }
    }
}

/// Runs `act` while CPUs help, in many orders. The TD is terminated at the end.
fn explore(rounds: usize, act: fn(&World<'_>, usize)) {
    // Those of all orders.
    let helped_us: &'static AtomicU64 = Box::leak(Box::default());
    in_many_orders(ORDERS, move || {
        let here = race(rounds, act);
        helped_us.fetch_add(here, SeqCst);
    });
    assert!(helped_us.load(SeqCst) > 0, "nobody helped");
}

/// Returns the microseconds for which CPUs helped.
fn race(rounds: usize, act: fn(&World<'_>, usize)) -> u64 {
    let machine = Machine::new();
    machine.set_guest(1, Box::new(Halting));
    let coordinator = coordinator();
    let scheduler = Scheduler::new(&machine, &Host::default(), |_, _| {});
    let network = config::parse(NETWORK.as_bytes()).unwrap().network;
    let scheduler = scheduler.with_networks(&network);
    let more = format!("{}{NETWORK}", CARD.repeat(4));
    let image = image();
    let world = &World {
        machine: &machine,
        scheduler: &scheduler,
        tds: tds_with(&machine, &coordinator, &image, &scheduler, &more),
        begun: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        helped_us: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        for cpu in [1, 2, 3] {
            scope.spawn(move || {
                become_cpu(cpu);
                world.run(cpu == 1);
            });
        }
        world.tds.start(TD).unwrap();
        world.begun.store(true, SeqCst);
        machine.attention(1).poke();
        for round in 0..rounds {
            world.make_work();
            act(world, round);
        }
        world.tds.destroy(TD, Way::Terminate).unwrap();
        world.note_help();
        world.stop.store(true, SeqCst);
    });
    machine.take_apart();
    machine.assert_spotless();
    world.helped_us.load(SeqCst)
}

#[test]
fn work_is_done_by_one_or_the_other() {
    explore(ROUNDS, |world, _| world.settle());
}

#[test]
fn work_comes_while_a_cpu_stops_to_help() {
    explore(ROUNDS, |world, round| {
        for _ in 0..round {
            world.machine.breathe();
        }
        world.make_work();
        world.settle();
    });
}

#[test]
fn a_cpu_that_helps_is_poked() {
    explore(ROUNDS, |world, round| {
        for _ in 0..round {
            world.machine.breathe();
        }
        for cpu in [2, 3] {
            world.machine.attention(cpu).poke();
        }
        world.settle();
    });
}

#[test]
fn the_td_is_paused_meanwhile() {
    explore(ROUNDS, |world, _| {
        for result in [world.tds.pause(TD), world.tds.resume(TD)] {
            assert!(matches!(result, Ok(()) | Err(Error::Busy)), "{result:?}");
        }
        while world.tds.resume(TD) == Err(Error::Busy) {
            world.machine.breathe();
        }
        world.settle();
    });
}

#[test]
fn the_td_ends_meanwhile() {
    explore(LIVES, |world, round| {
        let guest = world.scheduler.guest(TD).unwrap();
        let mut moments = 0..MOMENTS;
        while !guest.vm().devices().pci().is_helped() && moments.next().is_some() {
            world.machine.breathe();
        }
        for _ in 0..round {
            world.machine.breathe();
        }
        world.tds.destroy(TD, Way::Terminate).unwrap();
        while world.tds.work() {}
        world.note_help();
        assert_eq!(guest.vm().shared().holding(), Default::default());
        world.tds.start(TD).unwrap();
    });
}

//! Races for a halted vCPU: between the CPU that puts it to sleep, and those that wake it, or summon it to work of devices.

use config::Host;
use host::platform::{Platform, Running};
use host::sched::Scheduler;
use host::td::end::Way;
use host::td::registry::Tds;
use seam::abi::x86::{efer, exit_reason};
use seam::abi::{GuestLeaf, ghci::number};
use shuttle::thread;
use stub_module::host::{Exit, Guest, HostMachine};
use stub_module::vcpu::{Field, Gpr, Vcpu};
use sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use vcpu::Waker;

use crate::explore::{coordinator, in_many_orders, tds};
use crate::machine::{Machine, become_cpu};
use crate::sample::image;

/// Number of orders to try with each scheduler.
const ORDERS: usize = 40;
/// Number of events that each waker posts.
const EVENTS: usize = 8;
/// Number of wakers.
const WAKERS: usize = 2;
/// Number of moments within which a vCPU takes a pending event, if its wake-up was not lost.
const PATIENCE: usize = 3_000;
/// The number of the TD, and of its vCPUs.
const TD: u32 = 1;
const VCPUS: u32 = 2;

/// A guest that halts whenever it is entered.
pub struct Halting;

impl Guest for Halting {
    fn run(&mut self, machine: &HostMachine, _: u32, vcpu: &Vcpu<'_>) {
        const L: u64 = 1 << 13;
        /// R10 to R15 are exposed to the host.
        const MASK: u64 = 0xFC00;
        thread::yield_now();
        vcpu.set_vmcs(Field::EFER, vcpu.vmcs(Field::EFER) | efer::LMA);
        vcpu.set_vmcs(Field::CS_ACCESS, vcpu.vmcs(Field::CS_ACCESS) | L);
        for (register, value) in [
            (Gpr::Rax, GuestLeaf::VpVmcall.rax()),
            (Gpr::Rcx, MASK),
            (Gpr::R10, 0),
            (Gpr::R11, number::HLT),
            (Gpr::R12, 0),
        ] {
            vcpu.set_gpr(register, value);
        }
        let exit = Exit {
            instruction_length: 4,
            ..Exit::of(exit_reason::TDCALL)
        };
        exit.leave(machine, vcpu);
    }
}

/// The wakers' wishes of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Nmi,
    /// Work of devices.
    Work,
}

/// The race: CPUs 1 and 2 run vCPUs, CPUs 0 and 3 wake them.
struct World<'h> {
    machine: &'h Machine,
    scheduler: &'h Scheduler<'h, Machine>,
    begun: AtomicBool,
    stop: AtomicBool,
    /// Number of events that were posted.
    posted: AtomicUsize,
    /// The event.
    event: Event,
}

impl World<'_> {
    /// Runs vCPUs as an idle CPU does, until the test is over.
    fn run(&self) {
        let attention = self.machine.attention(self.machine.this_cpu());
        while !self.stop.load(SeqCst) {
            if self.begun.load(SeqCst) && self.scheduler.schedule() {
                self.machine.breathe();
                continue;
            }
            while !attention.is_any() && !self.stop.load(SeqCst) {
                self.machine.idle();
            }
        }
    }

    /// Posts events, each at the same time as the other waker. The vCPUs sleep before the next ones.
    fn wake(&self) {
        for number in 0..EVENTS {
            self.post(number as u32 % VCPUS);
            self.posted.fetch_add(1, SeqCst);
            while self.posted.load(SeqCst) < WAKERS * (number + 1) {
                self.machine.breathe();
            }
            self.settle();
        }
    }

    fn post(&self, vcpu: u32) {
        match self.event {
            Event::Nmi => assert!(self.scheduler.post_nmi(TD, vcpu)),
            Event::Work => {
                let guest = self.scheduler.guest(TD).unwrap();
                guest.vm().devices().pci().rouse();
                Waker::new(guest.vm(), self.scheduler).summon();
            }
        }
    }

    /// Waits until the vCPUs have taken all events, and sleep.
    fn settle(&self) {
        let guest = self.scheduler.guest(TD).unwrap();
        let bus = guest.vm().devices().pci();
        let asleep = || guest.vm().vcpus().iter().all(vcpu::VcpuState::is_waiting);
        let asleep = || !bus.has_work() && asleep();
        let mut left = PATIENCE;
        while !asleep() {
            assert!(left > 0, "a wake-up was lost: {:?}", guest.vm().vcpus());
            left -= 1;
            self.machine.breathe();
        }
    }

    /// Checks that each vCPU has been entered for each of its events.
    fn check(&self) {
        let guest = self.scheduler.guest(TD).unwrap();
        for state in guest.vm().vcpus() {
            let (injected, entries) = (state.tally().nmis_in.get(), state.tally().entries.get());
            assert!((1..=entries).contains(&injected), "{injected}, {entries}");
        }
    }
}

#[test]
fn no_wake_of_a_halted_vcpu_is_lost() {
    in_many_orders(ORDERS, || race(Event::Nmi));
}

#[test]
fn no_work_of_devices_waits_for_a_halted_vcpu() {
    in_many_orders(ORDERS, || race(Event::Work));
}

fn race(event: Event) {
    let machine = Machine::new();
    for cpu in [1, 2] {
        machine.set_guest(cpu, Box::new(Halting));
    }
    let coordinator = coordinator();
    let scheduler = Scheduler::new(&machine, &Host::default(), |_, _| {});
    let image = image();
    let tds: Tds<'_, Machine> = tds(&machine, &coordinator, &image, &scheduler);
    let world = &World {
        machine: &machine,
        scheduler: &scheduler,
        begun: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        posted: AtomicUsize::new(0),
        event,
    };
    thread::scope(|scope| {
        for cpu in [1, 2] {
            scope.spawn(move || {
                become_cpu(cpu);
                world.run();
            });
        }
        scope.spawn(move || {
            become_cpu(3);
            while !world.begun.load(SeqCst) {
                world.machine.idle();
            }
            world.wake();
            while !world.stop.load(SeqCst) {
                world.machine.idle();
            }
        });
        tds.start(TD).unwrap();
        world.begun.store(true, SeqCst);
        for cpu in [1, 2] {
            machine.attention(cpu).poke();
        }
        world.wake();
        if event == Event::Nmi {
            world.check();
        }
        tds.destroy(TD, Way::Terminate).unwrap();
        world.stop.store(true, SeqCst);
    });
    machine.take_apart();
    machine.assert_spotless();
}

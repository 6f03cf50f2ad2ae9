//! Races of a TD's functions: they access the memory that the TD shares and interrupt its vCPUs, while the guest
//! converts that memory, moves and resets the functions, and the host shrinks, resets or terminates the TD.
//!
//! In every order, no device reaches a frame that has changed hands, functions are taken and given back in turn, and
//! nothing refers to a guest that is gone.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use ::devices::pci::{Identity, Interrupts, Physical, PhysicalBar, Shape};
use ::devices::{Message, Place, Trigger};
use config::Host;
use host::functions::{Functions, Sink, Taken};
use host::platform::Running;
use host::sched::{Scheduler, ends};
use host::td::end::Way;
use host::td::error::Error;
use host::td::registry::Tds;
use mm::shared::{Mirror, MirrorError, Page};
use seam::abi::{PAGE_4K, ghci::number};
use seam::address::{Gpa, Hpa};
use shuttle::thread;
use stub_module::host::{Guest, HostMachine};
use stub_module::vcpu::Vcpu;
use sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crate::actors::FREE;
use crate::caller::{Call, Caller};
use crate::explore::{coordinator, in_many_orders, run_until, tds_with};
use crate::machine::{Machine, become_cpu};
use crate::sample::image;

/// Number of orders to try with each scheduler.
const ORDERS: usize = 12;
/// Number of moments that the guest has before the host acts, and afterwards.
const MOMENTS: usize = 120;
/// The number of the TD.
const TD: u32 = 2;
const PCI: &str = "[[td.pci]]\ndevice = \"0000:01:00.0\"\n";
const SHARED: u64 = 1 << 47;
/// Registers of device 1 in the memory-mapped configuration space.
const ECAM: u64 = 0xB000_0000;
const CONFIG: u64 = SHARED | ECAM | 8 << 12;
const EXPRESS: u64 = 0x40;

/// The calls that the guest's vCPUs make in turn: sub-function, R12 to R15.
const CALLS: [Call; 16] = [
    [number::IO, 4, 1, 0xCF8, 0x8000_0060],
    [number::IO, 4, 1, 0xCFC, ECAM | 1],
    write(0x10, 4, 0xC000_0000),
    write(4, 2, 6),
    to(SHARED | FREE, 3 * PAGE_4K),
    to(FREE + PAGE_4K, PAGE_4K),
    to(SHARED | FREE, 4 * PAGE_4K),
    write(0x10, 4, 0xC100_0000),
    to(FREE, 4 * PAGE_4K),
    write(4, 2, 4),
    write(4, 2, 6),
    to(SHARED | FREE, 2 * PAGE_4K),
    write(0x10, 4, 0xC000_0000),
    write(EXPRESS + 8, 2, 1 << 15),
    write(4, 2, 6),
    to(FREE, PAGE_4K),
];
/// The last call of a guest that resets itself.
const RESET: Call = [number::IO, 1, 1, 0xCF9, 6];

const fn write(register: u64, size: u64, value: u64) -> Call {
    [number::MMIO, size, 1, CONFIG | register, value]
}

const fn to(gpa: u64, bytes: u64) -> Call {
    [number::MAP_GPA, gpa, bytes, 0, 0]
}

/// A guest whose vCPUs make [`CALLS`].
struct Driver {
    machine: Machine,
    made: Arc<AtomicU64>,
    /// The number of calls before it resets itself.
    reset_after: u64,
    caller: Caller,
}

impl Guest for Driver {
    fn run(&mut self, machine: &HostMachine, lp: u32, vcpu: &Vcpu<'_>) {
        thread::yield_now();
        let Self {
            machine: own,
            made,
            reset_after,
            caller,
        } = self;
        caller.leave(own, (machine, lp, vcpu), || {
            let made = made.fetch_add(1, SeqCst);
            match made == *reset_after {
                true => RESET,
                false => CALLS[made as usize % CALLS.len()],
            }
        });
    }
}

/// The function of the machine, its domain, and the accesses and interrupts that are under way.
#[derive(Clone, Debug, Default)]
struct Card(Arc<Mutex<Books>>);

#[derive(Debug, Default)]
struct Books {
    taken: usize,
    given: usize,
    is_master: bool,
    is_away: bool,
    resets: usize,
    reached: BTreeMap<u64, Page>,
    /// The addresses of accesses that are under way.
    accessed: Vec<u64>,
    sink: Option<Arc<dyn Sink>>,
    interrupts_under_way: usize,
    interrupts: usize,
    accesses: usize,
}

impl Card {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap()
    }

    /// Waits as a unit does that drains.
    fn wait_until(&self, is_over: impl Fn(&Books) -> bool) {
        while !is_over(&self.books()) {
            thread::yield_now();
        }
    }

    /// Accesses memory, if it can: a translation is found at first, and used later.
    fn access(&self, machine: &Machine, number: usize) {
        let found = {
            let mut books = self.books();
            let count = books.reached.len();
            let found = books.reached.iter().nth(number % count.max(1));
            let found = found.map(|(gpa, page)| (*gpa, page.hpa));
            let found = found.filter(|_| books.is_master && !books.is_away);
            books.accessed.extend(found.map(|(gpa, _)| gpa));
            books.accesses += usize::from(found.is_some());
            found
        };
        if let Some((gpa, hpa)) = found {
            for _ in 0..2 {
                thread::yield_now();
                let Hpa(address) = hpa;
                assert!(machine.is_shared(hpa), "{address:#x} changed hands");
            }
            let mut books = self.books();
            let at = books.accessed.iter().position(|there| *there == gpa);
            books.accessed.remove(at.unwrap());
        }
    }

    fn interrupt(&self, scheduler: &Scheduler<'_, Machine>) {
        let Some(sink) = self.books().sink.clone() else {
            return;
        };
        self.books().interrupts_under_way += 1;
        let message = Message {
            trigger: Trigger::Fixed,
            vector: 0x41,
            destination: 0xFF,
            is_logical: false,
        };
        sink.deliver(0, message, scheduler);
        drop(sink);
        let mut books = self.books();
        books.interrupts_under_way -= 1;
        books.interrupts += 1;
    }
}

impl Functions for Card {
    fn take(&self, _: &str, _: &[String]) -> Result<Box<dyn Taken>, String> {
        let mut books = self.books();
        assert_eq!(books.taken, books.given, "it has one owner");
        books.taken += 1;
        books.is_away = false;
        Ok(Box::new(self.clone()))
    }
}

impl Taken for Card {
    fn functions(&self) -> Vec<Arc<dyn Physical>> {
        vec![Arc::new(Registers::of(self))]
    }

    fn mirror(&self) -> Arc<dyn Mirror> {
        Arc::new(self.clone())
    }

    fn connect(&self, sink: Arc<dyn Sink>) {
        self.books().sink = Some(sink);
    }

    fn problem(&self) -> Option<String> {
        None
    }

    fn give_back(&self) -> Result<(), String> {
        let sink = self.books().sink.take();
        self.books().is_master = false;
        self.wait_until(|books| books.interrupts_under_way == 0 && books.accessed.is_empty());
        drop(sink);
        let mut books = self.books();
        books.reached.clear();
        books.given += 1;
        Ok(())
    }
}

impl Mirror for Card {
    fn map(&self, gpa: Gpa, page: Page) -> Result<(), MirrorError> {
        thread::yield_now();
        assert_eq!(self.books().reached.insert(gpa.0, page), None);
        thread::yield_now();
        Ok(())
    }

    fn unmap(&self, range: Range<u64>) -> Result<(), MirrorError> {
        thread::yield_now();
        self.books().reached.retain(|gpa, _| !range.contains(gpa));
        self.wait_until(|books| !books.accessed.iter().any(|gpa| range.contains(gpa)));
        Ok(())
    }
}

/// The registers of the function.
#[derive(Debug)]
struct Registers {
    shape: Shape,
    card: Card,
}

impl Registers {
    fn of(card: &Card) -> Self {
        const HPA: u64 = 0xFE00_0000;
        Self {
            shape: Shape {
                identity: Identity {
                    vendor: 0x1B36,
                    device: 0x10,
                    class: 0x01_0802,
                    revision: 2,
                    subsystem: 0,
                },
                memory: vec![PhysicalBar {
                    index: 0,
                    is_wide: false,
                    is_prefetchable: false,
                    range: HPA..HPA + 4 * PAGE_4K,
                }],
                interrupts: Interrupts::None,
                capabilities: vec![(0x10, EXPRESS as u16)],
                has_reset: true,
            },
            card: card.clone(),
        }
    }
}

impl Physical for Registers {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn read(&self, _: u16, _: u8) -> u32 {
        2
    }

    fn write(&self, _: u16, _: u8, _: u32) {}

    fn load(&self, _: usize, _: Place) -> u64 {
        0
    }

    fn store(&self, _: usize, _: Place, _: u64) {}

    fn set_master(&self, is_on: bool) {
        let mut books = self.card.books();
        assert!(!books.is_away && books.taken > books.given);
        books.is_master = is_on;
    }

    fn set_interrupts(&self, _: bool) {}

    fn direct(&self, _: u16, _: Option<Message>) -> bool {
        true
    }

    fn reset(&self) {
        let mut books = self.card.books();
        assert!(!books.is_away && !books.is_master);
        books.is_away = true;
        books.resets += 1;
    }

    fn is_away(&self) -> bool {
        self.card.books().is_away
    }
}

/// The race: CPUs 1 and 2 run vCPUs, CPU 3 is the function, CPU 0 acts.
struct World<'h> {
    machine: &'h Machine,
    scheduler: &'h Scheduler<'h, Machine>,
    tds: Tds<'h, Machine>,
    card: &'h Card,
    made: &'h AtomicU64,
    stop: AtomicBool,
}

impl World<'_> {
    /// Runs vCPUs as an idle CPU does, until the test is over.
    fn run(&self) {
        run_until(self.machine, self.scheduler, &self.stop);
    }

    fn play_function(&self) {
        let mut number = 0;
        while !self.stop.load(SeqCst) {
            number += 1;
            self.card.access(self.machine, number);
            if number % 3 == 0 {
                self.card.interrupt(self.scheduler);
            }
            if number % 8 == 0 {
                // A reset is over.
                self.card.books().is_away = false;
            }
            self.machine.idle();
        }
    }

    fn wait(&self) {
        let until = self.made.load(SeqCst) + CALLS.len() as u64;
        for _ in 0..MOMENTS {
            if self.made.load(SeqCst) >= until {
                break;
            }
            self.machine.breathe();
        }
    }
}

/// Runs `act` on CPU 0 while the guest and its function are at work, in many orders. The TD is terminated at the end.
fn explore(reset_after: u64, act: fn(&World<'_>)) {
    in_many_orders(ORDERS, move || race(reset_after, act));
}

fn race(reset_after: u64, act: fn(&World<'_>)) {
    let machine = Machine::new();
    let card = Card::default();
    machine.set_functions(card.clone());
    let made = Arc::new(AtomicU64::new(0));
    for cpu in [1, 2] {
        let driver = Driver {
            machine: machine.clone(),
            made: made.clone(),
            reset_after,
            caller: Caller::default(),
        };
        machine.set_guest(cpu, Box::new(driver));
    }
    let coordinator = coordinator();
    let scheduler = Scheduler::new(&machine, &Host::default(), |_, _| {});
    let image = image();
    let world = &World {
        machine: &machine,
        scheduler: &scheduler,
        tds: tds_with(&machine, &coordinator, &image, &scheduler, PCI),
        card: &card,
        made: &made,
        stop: AtomicBool::new(false),
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
            world.play_function();
        });
        world.tds.start(TD).unwrap();
        for cpu in [1, 2] {
            machine.attention(cpu).poke();
        }
        world.wait();
        act(world);
        world.wait();
        world.tds.destroy(TD, Way::Terminate).unwrap();
        world.stop.store(true, SeqCst);
    });
    let books = card.books();
    assert_eq!(books.taken, books.given);
    assert!(books.reached.is_empty() && books.sink.is_none() && !books.is_master);
    // The race must not miss what it is about.
    assert!(books.accesses > 0 && books.interrupts > 0 && books.resets > 0);
    drop(books);
    machine.take_apart();
    machine.assert_spotless();
}

#[test]
fn functions_at_work_against_terminate() {
    explore(u64::MAX, |_| {});
}

#[test]
fn functions_at_work_against_a_shrink() {
    explore(u64::MAX, |world| match world.tds.shrink(TD, FREE) {
        Ok(_) | Err(Error::Busy | Error::Map(_)) => {}
        Err(error) => panic!("{error}"),
    });
}

#[test]
fn functions_at_work_against_a_reset() {
    explore(CALLS.len() as u64, |world| {
        while world.card.books().given == 0 {
            ends::serve(world.scheduler, &world.tds);
            world.machine.breathe();
        }
    });
}

#[test]
fn functions_at_work_against_a_pause() {
    explore(u64::MAX, |world| {
        for result in [world.tds.pause(TD), world.tds.resume(TD)] {
            assert!(matches!(result, Ok(()) | Err(Error::Busy)), "{result:?}");
            world.wait();
        }
    });
}

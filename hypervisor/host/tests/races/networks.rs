//! Races of two TDs of one network: each sends frames to the other on its own CPU, makes a page of its receive queue private
//! and shares it again, and resets its card; then one of them is terminated.
//!
//! In every order, no CPU reaches a frame that has changed hands, no CPU waits for ever, and the TD that is left goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use config::Host;
use host::platform::Running;
use host::sched::Scheduler;
use host::td::end::Way;
use host::td::registry::Tds;
use seam::abi::{PAGE_2M, PAGE_4K, ghci::number};
use seam::address::Hpa;
use shuttle::rand::{self, Rng};
use shuttle::thread;
use stub_module::Machine as _;
use stub_module::host::{Guest, HostMachine};
use stub_module::vcpu::{Field, Vcpu};
use sync::atomic::{AtomicBool, Ordering::SeqCst};
use virtio::net::Count;

use crate::actors::FREE;
use crate::caller::{Call, Caller};
use crate::explore::{coordinator, in_many_orders, run_until, tds_of};
use crate::machine::{Machine, become_cpu};
use crate::sample::image;

/// Number of orders to try with each scheduler.
const ORDERS: usize = 40;
/// Number of moments within which a TD makes the calls that a race waits for.
const PATIENCE: usize = 100_000;
/// The numbers of the TDs.
const STAYS: u32 = 1;
const ENDS: u32 = 2;
const CONFIG: &str = "[[network]]\nname = \"lan\"\n[[file]]\nname = \"i\"\npath = \"i\"\n\
    [[td]]\nimage = \"i\"\nname = \"one\"\nmemory = \"16M\"\n[[td.net]]\nnetwork = \"lan\"\nport = \"trunk\"\n\
    [[td]]\nimage = \"i\"\nname = \"two\"\nmemory = \"16M\"\n[[td.net]]\nnetwork = \"lan\"\nport = \"trunk\"\n";
const SHARED: u64 = 1 << 47;
/// Registers of the card, and the table of its interrupts.
const REGISTERS: u64 = 0xC000_0000;
const TABLE: u64 = 0xC001_0000;
const NOTIFY: u64 = 0x3000;
/// Pages of the guest: the parts of the queue to receive, of the one to transmit, and a buffer for each.
const PAGES: u64 = 8;
const RECEIVE: u64 = FREE;
const TRANSMIT: u64 = FREE + 3 * PAGE_4K;
const BUFFER: u64 = FREE + 6 * PAGE_4K;
const FRAME: u64 = FREE + 7 * PAGE_4K;

/// A step of a guest.
#[derive(Clone, Copy)]
enum Step {
    /// A call: sub-function, R12 to R15.
    Call(Call),
    /// A word of its shared memory is written.
    Set(u64, u64),
}

const fn port(number: u64, value: u64) -> Step {
    Step::Call([number::IO, 4, 1, number, value])
}

const fn store(at: u64, size: u64, value: u64) -> Step {
    Step::Call([number::MMIO, size, 1, SHARED | at, value])
}

const fn register(offset: u64, size: u64, value: u64) -> Step {
    store(REGISTERS + offset, size, value)
}

const fn convert(gpa: u64, pages: u64) -> Step {
    Step::Call([number::MAP_GPA, gpa, pages * PAGE_4K, 0, 0])
}

/// Makes so many chains of a queue available, all of them the first descriptor.
const fn available(ring: u64, count: u64) -> Step {
    Step::Set(ring + PAGE_4K, count << 16)
}

/// Returns the steps that a guest makes over and over.
fn steps() -> Vec<Step> {
    let mut steps = vec![convert(SHARED | FREE, PAGES)];
    for (at, value) in [
        (0x10, REGISTERS),
        (0x18, TABLE),
        (0x04, 6),
        // MSI-X is behind the capabilities of the four structures.
        (0x40 + 3 * 16 + 20, 0x8000_0000),
    ] {
        steps.extend([port(0xCF8, 0x8000_0800 | at), port(0xCFC, value)]);
    }
    steps.extend([store(TABLE, 8, 0xFEE0_0000), store(TABLE + 8, 8, 0x50)]);
    for (at, size, value) in [(0x14, 1, 0), (0x14, 1, 3), (0x8, 4, 1), (0xC, 4, 3)] {
        steps.push(register(at, size, value));
    }
    steps.push(register(0x14, 1, 0xB));
    for (queue, ring) in [(0, RECEIVE), (1, TRANSMIT)] {
        for (at, value) in [(0x16, queue), (0x18, 8), (0x1A, queue)] {
            steps.push(register(at, 2, value));
        }
        for part in 0..3 {
            steps.push(register(0x20 + 8 * part, 8, ring + part * PAGE_4K));
        }
        steps.push(register(0x1C, 2, 1));
    }
    // To all, from an address that its port may use.
    steps.extend([
        Step::Set(RECEIVE, BUFFER),
        Step::Set(RECEIVE + 8, 2048 | 2 << 32),
        Step::Set(TRANSMIT, FRAME),
        Step::Set(TRANSMIT + 8, 72),
        Step::Set(FRAME, 0),
        Step::Set(FRAME + 8, 0xFFFF_FFFF << 32),
        Step::Set(FRAME + 16, 0x0100_0000_0002_FFFF),
        available(RECEIVE, 4),
        available(TRANSMIT, 0),
        register(0x14, 1, 0xF),
    ]);
    for sent in 1..4 {
        steps.extend([
            available(TRANSMIT, sent),
            register(NOTIFY + 4, 2, 1),
            available(RECEIVE, 4 + sent),
        ]);
        if sent == 2 {
            // Its used ring: the next frame that comes stops the card.
            steps.push(convert(RECEIVE + 2 * PAGE_4K, 1));
        }
    }
    steps
}

/// The progress of the guests, by the root of their shared memory: the next step, and the number of calls.
type Progress = Arc<Mutex<BTreeMap<u64, (usize, usize)>>>;

/// A CPU's view of the guests.
struct Driver {
    machine: Machine,
    steps: Arc<Vec<Step>>,
    progress: Progress,
    caller: Caller,
}

impl Driver {
    /// Returns the next call of the guest with this root, before which it writes to its memory.
    fn next(&self, machine: &HostMachine, root: u64) -> Call {
        loop {
            let step = {
                let mut progress = self.progress.lock().unwrap();
                let (next, calls) = progress.entry(root).or_default();
                let step = self.steps[*next];
                *next = (*next + 1) % self.steps.len();
                *calls += usize::from(matches!(step, Step::Call(_)));
                step
            };
            match step {
                Step::Call(call) => return call,
                Step::Set(gpa, value) => self.set(machine, root, gpa, value),
            }
        }
    }

    /// Writes a word as the CPU does. A page that is not shared raises an exception.
    fn set(&self, machine: &HostMachine, root: u64, gpa: u64, value: u64) {
        const PRESENT: u64 = 7;
        const LEAF: u64 = 1 << 7;
        const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
        let mut table = root;
        for shift in [39, 30, 21, 12] {
            let index = (gpa | SHARED) >> shift & 511;
            let entry = machine.page(table)[index as usize].load(SeqCst);
            if entry & PRESENT == 0 {
                return;
            }
            table = entry & ADDRESS;
            if entry & LEAF != 0 && shift == 21 {
                table += gpa % PAGE_2M / PAGE_4K * PAGE_4K;
                break;
            }
        }
        assert!(self.machine.is_shared(Hpa(table)), "it changed hands");
        machine.page(table)[(gpa % PAGE_4K / 8) as usize].store(value, SeqCst);
    }
}

impl Guest for Driver {
    fn run(&mut self, machine: &HostMachine, lp: u32, vcpu: &Vcpu<'_>) {
        thread::yield_now();
        let root = vcpu.vmcs(Field::SHARED_EPTP) & !(PAGE_4K - 1);
        let own = self.machine.clone();
        let mut caller = core::mem::take(&mut self.caller);
        caller.leave(&own, (machine, lp, vcpu), || self.next(machine, root));
        self.caller = caller;
    }
}

/// The race: CPUs 1 to 3 run both TDs, CPU 0 ends one of them.
struct World<'h> {
    machine: &'h Machine,
    scheduler: &'h Scheduler<'h, Machine>,
    tds: Tds<'h, Machine>,
    progress: &'h Progress,
    /// Number of steps of a round.
    round: usize,
    stop: AtomicBool,
}

impl World<'_> {
    /// Runs vCPUs as an idle CPU does, until the test is over.
    fn run(&self) {
        run_until(self.machine, self.scheduler, &self.stop);
    }

    /// Returns the number of calls that a TD has made.
    fn calls(&self, td: u32) -> usize {
        let guest = self.scheduler.guest(td).unwrap();
        let root = guest.vm().shared().root().0;
        let progress = self.progress.lock().unwrap();
        progress.get(&root).map_or(0, |(_, calls)| *calls)
    }

    /// Waits until a TD has made so many more calls.
    fn wait(&self, td: u32, calls: usize) {
        let until = self.calls(td) + calls;
        for _ in 0..PATIENCE {
            if self.calls(td) >= until {
                return;
            }
            self.machine.breathe();
        }
        panic!(
            "TD {td} does not go on: {} of {until} calls",
            self.calls(td)
        );
    }

    /// Returns the number of frames that a TD has received.
    fn received(&self, td: u32) -> u64 {
        let mut received = 0;
        self.scheduler.fixtures(td, &mut |seen| {
            let port = seen.fixture.port.as_ref();
            received += port.map_or(0, |port| port.count(Count::Received));
        });
        received
    }
}

fn race() -> u64 {
    let machine = Machine::new();
    let progress = Progress::default();
    let steps = Arc::new(steps());
    for cpu in 1..4 {
        let driver = Driver {
            machine: machine.clone(),
            steps: steps.clone(),
            progress: progress.clone(),
            caller: Caller::default(),
        };
        machine.set_guest(cpu, Box::new(driver));
    }
    let coordinator = coordinator();
    let config = config::parse(CONFIG.as_bytes()).unwrap();
    let scheduler = Scheduler::new(&machine, &Host::default(), |_, _| {});
    let scheduler = scheduler.with_networks(&config.network);
    let image = image();
    let world = &World {
        machine: &machine,
        scheduler: &scheduler,
        tds: tds_of(&machine, &coordinator, &image, &scheduler, config.td),
        progress: &progress,
        round: steps.len(),
        stop: AtomicBool::new(false),
    };
    let received = thread::scope(|scope| {
        for cpu in 1..4 {
            scope.spawn(move || {
                become_cpu(cpu);
                world.run();
            });
        }
        for td in [STAYS, ENDS] {
            world.tds.start(td).unwrap();
        }
        for cpu in 1..4 {
            machine.attention(cpu).poke();
        }
        // The end comes at any point of a round.
        let before = rand::thread_rng().gen_range(world.round..3 * world.round);
        world.wait(STAYS, before);
        let received = world.received(STAYS) + world.received(ENDS);
        world.tds.destroy(ENDS, Way::Terminate).unwrap();
        world.wait(STAYS, world.round);
        world.tds.destroy(STAYS, Way::Terminate).unwrap();
        world.stop.store(true, SeqCst);
        received
    });
    machine.take_apart();
    machine.assert_spotless();
    received
}

#[test]
fn tds_that_send_to_each_other_against_the_end_of_one() {
    use std::sync::atomic::AtomicU64;
    static RECEIVED: AtomicU64 = AtomicU64::new(0);
    in_many_orders(ORDERS, || _ = RECEIVED.fetch_add(race(), SeqCst));
    // The race must not miss what it is about.
    let received = RECEIVED.load(SeqCst);
    assert!(received > 0, "no frame arrived");
}

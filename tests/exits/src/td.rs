//! A TD with a virtio function and no module beneath: its memory, its driver, and the CPU that does the function's work.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use devices::pci::Function;
use devices::{Effect, Now};
use mm::private::Levels;
use mm::shared::{self, SharedMap, Words};
use seam::abi::{PAGE_2M, PAGE_4K, PageSize};
use seam::address::{Gpa, Hpa};
use spin::Mutex;
use vcpu::clock::Clock;
use vcpu::{Console, Executor, Peer, PhysicalCpu, Vm, Waker};

const SHARED: u64 = 1 << 47;
/// The guest's shared memory: descriptors, available ring and used ring of each queue, then buffers.
const MEMORY: u64 = PAGE_2M;
const BYTES: u64 = 48 * PAGE_4K;
/// Buffers, a page for each.
pub const BUFFERS: u64 = MEMORY + 8 * PAGE_4K;
/// The function's registers.
const REGISTERS: u64 = 0xC000_0000;
const TABLE: u64 = REGISTERS + (64 << 10);
const NOTIFY: u64 = REGISTERS + 0x3000;
/// A page of shared memory that is far from the others: in tables of its own.
pub const FAR: u64 = 2 * PAGE_2M;

/// Number of frames that the host has.
const FRAMES: usize = 4096;
/// The function's number on the bus.
pub const DEVICE: u8 = 1;

/// The host's frames, by address.
#[derive(Debug)]
pub struct Frames {
    pages: Vec<Box<Words>>,
    taken: AtomicU64,
}

/// Returns the host's frames.
pub fn frames() -> &'static Frames {
    static ALL: OnceLock<Frames> = OnceLock::new();
    let page = || Box::new([const { AtomicU64::new(0) }; 512]);
    ALL.get_or_init(|| Frames {
        pages: (0..FRAMES).map(|_| page()).collect(),
        taken: AtomicU64::new(0),
    })
}

impl shared::Frames for Frames {
    fn take(&self, size: PageSize) -> Option<Hpa> {
        Some(Hpa(self.taken.fetch_add(size.bytes(), SeqCst)))
    }

    fn give(&self, _: Hpa, _: PageSize) {}

    fn quarantine(&self, _: Hpa, _: PageSize) {}

    fn split(&self, _: Hpa) {}

    fn words(&self, hpa: Hpa) -> &Words {
        &self.pages[(hpa.0 / PAGE_4K) as usize]
    }
}

/// The CPU, which is also a scheduler that runs nothing.
struct Cpu;

impl Executor for Cpu {
    fn notify(&self, _: u32) {}

    fn interrupt(&self, _: u32) {}

    fn woken(&self) {}
}

impl PhysicalCpu for Cpu {
    type Frames = Frames;

    fn shared_frames(&self) -> &Frames {
        frames()
    }

    fn tsc(&self) -> u64 {
        0
    }

    fn monotonic_us(&self) -> u64 {
        0
    }

    fn unix_seconds(&self) -> u64 {
        0
    }

    fn serve_interrupt(&self, _: u8) {}

    fn serve_nmi(&self) {}

    fn serve_machine_check(&self) {}

    fn take_interrupts(&self) {}

    fn notify(&self, _: u32) {}

    fn wake_console(&self) {}
}

/// A buffer of a chain: address, length, and whether the device writes it.
pub type Buffer = (u64, u64, bool);

/// A TD and its driver.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of queues of the function that the driver uses: the first one, or two.
    pub queues: u64,
    /// Number of descriptors of each.
    pub size: u64,
    /// The features that the driver accepts, beside those of the transport.
    pub features: u64,
    pub vcpus: u32,
    /// The destination of interrupts, as in a message's address.
    pub destination: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            queues: 1,
            size: 128,
            features: 0,
            vcpus: 1,
            destination: 0,
        }
    }
}

/// The TD.
pub struct Td {
    vm: Arc<Vm>,
    size: u64,
    /// Number of chains that were made available, by queue.
    made: [Cell<u64>; 2],
}

impl Td {
    /// Creates a TD whose driver has initialised `function` with both or the first of its queues.
    pub fn new(function: impl Function + 'static, queues: u64) -> Self {
        let shape = Shape {
            queues,
            ..Shape::default()
        };
        Self::of(function, shape)
    }

    /// As [`Self::new`], with more choice.
    pub fn of(function: impl Function + 'static, shape: Shape) -> Self {
        let map = SharedMap::new(frames(), Levels::Four, SHARED).expect("a root page");
        let near = (MEMORY..MEMORY + BYTES).step_by(PAGE_4K as usize);
        for gpa in near.chain([FAR]) {
            let mapped = map.map(frames(), Gpa(gpa), PageSize::Size4K);
            mapped.expect("a page is free");
        }
        let memory = std::iter::once(0..64 << 20).collect();
        let clock = Clock::new(1 << 48, 0, 40);
        let vm = Vm::new(0..shape.vcpus, memory, map, clock, Arc::new(Console::new()));
        let td = Self {
            vm: Arc::new(vm.with_functions(vec![Arc::new(Mutex::new(function))])),
            size: shape.size,
            made: [Cell::new(0), Cell::new(0)],
        };
        td.start(shape);
        td
    }

    /// Lets other TDs reach the function.
    pub fn reach(&self, peer: &Peer) {
        peer.belong_to(&self.vm);
    }

    /// Makes chains of buffers available, with descriptors from the first one on. The driver wants an interrupt after the
    /// last of them.
    pub fn offer(&self, queue: u64, chains: &[&[Buffer]]) {
        exits_guest(&|| {
            let mut index = 0;
            for chain in chains {
                self.make(queue, index);
                self.describe(queue, index, chain);
                index += chain.len() as u64;
            }
            self.publish(queue);
        });
    }

    /// Makes one chain of buffers available so many times, as no driver does that keeps the rules.
    pub fn offer_again(&self, queue: u64, chain: &[Buffer], times: u64) {
        exits_guest(&|| {
            self.describe(queue, 0, chain);
            (0..times).for_each(|_| self.make(queue, 0));
            self.publish(queue);
        });
    }

    /// Writes the descriptors of a chain from descriptor `index` on.
    fn describe(&self, queue: u64, mut index: u64, chain: &[Buffer]) {
        let ring = MEMORY + queue * 3 * PAGE_4K;
        let last = index + chain.len() as u64 - 1;
        for (gpa, bytes, is_written) in chain {
            let flags = u64::from(*is_written) << 1 | u64::from(index < last);
            self.set(ring + 16 * index, *gpa);
            let more = bytes | flags << 32 | (index + 1) << 48;
            self.set(ring + 16 * index + 8, more);
            index += 1;
        }
    }

    /// Puts the chain that begins with descriptor `head` into the available ring.
    fn make(&self, queue: u64, head: u64) {
        let made = &self.made[queue as usize];
        let available = MEMORY + queue * 3 * PAGE_4K + PAGE_4K;
        let slot = available + 4 + 2 * (made.get() % self.size);
        let shift = slot % 8 * 8;
        let word = self.get(slot) & !(0xFFFF << shift);
        self.set(slot, word | head << shift);
        made.set(made.get() + 1);
    }

    /// Tells the device of the chains, and wants an interrupt after the last one.
    fn publish(&self, queue: u64) {
        let number = self.made[queue as usize].get();
        let available = MEMORY + queue * 3 * PAGE_4K + PAGE_4K;
        // The index of the interrupt is the upper half of its word, and the last elements of the ring are the lower one.
        let event = available + 2 * self.size;
        let word = self.get(event) & 0xFFFF_FFFF;
        self.set(event, word | ((number - 1) & 0xFFFF) << 32);
        let word = self.get(available) & !0xFFFF_FFFF;
        self.set(available, word | (number & 0xFFFF) << 16);
    }

    /// Returns whether the device has returned all chains of a queue.
    pub fn is_done(&self, queue: u64) -> bool {
        let done = Cell::new(false);
        exits_guest(&|| {
            let used = self.get(MEMORY + (queue * 3 + 2) * PAGE_4K) >> 16 & 0xFFFF;
            done.set(used == self.made[queue as usize].get() & 0xFFFF);
        });
        done.get()
    }

    /// Notifies the device of a queue, and lets it work.
    pub fn kick(&self, queue: u64) -> bool {
        let effect = self.store(NOTIFY + 4 * queue, 2, queue);
        effect == Some(Effect::Work) && self.serve()
    }

    /// Lets the device work.
    pub fn serve(&self) -> bool {
        vcpu::serve_devices(Waker::new(&self.vm, &Cpu), &Cpu, || true)
    }

    /// Returns the number of interrupts that were raised.
    pub fn interrupts(&self) -> u64 {
        let interrupts = Cell::new(0);
        exits_guest(&|| {
            let usage = self.vm.devices().pci().usage(DEVICE);
            interrupts.set(usage.map_or(0, |usage| usage.interrupts));
        });
        interrupts.get()
    }

    /// Returns whether an interrupt was posted to the vCPU.
    pub fn is_interrupted(&self) -> bool {
        self.vm.vcpus()[0].descriptor().is_outstanding()
    }

    fn store(&self, at: u64, size: u8, value: u64) -> Option<Effect> {
        self.vm.devices().store(at, size, value, Now::default())
    }

    /// Initialises the device as a driver does.
    fn start(&self, shape: Shape) {
        let Shape {
            queues,
            size: descriptors,
            features,
            destination,
            ..
        } = shape;
        let config = |register: u64, value| {
            let address = 0x8000_0800 | register;
            self.vm.devices().output(0xCF8, 4, address, Now::default);
            self.vm.devices().output(0xCFC, 4, value, Now::default);
        };
        config(0x10, REGISTERS);
        config(0x18, TABLE);
        config(0x04, 6);
        // MSI-X is behind the four structures' capabilities.
        config(0x40 + 3 * 16 + 20, 0x8000_0000);
        for vector in 0..queues {
            self.store(TABLE + 16 * vector, 8, 0xFEE0_0000 | destination << 12);
            self.store(TABLE + 16 * vector + 8, 8, 0x41 + vector);
        }
        // EVENT_IDX and the two features of the transport.
        for (at, size, value) in [
            (0x14, 1, 3),
            (0x08, 4, 0),
            (0x0C, 4, 1 << 29 | features),
            (0x08, 4, 1),
            (0x0C, 4, 3),
            (0x14, 1, 0xB),
        ] {
            self.store(REGISTERS + at, size, value);
        }
        for queue in 0..queues {
            let ring = MEMORY + queue * 3 * PAGE_4K;
            for (at, size, value) in [
                (0x16, 2, queue),
                (0x18, 2, descriptors),
                (0x1A, 2, queue),
                (0x20, 8, ring),
                (0x28, 8, ring + PAGE_4K),
                (0x30, 8, ring + 2 * PAGE_4K),
                (0x1C, 2, 1),
            ] {
                self.store(REGISTERS + at, size, value);
            }
        }
        self.store(REGISTERS + 0x14, 1, 0xF);
    }

    /// Reads a word of shared memory.
    pub fn get(&self, gpa: u64) -> u64 {
        self.word(gpa, |word| word.load(SeqCst))
    }

    /// Writes a word of shared memory.
    pub fn set(&self, gpa: u64, value: u64) {
        self.word(gpa, |word| word.store(value, SeqCst));
    }

    fn word<R>(&self, gpa: u64, work: impl FnOnce(&AtomicU64) -> R) -> R {
        let done = self.vm.shared().with_page(frames(), Gpa(gpa), |words| {
            work(&words[(gpa % PAGE_4K / 8) as usize])
        });
        done.expect("the page is shared")
    }
}

/// Acts for the guest; not counted.
#[inline(never)]
#[expect(unsafe_code, reason = "callgrind finds it by its name")]
#[unsafe(no_mangle)]
fn exits_guest(act: &dyn Fn()) {
    act();
}

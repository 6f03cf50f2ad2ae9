//! A guest that turns on its virtio devices: registers, ring indices, chains, loops, addresses that are private or
//! nowhere, pages that it takes back during I/O, lies in headers, resets at every point. In the end a reset is enough for
//! every device to work again.
//!
//! MRCONFIGID holds two numbers: the seed (0: another in each life), and the number of operations (0: 100,000).
#![no_std]
#![no_main]

use guest_kit::check::{Check, Checks, Failure};
use guest_kit::numbers::Numbers;
use guest_kit::{cpu, ensure, fail, guest, memory, say, vmcall, wishes};
use guests::pci::ON;
use guests::virtio::{LENGTH, NOTIFY, QUEUE_BYTES, Virtio, set_shared, shared};
use seam::abi::{PAGE_2M, PAGE_4K};
use spin::Mutex;

guest!("queues", main);

/// The numbers of the parameters.
const SEED: usize = 0;
const OPERATIONS: usize = 1;
/// Default number of operations.
const MANY: u64 = 100_000;
/// Number of lines that report progress.
const LINES: u64 = 10;
/// Largest number of functions, and shared memory for each.
const MOST: usize = 8;
const BYTES: u64 = PAGE_2M / MOST as u64;
/// Content of a page that stays private.
const CONTENT: u64 = 0x5EC2_E75E_C2E7_5EC2;

static STATE: Mutex<State> = Mutex::new(State {
    functions: [None; MOST],
    memory: 0,
    private: 0,
    taken: None,
    stops: 0,
});

struct State {
    functions: [Option<Virtio>; MOST],
    /// Shared memory of all functions.
    memory: u64,
    /// A page that was never shared.
    private: u64,
    /// The page of the shared memory that is private now.
    taken: Option<u64>,
    /// Number of times that a device stopped.
    stops: u64,
}

fn main(checks: &mut Checks) {
    checks.once("finds-its-devices", find);
    checks.once("its-devices-work", all_work);
    checks.once("does-what-it-wants", rage);
    checks.once("its-devices-work-again", all_work);
    checks.once("its-own-page-is-as-it-was", private_page);
}

fn find() -> Check {
    let mut state = STATE.lock();
    let Some(start) = memory::take_unaccepted(PAGE_2M) else {
        return fail!("no memory");
    };
    state.memory = start;
    let shared = vmcall::map_gpa(start | memory::shared_bit(), PAGE_2M);
    ensure!(shared.is_ok(), "MapGPA: {shared:x?}");
    state.private = memory::take(PAGE_4K, PAGE_4K);
    memory::set_word(state.private, CONTENT);
    let mut count = 0;
    for device in 1..31 {
        let at = start + BYTES * count as u64;
        if count < MOST
            && let Some(function) = Virtio::find(device, at)
        {
            say!("queues: device {device} of type {}", function.kind);
            state.functions[count] = Some(function);
            count += 1;
        }
    }
    ensure!(count > 0, "no virtio device");
    Ok(())
}

/// Lets every device serve a request.
fn all_work() -> Check {
    let state = STATE.lock();
    state.functions.iter().flatten().try_for_each(works)
}

fn works(function: &Virtio) -> Check {
    function.start(0)?;
    let buffer = function.ring(0) + 3 * PAGE_4K;
    let is_done = match function.kind {
        // A frame to everybody, behind a header of 12 bytes.
        1 => {
            set_shared(buffer + 8, 0xFFFF_FFFF << 32);
            set_shared(buffer + 16, 0xFFFF);
            function.first(1, &[(buffer, 72, false)])
        }
        // The first sector.
        2 => {
            set_shared(buffer, 0);
            set_shared(buffer + 8, 0);
            set_shared(buffer + 16, u64::MAX);
            let sector = buffer + 512;
            let done = function.first(
                0,
                &[
                    (buffer, 16, false),
                    (sector, 512, true),
                    (buffer + 16, 1, true),
                ],
            );
            ensure!(shared(buffer + 16) & 0xFF == 0, "the sector's status");
            done
        }
        3 => {
            set_shared(buffer, u64::from_le_bytes(*b"queues!\n"));
            function.first(1, &[(buffer, 8, false)])
        }
        19 => is_refused(function, buffer),
        kind => return Err(Failure::new(format_args!("a device of type {kind}"))),
    };
    ensure!(
        is_done,
        "a device of type {} does not answer",
        function.kind
    );
    Ok(())
}

/// Asks the host for a connection to a port without a service.
fn is_refused(function: &Virtio, buffer: u64) -> bool {
    let cid = function.register(0x2000, 8);
    // Stream, request; a room of 4 KiB.
    let header = [cid, 2, 1000 | 99 << 32, (1 << 16 | 1) << 32, 4096 << 32, 0];
    for (at, word) in (0..).step_by(8).zip(header) {
        set_shared(buffer + at, word);
    }
    let answer = buffer + 1024;
    function.first(0, &[(answer, 1024, true)]);
    let is_sent = function.first(1, &[(buffer, 44, false)]);
    // A reset, from that port.
    is_sent && shared(answer + 24) >> 48 == 3 && shared(answer + 16) == (99 | 1000 << 32)
}

fn private_page() -> Check {
    let found = memory::word(STATE.lock().private);
    ensure!(found == CONTENT, "it has {found:#x}");
    Ok(())
}

fn rage() -> Check {
    let seed = match wishes::word(SEED) {
        0 => cpu::tsc(),
        seed => seed,
    };
    let operations = match wishes::word(OPERATIONS) {
        0 => MANY,
        operations => operations,
    };
    let mut state = STATE.lock();
    let result = state.rage(Numbers::new(seed), operations);
    // Lines before this one may be lost in what the console device wrote.
    say!(
        "queues: seed {seed:#x}, {operations} operations made, {} stops",
        state.stops
    );
    result?;
    ensure!(state.stops > operations / 1000, "it was too kind");
    Ok(())
}

impl State {
    /// Makes operations, and leaves all memory shared.
    fn rage(&mut self, mut numbers: Numbers, operations: u64) -> Check {
        for number in 0..operations {
            if number % (operations / LINES).max(1) == 0 {
                say!("queues: {number} operations, {} stops", self.stops);
            }
            self.step(&mut numbers)?;
        }
        self.give_back()
    }

    /// Makes an operation on one of the devices.
    fn step(&mut self, numbers: &mut Numbers) -> Check {
        let count = self.functions.iter().flatten().count() as u64;
        let at = numbers.below(count) as usize;
        let Some(function) = self.functions[at] else {
            return Ok(());
        };
        if numbers.once_in(64) && function.is_stopped() || numbers.once_in(500) {
            self.stops += u64::from(function.is_stopped());
            self.give_back()?;
            let events = numbers.of(&[0, 1 << 29]);
            // The console has two ports then.
            let ports = if function.kind == 3 {
                numbers.of(&[0, 2, 2])
            } else {
                0
            };
            function.start(events | ports)?;
            return Ok(());
        }
        let queue = numbers.below(function.queues);
        let ring = function.ring(queue);
        match numbers.below(16) {
            0 => {
                let offset = numbers.below(0x4000 / 8) * 8;
                function.set_register(offset, numbers.of(&[1, 2, 4, 8]), numbers.next());
                function.register(offset, 4);
            }
            1 => function.set_table(numbers.below(64) * 8, numbers.next()),
            2 if numbers.once_in(4) => {
                function.set_status(numbers.of(&[0, 1, 3, 0xB, 0xF, 0x40, 0xFF]));
            }
            3 if numbers.once_in(4) => function.set_config(4, numbers.of(&[ON, ON, 0, 2])),
            4..=8 => self.describe(numbers, &function, ring),
            9 => {
                let slot = ring + PAGE_4K + 8 * numbers.below(3);
                let any = numbers.next() & 0x0007_0007_0007_0007;
                self.write(slot, any);
            }
            10 | 11 => {
                // The available index, and the first slots.
                let more = numbers.of(&[1, 1, 1, 2, LENGTH, LENGTH + 1, 0x8000]);
                let slot = ring + PAGE_4K;
                if !self.is_taken(slot) {
                    let word = shared(slot);
                    let index = (word >> 16).wrapping_add(more) & 0xFFFF;
                    set_shared(slot, word & !0xFFFF_0000 | index << 16);
                }
            }
            // Headers.
            12 => {
                let word = ring + 3 * PAGE_4K + 8 * numbers.below(16);
                let any = numbers.next() >> numbers.below(64);
                self.write(word, any);
            }
            13 if numbers.once_in(32) => self.take(numbers)?,
            14 if numbers.once_in(32) => self.give_back()?,
            _ => {}
        }
        function.set_register(NOTIFY + 4 * queue, 2, queue);
        Ok(())
    }

    /// Writes a descriptor: mostly a small buffer, with flags that mostly exist.
    fn describe(&self, numbers: &mut Numbers, function: &Virtio, ring: u64) {
        let at = ring + 16 * numbers.below(LENGTH);
        let own = ring + 3 * PAGE_4K + numbers.below(128) * 8;
        let any = function.memory + numbers.below(BYTES);
        let target = numbers.of(&[own, own, own, own, any, self.private, u64::MAX - 8, 1 << 38]);
        let bytes = numbers.of(&[1, 8, 16, 44, 64, 512, PAGE_4K, 0x10_0000, 0xFFFF_FFFF]);
        let flags = numbers.of(&[0, 0, 1, 1, 2, 2, 3, 4, 0x8000]);
        self.write(at, target);
        self.write(
            at + 8,
            bytes | flags << 32 | numbers.below(LENGTH + 1) << 48,
        );
    }

    fn is_taken(&self, gpa: u64) -> bool {
        self.taken == Some(gpa / PAGE_4K * PAGE_4K)
    }

    /// Writes a word of shared memory, unless its page is private now.
    fn write(&self, gpa: u64, value: u64) {
        if !self.is_taken(gpa) {
            set_shared(gpa, value);
        }
    }

    /// Makes a page of the shared memory private.
    fn take(&mut self, numbers: &mut Numbers) -> Check {
        self.give_back()?;
        let count = self.functions.iter().flatten().count() as u64;
        let function = self.memory + BYTES * numbers.below(count);
        let page = function + numbers.below(6 * QUEUE_BYTES / PAGE_4K) * PAGE_4K;
        let taken = vmcall::map_gpa(page, PAGE_4K);
        ensure!(taken.is_ok(), "MapGPA: {taken:x?}");
        self.taken = Some(page);
        Ok(())
    }

    /// Shares the private page again.
    fn give_back(&mut self) -> Check {
        let Some(page) = self.taken.take() else {
            return Ok(());
        };
        let shared = vmcall::map_gpa(page | memory::shared_bit(), PAGE_4K);
        ensure!(shared.is_ok(), "MapGPA: {shared:x?}");
        Ok(())
    }
}

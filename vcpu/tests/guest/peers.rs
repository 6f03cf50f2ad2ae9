//! Two TDs of one network: a CPU that works for one of them reaches the memory and the card of the other, and never waits.

use std::cell::Cell;
use std::sync::Arc;

use devices::Now;
use mm::private::{Levels, NoAnswer};
use mm::shared::{Flush, SharedMap};
use seam::abi::{PAGE_2M, PAGE_4K, PageSize};
use seam::address::Gpa;
use sync::Mutex;
use vcpu::clock::Clock;
use vcpu::{Console, Peer, TdMemory, Vm, serve_devices};
use virtio::net::{Count, Mac, Settings, Switch};
use virtio::{Net, Transport, access};

use crate::kit::{Rig, SHARED, Shape, Td};

/// Memory of the card's registers, and of the table of its interrupts.
const REGISTERS: u64 = 0xC000_0000;
const TABLE: u64 = 0xC001_0000;
/// The shared memory of each TD: the parts of both queues, then a buffer for each.
const RINGS: u64 = PAGE_2M;
const BUFFERS: u64 = RINGS + 0x8000;
/// Length of a frame, and of the header before it.
const FRAME: usize = 100;
const HEADER: usize = 12;

/// A TD with a card whose driver is ready.
struct Guest<'r> {
    rig: &'r Rig,
    vm: Arc<Vm>,
    function: Arc<Mutex<Transport<Net>>>,
    offered: [Cell<u16>; 2],
}

impl<'r> Guest<'r> {
    fn new(rig: &'r Rig, switch: &Arc<Switch>, mac: u64) -> Self {
        let settings = Settings {
            mac: Mac(mac),
            is_trunk: false,
            is_isolated: false,
        };
        let peer = Arc::new(Peer::new(1));
        let card = Net::new(switch.attach(settings).unwrap(), peer.clone(), None);
        let function = Arc::new(Mutex::new(Transport::new(card)));
        let map = SharedMap::new(rig, Levels::Four, SHARED).unwrap();
        map.map(rig, Gpa(RINGS), PageSize::Size2M).unwrap();
        let memory = std::iter::once(0..64 << 20).collect();
        let clock = Clock::new(1 << 48, 0, 40);
        let vm = Vm::new(0..1, memory, map, clock, Arc::new(Console::new()));
        let vm = Arc::new(vm.with_functions(vec![function.clone()]));
        peer.belong_to(&vm);
        let guest = Self {
            rig,
            vm,
            function,
            offered: Default::default(),
        };
        guest.initialise();
        guest
    }

    fn store(&self, at: u64, size: u8, value: u64) {
        let devices = self.vm.devices();
        devices.store(at, size, value, Now::default()).unwrap();
    }

    fn initialise(&self) {
        for (register, value) in [
            (0x10, REGISTERS),
            (0x18, TABLE),
            (0x04, 6),
            // MSI-X is behind the capabilities of the four structures.
            (0x40 + 3 * 16 + 20, 0x8000_0000),
        ] {
            let devices = self.vm.devices();
            let _ = devices.output(0xCF8, 4, 0x8000_0800 | register, Now::default);
            let _ = devices.output(0xCFC, 4, value, Now::default);
        }
        for vector in 0..2 {
            self.store(TABLE + 16 * vector, 8, 0xFEE0_0000);
            self.store(TABLE + 16 * vector + 8, 8, 0x50 + vector);
        }
        for (at, size, value) in [(0x14, 1, 3), (0x8, 4, 1), (0xC, 4, 3), (0x14, 1, 0xB)] {
            self.store(REGISTERS + at, size, value);
        }
        for queue in 0..2 {
            for (at, value) in [(0x16, queue), (0x18, 8), (0x1A, queue)] {
                self.store(REGISTERS + at, 2, value);
            }
            for part in 0..3 {
                let gpa = RINGS + queue * 0x3000 + part * 0x1000;
                self.store(REGISTERS + 0x20 + 8 * part, 8, gpa);
            }
            self.store(REGISTERS + 0x1C, 2, 1);
        }
        self.store(REGISTERS + 0x14, 1, 0xF);
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        let reader = self.vm.shared().reader(self.rig);
        let memory = TdMemory::new(self.vm.shared(), &reader);
        access::write(&memory, gpa, bytes).unwrap();
    }

    fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let reader = self.vm.shared().reader(self.rig);
        let memory = TdMemory::new(self.vm.shared(), &reader);
        let mut bytes = [0; N];
        access::read(&memory, gpa, &mut bytes).unwrap();
        bytes
    }

    /// Makes the buffer of a queue available once more.
    fn offer(&self, queue: u64, bytes: usize) {
        let ring = RINGS + queue * 0x3000;
        let flags = if queue == 0 { 2 } else { 0 };
        let buffer = BUFFERS + queue * 0x1000;
        self.write(ring, &buffer.to_le_bytes());
        self.write(ring + 8, &(bytes as u64 | flags << 32).to_le_bytes());
        let offered = &self.offered[queue as usize];
        offered.set(offered.get() + 1);
        self.write(ring + 0x1002, &offered.get().to_le_bytes());
    }

    /// Returns the number of chains of a queue that the device has returned.
    fn used(&self, queue: u64) -> u16 {
        u16::from_le_bytes(self.read(RINGS + queue * 0x3000 + 0x2002))
    }

    /// Lets the card work on the CPU of `td`.
    fn serve(&self, td: &Td<'_>) {
        let host = td.host();
        let waker = vcpu::Waker::new(&self.vm, &host);
        assert!(serve_devices(waker, &host, || true));
    }

    /// Sends a frame to the card with this address, on the CPU of `td`.
    fn send(&self, td: &Td<'_>, to: u64) {
        let own = self.function.lock().device().port().mac();
        let mut frame = [0x5A; HEADER + FRAME];
        frame[..HEADER].fill(0);
        frame[HEADER..HEADER + 6].copy_from_slice(&Mac(to).bytes());
        frame[HEADER + 6..HEADER + 12].copy_from_slice(&own.bytes());
        self.write(BUFFERS + 0x1000, &frame);
        self.offer(1, frame.len());
        self.store(REGISTERS + 0x3004, 2, 1);
        self.serve(td);
        assert_eq!(self.used(1), self.offered[1].get(), "the sender waits");
    }

    fn count(&self, count: Count) -> u64 {
        self.function.lock().device().port().count(count)
    }

    fn is_interrupted(&self) -> bool {
        self.vm.vcpus()[0].descriptor().is_outstanding()
    }
}

fn with_two(test: impl FnOnce(&Td<'_>, Guest<'_>, Guest<'_>)) {
    let rig = Rig::new("");
    let td = Td::new(&rig, &Shape::default());
    let switch = Arc::new(Switch::default());
    let [one, two] = [1, 2].map(|mac| Guest::new(&rig, &switch, mac));
    // Their drivers have become ready.
    one.serve(&td);
    two.serve(&td);
    test(&td, one, two);
    rig.audit();
}

#[test]
fn a_frame_arrives_with_an_interrupt_and_without_the_receivers_cpu() {
    with_two(|td, one, two| {
        two.offer(0, 2048);
        one.send(td, 2);
        assert_eq!((two.used(0), two.is_interrupted()), (1, true));
        assert!(!two.vm.devices().pci().has_work(), "nothing is left to do");
        let frame: [u8; HEADER + FRAME] = two.read(BUFFERS);
        assert_eq!(
            frame[HEADER..HEADER + 12],
            [0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 1]
        );
        assert_eq!(frame[HEADER + 12..], [0x5A; FRAME - 12]);
        assert_eq!(one.count(Count::Sent), 1);
    });
}

/// A flush during which something happens.
struct During<F>(F);

impl<F: Fn()> Flush for During<F> {
    fn flush(&self) -> Result<(), NoAnswer> {
        (self.0)();
        Ok(())
    }
}

#[test]
fn a_sender_does_not_wait_for_a_receiver_that_converts_memory() {
    with_two(|td, one, two| {
        two.offer(0, 2048);
        let page = RINGS + 0x10_0000;
        let sends = During(|| one.send(td, 2));
        let unmapped = two.vm.shared().unmap(two.rig, page..page + PAGE_4K, &sends);
        assert_eq!(unmapped, Ok(PAGE_4K));
        assert_eq!((two.used(0), two.count(Count::Full)), (0, 1));
        one.send(td, 2);
        assert_eq!((two.used(0), two.is_interrupted()), (1, true));
    });
}

#[test]
fn a_buffer_that_was_taken_back_stops_the_receivers_card_alone() {
    with_two(|td, one, two| {
        two.offer(0, 2048);
        let buffer = BUFFERS..BUFFERS + PAGE_4K;
        two.vm
            .shared()
            .unmap(two.rig, buffer, &During(|| ()))
            .unwrap();
        one.send(td, 2);
        assert_eq!((two.used(0), one.count(Count::Sent)), (0, 0));
        assert!(two.function.lock().fault().is_some());
        assert!(one.function.lock().fault().is_none());
        one.send(td, 2);
    });
}

#[test]
fn a_sender_does_not_wait_for_a_cpu_that_has_the_receivers_card() {
    with_two(|td, one, two| {
        two.offer(0, 2048);
        let held = two.function.lock();
        one.send(td, 2);
        drop(held);
        assert_eq!((two.used(0), two.is_interrupted()), (1, false));
        // The CPU that had it looks for news when it is done, and finds work before it enters the guest.
        let bus = two.vm.devices().pci();
        assert!(bus.usage(1).is_some() && bus.has_work());
        two.serve(td);
        assert!(two.is_interrupted());
    });
}

#[test]
fn a_td_that_has_ended_is_out_of_reach() {
    with_two(|td, one, two| {
        two.offer(0, 2048);
        two.vm.devices().pci().retire();
        one.send(td, 2);
        assert_eq!((two.used(0), one.count(Count::Sent)), (0, 0));
        two.vm.shared().dissolve(two.rig);
        assert_eq!(two.vm.shared().holding(), mm::shared::Holding::default());
        one.send(td, 2);
        drop(two);
        one.send(td, 2);
        assert_eq!(one.count(Count::Sent), 0);
    });
}

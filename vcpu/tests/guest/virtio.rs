//! A guest with a virtio console: it finds the function on its bus, shares its rings, and makes one call for a line.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use seam::abi::PAGE_2M;
use seam::address::Gpa;
use spin::Mutex;
use vcpu::Stop;
use virtio::Transport;

use crate::kit::{Act, Rig, SHARED, Script, Shape, Td, call};
use crate::{HLT, IO, MAP_GPA, MMIO, one};

/// Where the guest places the function's memory: its registers, and the table of its interrupts.
const REGISTERS: u64 = 0xC000_0000;
const TABLE: u64 = 0xC001_0000;
/// The guest's shared memory: descriptors, available ring and used ring of each queue, then buffers.
const RINGS: u64 = PAGE_2M;
const BUFFERS: u64 = RINGS + 0x8000;
/// The vectors of both queues.
const VECTOR: u64 = 0x50;

fn config(td: &Td<'_>, register: u64, value: u64) {
    one(td, IO, [4, 1, 0xCF8, 0x8000_0800 | register]);
    one(td, IO, [4, 1, 0xCFC, value]);
}

fn store(td: &Td<'_>, at: u64, size: u64, value: u64) {
    assert_eq!(one(td, MMIO, [size, 1, SHARED | at, value]).r10, 0);
}

fn load(td: &Td<'_>, at: u64, size: u64) -> u64 {
    one(td, MMIO, [size, 0, SHARED | at, 0]).r11
}

/// Reads or writes a word of shared memory.
fn word(td: &Td<'_>, gpa: u64, value: Option<u64>) -> u64 {
    let access = |words: &mm::shared::Words| {
        let word = &words[(gpa % 4096 / 8) as usize];
        value.inspect(|value| word.store(*value, SeqCst));
        word.load(SeqCst)
    };
    td.vm.shared().with_page(td.rig, Gpa(gpa), access).unwrap()
}

/// Makes the first descriptor of a queue, a buffer, available for the `number`th time.
fn offer(td: &Td<'_>, queue: u64, bytes: u64, number: u64) {
    let ring = RINGS + queue * 0x3000;
    let flags = if queue == 0 { 2 } else { 0 };
    word(td, ring, Some(BUFFERS));
    word(td, ring + 8, Some(bytes | flags << 32));
    word(td, ring + 0x1000, Some(number << 16));
}

/// Returns the used index of a queue.
fn used(td: &Td<'_>, queue: u64) -> u64 {
    word(td, RINGS + queue * 0x3000 + 0x2000, None) >> 16 & 0xFFFF
}

/// Starts a guest that drives its console.
fn with_console(test: impl FnOnce(&Td<'_>)) {
    let rig = Rig::new("");
    let td = Td::new(&rig, &Shape::default());
    let console = td.vm.console();
    let device = virtio::Console::new(console.clone(), console.with_script().clone());
    let td = td.with_functions(vec![Arc::new(Mutex::new(Transport::new(device)))]);
    one(&td, MAP_GPA, [SHARED | RINGS, PAGE_2M, 0, 0]);
    config(&td, 0x10, REGISTERS);
    config(&td, 0x18, TABLE);
    config(&td, 0x04, 6);
    // MSI-X is the last capability.
    let msix = 0x40 + 3 * 16 + 20;
    config(&td, msix, 0x8000_0000);
    for vector in 0..2 {
        store(&td, TABLE + 16 * vector, 8, 0xFEE0_0000);
        store(&td, TABLE + 16 * vector + 8, 8, VECTOR + vector);
    }
    for status in [1, 3] {
        store(&td, REGISTERS + 0x14, 1, status);
    }
    store(&td, REGISTERS + 0x8, 4, 1);
    store(&td, REGISTERS + 0xC, 4, 3);
    store(&td, REGISTERS + 0x14, 1, 0xB);
    for queue in 0..2 {
        store(&td, REGISTERS + 0x16, 2, queue);
        store(&td, REGISTERS + 0x18, 2, 8);
        store(&td, REGISTERS + 0x1A, 2, queue);
        for part in 0..3 {
            let gpa = RINGS + queue * 0x3000 + part * 0x1000;
            store(&td, REGISTERS + 0x20 + 8 * part, 8, gpa);
        }
        store(&td, REGISTERS + 0x1C, 2, 1);
    }
    store(&td, REGISTERS + 0x14, 1, 0xF);
    assert_eq!(load(&td, REGISTERS + 0x14, 1), 0xF);
    test(&td);
    rig.audit();
}

fn said(td: &Td<'_>) -> String {
    let mut seen = [0; 64];
    let count = td.vm.console().read(0, &mut seen).count;
    String::from_utf8_lossy(&seen[..count]).into()
}

#[test]
fn a_line_is_one_call_and_one_interrupt() {
    with_console(|td| {
        word(td, BUFFERS, Some(u64::from_le_bytes(*b"Linux!\r\n")));
        offer(td, 1, 8, 1);
        let calls = td.vm.vcpus()[0].tally().calls.get();
        store(td, REGISTERS + 0x3004, 2, 1);
        assert_eq!(td.vm.vcpus()[0].tally().calls.get(), calls + 1);
        assert_eq!((said(td), used(td, 1)), ("Linux!\r\n".into(), 1));
        let state = &td.vm.vcpus()[0];
        assert!(state.descriptor().is_outstanding(), "its interrupt");
    });
}

#[test]
fn typed_bytes_go_to_the_console_that_the_guest_drives() {
    with_console(|td| {
        offer(td, 0, 16, 1);
        assert!(td.vm.console().type_byte(b'x'));
        let host = td.host();
        vcpu::receive_typed(host.waker());
        td.vm.devices().pci().rouse();
        assert!(vcpu::serve_devices(host.waker(), &host, || true));
        assert_eq!((used(td, 0), word(td, BUFFERS, None)), (1, u64::from(b'x')));
        assert_eq!(one(td, IO, [1, 0, 0x3FD, 0]).r11 & 1, 0, "the serial port");
        // After a reset, they go to the serial port again.
        store(td, REGISTERS + 0x14, 1, 0);
        assert!(td.vm.console().type_byte(b'y'));
        vcpu::receive_typed(host.waker());
        assert_eq!(one(td, IO, [1, 0, 0x3F8, 0]).r11, u64::from(b'y'));
    });
}

#[test]
fn memory_that_the_guest_takes_back_stops_its_device_alone() {
    with_console(|td| {
        offer(td, 1, 8, 1);
        one(td, MAP_GPA, [RINGS, PAGE_2M, 0, 0]);
        store(td, REGISTERS + 0x3004, 2, 1);
        assert_eq!(load(td, REGISTERS + 0x14, 1), 0x4F);
        assert!(td.vm.end().is_none());
        assert_eq!(one(td, IO, [1, 1, 0x3F8, b'a'.into()]).r10, 0);
        assert_eq!(said(td), "a");
    });
}

#[test]
fn work_that_is_left_while_memory_is_converted_is_done_before_a_vcpu_sleeps() {
    with_console(|td| {
        offer(td, 0, 16, 1);
        td.vm.console().type_byte(b'x');
        let host = td.host();
        // Another CPU finds the memory being converted.
        *host.meanwhile.borrow_mut() = Some(Box::new(|| {
            td.vm.devices().pci().rouse();
            let host = td.host();
            assert!(!vcpu::serve_devices(host.waker(), &host, || true));
        }));
        let script = Script::new([
            Act::Call(call(MAP_GPA, [RINGS + PAGE_2M + SHARED, PAGE_2M, 0, 0])),
            Act::Call(call(MAP_GPA, [RINGS + PAGE_2M, PAGE_2M, 0, 0])),
            Act::Call(call(HLT, [0; 4])),
        ]);
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert_eq!((used(td, 0), word(td, BUFFERS, None)), (1, u64::from(b'x')));
    });
}

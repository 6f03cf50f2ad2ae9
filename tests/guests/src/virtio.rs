//! Virtio functions on the TD's PCI bus, driven by hand: configuration space through ports, registers through the host,
//! queues in shared memory.
//!
//! Source: VIRTIO 1.2, sections 2.7 (split queues), 3.1 (initialisation), 4.1 (PCI).

use guest_kit::check::Check;
use guest_kit::{ensure, memory, vmcall};
use seam::abi::PAGE_4K;

use crate::pci::{self, COMMAND, ON};

/// The vendor of virtio's functions, and the device of type 0.
const VENDOR: u32 = 0x1AF4;
const DEVICE: u32 = 0x1040;
/// The guest-physical address of the first function's registers, the distance to the next one's, and the place of the
/// table of interrupts.
const PLACE: u64 = 0xC000_0000;
const NEXT: u64 = 0x10_0000;
const TABLE: u64 = 0x1_0000;

/// Registers of the common structure.
const FEATURE_SELECT: u64 = 0x08;
const FEATURE: u64 = 0x0C;
const QUEUES: u64 = 0x12;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_ENABLE: u64 = 0x1C;
const QUEUE_PARTS: u64 = 0x20;
/// Offset of the notifications, four bytes for each queue.
pub const NOTIFY: u64 = 0x3000;
/// The device demands a reset.
const NEEDS_RESET: u64 = 0x40;

/// Number of descriptors of each queue.
pub const LENGTH: u64 = 8;
/// Bytes of shared memory for each queue: descriptors, available ring, used ring, a page each, and a page of buffers.
pub const QUEUE_BYTES: u64 = 4 * PAGE_4K;
/// Largest number of queues.
pub const MOST_QUEUES: u64 = 6;

/// A buffer of a chain: its address, its length, and whether the device writes it.
pub type Buffer = (u64, u64, bool);

/// A function.
#[derive(Clone, Copy, Debug)]
pub struct Virtio {
    device: u32,
    /// The type of device: 1 is a network card, 2 a disk, 3 a console, 19 a socket device.
    pub kind: u32,
    registers: u64,
    /// Shared memory for the queues.
    pub memory: u64,
    /// Number of queues.
    pub queues: u64,
}

impl Virtio {
    /// Returns the function of a device on the bus, if it is one, with shared memory from `memory` on for its queues.
    pub fn find(device: u32, memory: u64) -> Option<Self> {
        let id = pci::config(device, 0);
        let kind = (id >> 16).checked_sub(DEVICE)?;
        let mut function = Self {
            device,
            kind,
            registers: PLACE + u64::from(device) * NEXT,
            memory,
            queues: 0,
        };
        if id & 0xFFFF != VENDOR {
            return None;
        }
        for (offset, value) in [
            (0x10, function.registers),
            (0x14, 0),
            (0x18, function.registers + TABLE),
            (0x1C, 0),
            (COMMAND, ON.into()),
        ] {
            function.set_config(offset, value as u32);
        }
        function.queues = function.register(QUEUES, 2).min(MOST_QUEUES);
        Some(function)
    }

    /// Writes four bytes of the configuration space.
    pub fn set_config(&self, offset: u8, value: u32) {
        pci::set_config(self.device, offset, value);
    }

    /// Reads a register.
    pub fn register(&self, offset: u64, bytes: u8) -> u64 {
        vmcall::mmio_load(self.at(offset), bytes).unwrap_or(u64::MAX)
    }

    /// Writes a register.
    pub fn set_register(&self, offset: u64, bytes: u8, value: u64) {
        // A write is lost while the function does not answer.
        let _ = vmcall::mmio_store(self.at(offset), bytes, value);
    }

    /// Writes a register of the table of interrupts.
    pub fn set_table(&self, offset: u64, value: u64) {
        self.set_register(TABLE + offset, 8, value);
    }

    /// Sets the status.
    pub fn set_status(&self, status: u64) {
        self.set_register(STATUS, 1, status);
    }

    /// Returns whether the device stopped because this driver broke a rule.
    pub fn is_stopped(&self) -> bool {
        self.register(STATUS, 1) & NEEDS_RESET != 0
    }

    /// Returns the shared memory of a queue.
    pub fn ring(&self, queue: u64) -> u64 {
        self.memory + queue * QUEUE_BYTES
    }

    /// Resets the device and starts it with these features, beside those of the transport, and all queues empty.
    ///
    /// # Errors
    /// The device does not agree.
    pub fn start(&self, features: u64) -> Check {
        self.set_config(COMMAND, ON);
        self.set_status(0);
        ensure!(self.register(STATUS, 1) == 0, "no reset");
        self.set_status(3);
        for (half, value) in [(0, features & 0xFFFF_FFFF), (1, 3)] {
            self.set_register(FEATURE_SELECT, 4, half);
            self.set_register(FEATURE, 4, value);
        }
        self.set_status(0xB);
        ensure!(self.register(STATUS, 1) == 0xB, "features {features:#x}");
        for queue in 0..self.queues {
            let ring = self.ring(queue);
            for page in 1..3 {
                set_shared(ring + page * PAGE_4K, 0);
            }
            self.set_register(QUEUE_SELECT, 2, queue);
            self.set_register(QUEUE_SIZE, 2, LENGTH);
            for part in 0..3 {
                self.set_register(QUEUE_PARTS + 8 * part, 8, ring + part * PAGE_4K);
            }
            self.set_register(QUEUE_ENABLE, 2, 1);
        }
        self.set_status(0xF);
        ensure!(!self.is_stopped(), "it stops at once");
        Ok(())
    }

    /// Notifies the device of a queue.
    pub fn kick(&self, queue: u64) {
        self.set_register(NOTIFY + 4 * queue, 2, queue);
    }

    /// Makes the first chain of a queue available after a start, and notifies the device. Returns whether the device
    /// has returned it, which it does before the guest runs again.
    pub fn first(&self, queue: u64, buffers: &[Buffer]) -> bool {
        let ring = self.ring(queue);
        for (index, (gpa, bytes, is_written)) in (0..).zip(buffers) {
            let has_next = u64::from(index + 1 < buffers.len() as u64);
            let flags = has_next | u64::from(*is_written) << 1;
            set_shared(ring + 16 * index, *gpa);
            let more = bytes | flags << 32 | (index + 1) << 48;
            set_shared(ring + 16 * index + 8, more);
        }
        // Flags, index, and the first descriptor.
        set_shared(ring + PAGE_4K, 1 << 16);
        self.kick(queue);
        shared(ring + 2 * PAGE_4K) >> 16 & 0xFFFF == 1
    }

    fn at(&self, offset: u64) -> u64 {
        (self.registers + offset) | memory::shared_bit()
    }
}

/// Reads a word of shared memory.
pub fn shared(gpa: u64) -> u64 {
    memory::word(memory::shared_alias(gpa))
}

/// Writes a word of shared memory.
pub fn set_shared(gpa: u64, value: u64) {
    memory::set_word(memory::shared_alias(gpa), value);
}

//! A driver: it initialises a device through the transport's registers, and puts chains into its queues.

use std::collections::VecDeque;
use std::vec::Vec;

use devices::pci::{Function, Served};
use devices::{Effect, Message, Now, Place as At};
use virtio_spec::{DeviceStatus, F, virtq::DescF};

use super::{Ram, std};
use crate::access::{field, set_field};
use crate::{Device, Place, Transport};

/// Offset of the notifications in the memory of the first base address register; the common structure is at 0.
pub const NOTIFY: u64 = 0x3000;
/// COMMAND of the configuration space, with memory and bus mastering on.
const COMMAND: usize = 4;
const ON: u64 = 6;

/// The driver's side of a queue.
pub struct Ring {
    pub place: Place,
    pub next: u16,
    pub seen: u16,
    /// Free descriptors.
    free: VecDeque<u16>,
    /// The descriptors of each chain in flight, by its head.
    flying: Vec<Vec<u16>>,
    has_events: bool,
}

/// A driver of a device.
pub struct Driver<'r, D> {
    pub function: Transport<D>,
    pub ram: &'r Ram,
    pub features: u64,
}

impl<'r, D: Device> Driver<'r, D> {
    /// Creates a driver of `device` that has not started. The function may access memory and has its interrupts on: queue
    /// n has vector n, which sends the APICs' vector 0x40 + n; vector 0x30 is that of the configuration.
    pub fn new(device: D, ram: &'r Ram) -> Self {
        Self::of(Transport::new(device), ram)
    }

    /// As [`Self::new`], of a function.
    pub fn of(mut function: Transport<D>, ram: &'r Ram) -> Self {
        let config = function.config();
        config.write(COMMAND, 2, ON);
        let mut at = config.read(0x34, 1) as usize;
        while config.read(at, 1) != 0x11 {
            at = config.read(at + 1, 1) as usize;
        }
        config.write(at + 2, 2, 1 << 15);
        function.configured(at..at + 4);
        let queues = function.device().kind().queues.len() as u64;
        for vector in 0..=queues {
            let data = if vector == queues {
                0x30
            } else {
                0x40 + vector
            };
            for (offset, value) in [(0, 0xFEE0_0000), (8, data)] {
                let place = At {
                    offset: 16 * vector + offset,
                    size: 8,
                };
                function.store(2, place, value, Now::default());
            }
        }
        let features = 0;
        Self {
            function,
            ram,
            features,
        }
    }

    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        self.function.load(0, At { offset, size }, Now::default())
    }

    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Effect {
        self.function
            .store(0, At { offset, size }, value, Now::default())
    }

    pub fn status(&mut self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.read(0x14, 1) as u8)
    }

    /// Resets the device and goes on until the features are agreed: those of the transport, and `features`.
    pub fn negotiate(&mut self, features: u64) {
        self.write(0x14, 1, 0);
        assert!(self.status().is_empty());
        self.write(0x14, 1, 1);
        self.write(0x14, 1, 3);
        let offered = [0, 1].map(|half| {
            self.write(0, 4, half);
            self.read(4, 4)
        });
        let offered = offered[0] | offered[1] << 32;
        let common = (F::VERSION_1 | F::ACCESS_PLATFORM | F::EVENT_IDX)
            .bits()
            .to_ne() as u64;
        assert_eq!(offered & common, common);
        self.features = offered & features | 3 << 32;
        for half in 0..2 {
            self.write(8, 4, half);
            self.write(0xC, 4, self.features >> (32 * half) & 0xFFFF_FFFF);
        }
        self.write(0x14, 1, 0xB);
        assert!(self.status().contains(DeviceStatus::FEATURES_OK));
    }

    /// Sets a queue up, with its parts from `gpa` on: a page for each.
    pub fn set_up(&mut self, queue: u16, size: u16, gpa: u64) -> Ring {
        let place = Place {
            size,
            descriptors: gpa,
            available: gpa + 0x1000,
            used: gpa + 0x2000,
        };
        self.place(queue, place);
        self.write(0x1C, 2, 1);
        assert_eq!(self.read(0x1C, 2), 1);
        for part in [place.available, place.used] {
            set_field(self.ram, part, 4, 0).unwrap();
        }
        Ring::at(place, self.features & 1 << 29 != 0)
    }

    /// Writes the registers of a queue.
    pub fn place(&mut self, queue: u16, place: Place) {
        self.write(0x16, 2, queue.into());
        self.write(0x18, 2, place.size.into());
        self.write(0x1A, 2, queue.into());
        let parts = [place.descriptors, place.available, place.used];
        for (at, gpa) in (0x20..).step_by(8).zip(parts) {
            self.write(at, 4, gpa & 0xFFFF_FFFF);
            self.write(at + 4, 4, gpa >> 32);
        }
    }

    /// Tells the device that the driver is ready.
    pub fn ready(&mut self) -> Served {
        let queues = self.function.device().kind().queues.len() as u64;
        self.write(0x10, 2, queues);
        assert_eq!(self.write(0x14, 1, 0xF), Effect::Work);
        self.serve()
    }

    /// Lets the device work.
    pub fn serve(&mut self) -> Served {
        self.function.serve(self.ram, Now::default())
    }

    /// Notifies the device of a queue, and lets it work until there is nothing more to do. Returns the number of parts in
    /// which it worked.
    pub fn kick(&mut self, queue: u16) -> usize {
        assert_eq!(
            self.write(NOTIFY + 4 * u64::from(queue), 2, queue.into()),
            Effect::Work
        );
        1 + std::iter::from_fn(|| self.serve().has_more.then_some(())).count()
    }

    /// Returns the APICs' vectors of the interrupts that were sent.
    pub fn interrupts(&mut self) -> Vec<u8> {
        let messages = std::iter::from_fn(|| self.function.take_message());
        messages.map(|Message { vector, .. }| vector).collect()
    }
}

impl Ring {
    fn at(place: Place, has_events: bool) -> Self {
        Self {
            place,
            next: 0,
            seen: 0,
            free: (0..place.size).collect(),
            flying: std::vec![Vec::new(); place.size.into()],
            has_events,
        }
    }

    /// Creates a queue of `size` descriptors in the first three pages, without a device.
    pub fn alone(size: u16, has_events: bool) -> Self {
        let place = Place {
            size,
            descriptors: 0,
            available: 0x1000,
            used: 0x2000,
        };
        Self::at(place, has_events)
    }

    pub const fn has_events(&self) -> bool {
        self.has_events
    }

    /// Returns whether a chain of `count` buffers can be made available.
    pub fn has_room(&self, count: usize) -> bool {
        self.free.len() >= count
    }

    /// Makes a chain of buffers available: address, length, and whether the device writes it. Returns its head, or `None`
    /// if there are not enough free descriptors.
    pub fn offer(&mut self, ram: &Ram, buffers: &[(u64, u32, bool)]) -> Option<u16> {
        if buffers.len() > self.free.len() {
            return None;
        }
        let indices: Vec<_> = self.free.drain(..buffers.len()).collect();
        for (number, (gpa, bytes, is_written)) in buffers.iter().enumerate() {
            let next = indices.get(number + 1);
            let mut flags = if *is_written {
                DescF::WRITE
            } else {
                DescF::empty()
            };
            flags.set(DescF::NEXT, next.is_some());
            let at = self.place.descriptors + 16 * u64::from(indices[number]);
            let more = u64::from(*bytes)
                | u64::from(flags.bits().to_ne()) << 32
                | u64::from(*next.unwrap_or(&0)) << 48;
            set_field(ram, at, 8, *gpa).unwrap();
            set_field(ram, at + 8, 8, more).unwrap();
        }
        let head = indices[0];
        self.flying[usize::from(head)] = indices;
        let slot = u64::from(self.next % self.place.size);
        set_field(ram, self.place.available + 4 + 2 * slot, 2, head.into()).unwrap();
        self.next = self.next.wrapping_add(1);
        set_field(ram, self.place.available + 2, 2, self.next.into()).unwrap();
        Some(head)
    }

    /// Takes the next chain that the device returned: its head and the number of bytes written.
    pub fn take(&mut self, ram: &Ram) -> Option<(u16, u32)> {
        let used = field(ram, self.place.used + 2, 2).unwrap() as u16;
        if used == self.seen {
            return None;
        }
        let at = self.place.used + 4 + 8 * u64::from(self.seen % self.place.size);
        self.seen = self.seen.wrapping_add(1);
        let head = field(ram, at, 4).unwrap() as u16;
        let indices = std::mem::take(&mut self.flying[usize::from(head)]);
        assert!(!indices.is_empty(), "chain {head} was not in flight");
        self.free.extend(indices);
        Some((head, field(ram, at + 4, 4).unwrap() as u32))
    }

    /// Requests an interrupt once the device has returned `more` further chains, with EVENT_IDX.
    pub fn want_after(&self, ram: &Ram, more: u16) {
        let at = self.place.available + 4 + 2 * u64::from(self.place.size);
        let event = self.seen.wrapping_add(more).wrapping_sub(1);
        set_field(ram, at, 2, event.into()).unwrap();
    }

    /// Returns whether the device wants a notification of the chains since index `before`.
    pub fn wants_kick(&self, ram: &Ram, before: u16) -> bool {
        if !self.has_events {
            return field(ram, self.place.used, 2).unwrap() & 1 == 0;
        }
        let at = self.place.used + 4 + 8 * u64::from(self.place.size);
        let event = field(ram, at, 2).unwrap() as u16;
        self.next.wrapping_sub(event).wrapping_sub(1) < self.next.wrapping_sub(before)
    }
}

//! The common structure: status, features, and the registers of the queues.

use alloc::{boxed::Box, vec};

use devices::Place as At;
use virtio_spec::DeviceStatus;

use super::REQUIRED;
use crate::queue::Place;

/// The number that is no interrupt vector.
const NO_VECTOR: u16 = 0xFFFF;

/// Offsets of the registers.
mod register {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0C;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1A;
    pub const QUEUE_ENABLE: u64 = 0x1C;
    pub const QUEUE_NOTIFY: u64 = 0x1E;
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub const QUEUE_AVAILABLE: u64 = 0x28;
    pub const QUEUE_USED: u64 = 0x30;
    pub const END: u64 = 0x38;
}

/// The action that a write to the registers requires of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    None,
    /// The driver resets the device.
    Reset,
    /// The driver is ready.
    Start,
}

/// The registers of a queue.
#[derive(Clone, Copy, Debug)]
struct Registers {
    place: Place,
    vector: u16,
    is_enabled: bool,
}

/// The structure.
#[derive(Debug)]
pub struct Common {
    /// Largest sizes of the queues.
    most: &'static [u16],
    offered: u64,
    vectors: u16,
    accepted: u64,
    /// Which half of the features is read, and which is written.
    selected: [u32; 2],
    status: DeviceStatus,
    config_vector: u16,
    queue: u16,
    queues: Box<[Registers]>,
}

impl Common {
    pub fn new(most: &'static [u16], offered: u64, vectors: u16) -> Self {
        let mut common = Self {
            most,
            offered,
            vectors,
            accepted: 0,
            selected: [0; 2],
            status: DeviceStatus::empty(),
            config_vector: NO_VECTOR,
            queue: 0,
            queues: vec![
                Registers {
                    place: Place::default(),
                    vector: NO_VECTOR,
                    is_enabled: false,
                };
                most.len()
            ]
            .into(),
        };
        common.reset();
        common
    }

    /// Resets all registers.
    pub fn reset(&mut self) {
        self.accepted = 0;
        self.selected = [0; 2];
        self.status = DeviceStatus::empty();
        self.config_vector = NO_VECTOR;
        self.queue = 0;
        for (queue, most) in self.queues.iter_mut().zip(self.most) {
            *queue = Registers {
                place: Place {
                    size: *most,
                    ..Place::default()
                },
                vector: NO_VECTOR,
                is_enabled: false,
            };
        }
    }

    /// Demands a reset of the driver.
    pub fn need_reset(&mut self) {
        self.status |= DeviceStatus::DEVICE_NEEDS_RESET;
    }

    pub const fn status(&self) -> DeviceStatus {
        self.status
    }

    /// Returns the features that the driver has accepted.
    pub const fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Returns the places of the queues that the driver has enabled, by index.
    pub fn enabled(&self) -> impl Iterator<Item = Option<Place>> + '_ {
        let all = self.queues.iter();
        all.map(|queue| queue.is_enabled.then_some(queue.place))
    }

    /// Returns the interrupt vector for changes of the configuration.
    pub fn config_vector(&self) -> Option<u16> {
        Some(self.config_vector).filter(|vector| *vector != NO_VECTOR)
    }

    /// Returns the interrupt vector of a queue.
    pub fn queue_vector(&self, queue: usize) -> Option<u16> {
        let vector = self.queues.get(queue)?.vector;
        (vector != NO_VECTOR).then_some(vector)
    }

    /// Reads a register. Registers of eight bytes can be read by halves.
    pub fn read(&self, at: At) -> u64 {
        let At { offset, size } = at;
        let queue = self.queues.get(usize::from(self.queue));
        let place = queue.map(|queue| queue.place).unwrap_or_default();
        match (offset, size) {
            (register::DEVICE_FEATURE_SELECT, 4) => self.selected[0].into(),
            (register::DEVICE_FEATURE, 4) => half(self.offered, self.selected[0]),
            (register::DRIVER_FEATURE_SELECT, 4) => self.selected[1].into(),
            (register::DRIVER_FEATURE, 4) => half(self.accepted, self.selected[1]),
            (register::CONFIG_VECTOR, 2) => self.config_vector.into(),
            (register::QUEUES, 2) => self.queues.len() as u64,
            (register::STATUS, 1) => self.status.bits().into(),
            // The configuration of the devices does not change while the driver reads it.
            (register::GENERATION, 1) => 0,
            (register::QUEUE_SELECT, 2) => self.queue.into(),
            (register::QUEUE_SIZE, 2) => place.size.into(),
            (register::QUEUE_VECTOR, 2) => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            (register::QUEUE_ENABLE, 2) => queue.is_some_and(|queue| queue.is_enabled).into(),
            (register::QUEUE_NOTIFY, 2) => self.queue.into(),
            (register::QUEUE_DESCRIPTORS..register::END, 4 | 8) => part(place, at),
            _ => 0,
        }
    }

    /// Writes a register.
    pub fn write(&mut self, at: At, value: u64) -> Request {
        match (at.offset, at.size) {
            (register::DEVICE_FEATURE_SELECT, 4) => self.selected[0] = value as u32,
            (register::DRIVER_FEATURE_SELECT, 4) => self.selected[1] = value as u32,
            (register::DRIVER_FEATURE, 4) => self.accept(value as u32),
            (register::CONFIG_VECTOR, 2) => self.config_vector = self.vector(value),
            (register::STATUS, 1) => return self.set_status(value as u8),
            (register::QUEUE_SELECT, 2) => self.queue = value as u16,
            (register::QUEUE_VECTOR, 2) => {
                let vector = self.vector(value);
                if let Some(queue) = self.queues.get_mut(usize::from(self.queue)) {
                    queue.vector = vector;
                }
            }
            _ => self.set_up_queue(at, value),
        }
        Request::None
    }

    /// Writes the driver's features, until it has finished with them.
    fn accept(&mut self, value: u32) {
        let value = u64::from(value);
        if self.status.contains(DeviceStatus::FEATURES_OK) {
            return;
        }
        match self.selected[1] {
            0 => self.accepted = self.accepted & !0xFFFF_FFFF | value,
            1 => self.accepted = self.accepted & 0xFFFF_FFFF | value << 32,
            _ => {}
        }
    }

    /// Returns a vector that exists.
    const fn vector(&self, value: u64) -> u16 {
        if value < self.vectors as u64 {
            value as u16
        } else {
            NO_VECTOR
        }
    }

    fn set_status(&mut self, value: u8) -> Request {
        if value == 0 {
            return Request::Reset;
        }
        let driver = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FAILED;
        let wanted = DeviceStatus::from_bits_truncate(value);
        // Only a reset clears a bit.
        self.status |= wanted & driver;
        let fits = self.accepted & !self.offered == 0 && self.accepted & REQUIRED == REQUIRED;
        if wanted.contains(DeviceStatus::FEATURES_OK) && fits {
            self.status |= DeviceStatus::FEATURES_OK;
        }
        let is_ready = self.status.contains(DeviceStatus::FEATURES_OK)
            && !self.status.contains(DeviceStatus::DRIVER_OK)
            && !self.status.contains(DeviceStatus::DEVICE_NEEDS_RESET);
        if wanted.contains(DeviceStatus::DRIVER_OK) && is_ready {
            self.status |= DeviceStatus::DRIVER_OK;
            return Request::Start;
        }
        Request::None
    }

    /// Writes a register of the selected queue, until it is enabled. A queue is enabled after the features are agreed and
    /// before the driver is ready, and stays enabled until the reset.
    fn set_up_queue(&mut self, at: At, value: u64) {
        let is_time = self.status.contains(DeviceStatus::FEATURES_OK)
            && !self.status.contains(DeviceStatus::DRIVER_OK);
        let index = usize::from(self.queue);
        let (Some(queue), Some(most)) = (self.queues.get_mut(index), self.most.get(index)) else {
            return;
        };
        if queue.is_enabled {
            return;
        }
        let place = &mut queue.place;
        let size = value as u16;
        match (at.offset, at.size) {
            (register::QUEUE_SIZE, 2) if size.is_power_of_two() && size <= *most => {
                place.size = size;
            }
            (register::QUEUE_ENABLE, 2) if value == 1 && is_time => queue.is_enabled = true,
            (register::QUEUE_DESCRIPTORS..register::END, 4 | 8) => set_part(place, at, value),
            _ => {}
        }
    }
}

/// Returns the half of the features that is selected.
fn half(features: u64, selected: u32) -> u64 {
    match selected {
        0 => features & 0xFFFF_FFFF,
        1 => features >> 32,
        _ => 0,
    }
}

/// Reads an address of a queue, or half of it.
fn part(mut place: Place, at: At) -> u64 {
    let whole = *address(&mut place, at.offset);
    match (at.offset % 8, at.size) {
        (0, 8) => whole,
        (0, _) => whole & 0xFFFF_FFFF,
        (4, 4) => whole >> 32,
        _ => 0,
    }
}

/// Writes an address of a queue, or half of it.
fn set_part(place: &mut Place, at: At, value: u64) {
    let whole = address(place, at.offset);
    match (at.offset % 8, at.size) {
        (0, 8) => *whole = value,
        (0, _) => *whole = *whole & !0xFFFF_FFFF | value & 0xFFFF_FFFF,
        (4, 4) => *whole = *whole & 0xFFFF_FFFF | value << 32,
        _ => {}
    }
}

const fn address(place: &mut Place, offset: u64) -> &mut u64 {
    match offset {
        register::QUEUE_USED.. => &mut place.used,
        register::QUEUE_AVAILABLE.. => &mut place.available,
        _ => &mut place.descriptors,
    }
}

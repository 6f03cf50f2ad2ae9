//! The places of the transport's structures, and the capabilities that tell them.

use devices::Place;
use devices::pci::{Capability, Config, Doorbells, Identity, Msix};
use virtio_spec::Id;

use crate::device::Kind;

/// The base address register with the structures, and the one with the interrupts' table.
const STRUCTURES: usize = 0;
pub const TABLE: usize = 2;

/// Bytes of memory for each structure, and for all.
const BYTES: u64 = 4096;
const ALL: u64 = 4 * BYTES;
/// Bytes between the notification registers of two queues.
const NOTIFY: u32 = 4;
/// Bytes of the common structure.
pub const COMMON: u32 = 56;

/// Vendor of virtio devices, and the id of a capability of the vendor's.
const VENDOR: u16 = 0x1AF4;
const VENDOR_CAPABILITY: u8 = 0x09;
/// The first device id. The second one is of a subsystem, which must be at least this.
const FIRST_DEVICE: u16 = 0x1040;
const FIRST_SUBSYSTEM: u32 = 0x40;

/// A structure of the transport. The value is the one in its capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Structure {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
}

impl Structure {
    /// All structures, in the order of their memory.
    const ALL: [Self; 4] = [Self::Common, Self::Isr, Self::Device, Self::Notify];

    /// Returns the structure at a place, and the place in it.
    pub fn at(place: Place) -> Option<(Self, Place)> {
        let structure = Self::ALL.get((place.offset / BYTES) as usize)?;
        let offset = place.offset % BYTES;
        Some((*structure, Place { offset, ..place }))
    }
}

/// Returns the notification registers of the queues.
pub fn doorbells() -> Doorbells {
    let mut all = (0..).step_by(BYTES as usize).zip(Structure::ALL);
    let notify =
        all.find_map(|(start, structure)| (structure == Structure::Notify).then_some(start));
    Doorbells::new(STRUCTURES, notify.unwrap_or(ALL), NOTIFY.into())
}

/// Builds the configuration space of a device with so many bytes of device configuration.
pub fn configuration(kind: &Kind, device_bytes: usize, vectors: u16) -> (Config, Msix) {
    let id: u8 = Id::into(kind.id);
    let mut config = Config::of(Identity {
        vendor: VENDOR,
        device: FIRST_DEVICE + u16::from(id),
        class: kind.class,
        revision: 1,
        subsystem: (FIRST_SUBSYSTEM + u32::from(id)) << 16 | u32::from(VENDOR),
    })
    .with_memory(STRUCTURES, ALL, false)
    .with_memory(TABLE, Msix::BYTES, false);
    for (offset, structure) in (0..).step_by(BYTES as usize).zip(Structure::ALL) {
        let bytes = match structure {
            Structure::Common => COMMON,
            Structure::Isr => 1,
            Structure::Device => device_bytes as u32,
            Structure::Notify => NOTIFY * kind.queues.len() as u32,
        };
        if bytes != 0 {
            config = with_structure(config, structure, offset, bytes);
        }
    }
    Msix::add_to(config, TABLE as u8, vectors)
}

fn with_structure(config: Config, structure: Structure, offset: u32, bytes: u32) -> Config {
    let mut registers = [0; 18];
    let length = match structure {
        Structure::Notify => 18,
        _ => 14,
    };
    registers[0] = length + 2;
    registers[1] = structure as u8;
    registers[2] = STRUCTURES as u8;
    registers[6..10].copy_from_slice(&offset.to_le_bytes());
    registers[10..14].copy_from_slice(&bytes.to_le_bytes());
    registers[14..].copy_from_slice(&NOTIFY.to_le_bytes());
    let capability = Capability {
        id: VENDOR_CAPABILITY,
        registers: &registers[..length.into()],
        writable: &[],
    };
    config.with_capability(capability).0
}

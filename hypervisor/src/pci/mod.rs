//! PCI bus mastering. It is switched off for every function before any memory is donated to the TDX module, because a
//! device's partial write to a private line would poison it.
#![expect(
    unsafe_code,
    reason = "configuration space is device memory or two I/O ports"
)]

use x86_64::instructions::port::Port;

use crate::{firmware::mcfg::Segment, memory};

const COMMAND: u16 = 4;
const BUS_MASTER: u16 = 1 << 2;
const HEADER_TYPE: u16 = 0x0E;
const MULTI_FUNCTION: u16 = 1 << 7;

/// The result of [`stop_bus_masters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Functions that exist.
    pub functions: u32,
    /// Functions whose bus mastering was on and is now off.
    pub stopped: u32,
    /// Functions whose bus-mastering bit did not stay clear.
    pub stubborn: u32,
    /// Segments whose configuration space could not be mapped.
    pub unmapped: u32,
}

/// The address of a function: bus, device, function.
type Address = (u8, u8, u8);

/// 16-bit accesses to the configuration space of one segment.
trait Space {
    fn read(&mut self, at: Address, offset: u16) -> u16;
    fn write(&mut self, at: Address, offset: u16, value: u16);
}

/// Switches bus mastering off on every function of every segment. Without a table of segments, it covers segment 0
/// through the legacy ports.
pub fn stop_bus_masters(segments: &[Segment]) -> Found {
    let mut found = Found::default();
    if segments.is_empty() {
        sweep(&mut Legacy, 0..=255, &mut found);
    }
    for segment in segments {
        const BUS_BYTES: u64 = 1 << 20;
        let start = segment.base + u64::from(segment.first_bus) * BUS_BYTES;
        let buses = u64::from(segment.last_bus.saturating_sub(segment.first_bus)) + 1;
        match memory::window(start, buses * BUS_BYTES) {
            Ok(va) => {
                let mut space = Memory {
                    va,
                    first_bus: segment.first_bus,
                };
                sweep(&mut space, segment.first_bus..=segment.last_bus, &mut found);
            }
            Err(_) => found.unmapped += 1,
        }
    }
    found
}

fn sweep(space: &mut impl Space, buses: core::ops::RangeInclusive<u8>, found: &mut Found) {
    for bus in buses {
        for device in 0..32 {
            for function in 0..8 {
                let at = (bus, device, function);
                if space.read(at, 0) == 0xFFFF {
                    if function == 0 {
                        break;
                    }
                    continue;
                }
                found.functions += 1;
                let command = space.read(at, COMMAND);
                if command & BUS_MASTER != 0 {
                    space.write(at, COMMAND, command & !BUS_MASTER);
                    if space.read(at, COMMAND) & BUS_MASTER == 0 {
                        found.stopped += 1;
                    } else {
                        found.stubborn += 1;
                    }
                }
                if function == 0 && space.read(at, HEADER_TYPE) & MULTI_FUNCTION == 0 {
                    break;
                }
            }
        }
    }
}

/// Configuration space in memory (ECAM).
struct Memory {
    va: u64,
    first_bus: u8,
}

impl Memory {
    fn at(&self, (bus, device, function): Address, offset: u16) -> *mut u16 {
        let bus = u64::from(bus - self.first_bus);
        let place = bus << 20 | u64::from(device) << 15 | u64::from(function) << 12;
        (self.va + place + u64::from(offset)) as *mut u16
    }
}

impl Space for Memory {
    fn read(&mut self, at: Address, offset: u16) -> u16 {
        // SAFETY: the window maps the segment's configuration space, whose reads have no side effect in the header.
        unsafe { self.at(at, offset).read_volatile() }
    }

    fn write(&mut self, at: Address, offset: u16, value: u16) {
        // SAFETY: as above; only the command register is written.
        unsafe { self.at(at, offset).write_volatile(value) }
    }
}

/// Configuration space through ports 0xCF8 and 0xCFC.
struct Legacy;

impl Legacy {
    fn select((bus, device, function): Address, offset: u16) -> u16 {
        let address = 1u32 << 31
            | u32::from(bus) << 16
            | u32::from(device) << 11
            | u32::from(function) << 8
            | u32::from(offset & 0xFC);
        // SAFETY: this program alone uses the address port, on one CPU at a time.
        unsafe { Port::new(0xCF8).write(address) };
        0xCFC + (offset & 3)
    }
}

impl Space for Legacy {
    fn read(&mut self, at: Address, offset: u16) -> u16 {
        // SAFETY: the data port of the address that was just selected.
        unsafe { Port::new(Self::select(at, offset)).read() }
    }

    fn write(&mut self, at: Address, offset: u16, value: u16) {
        // SAFETY: as above.
        unsafe { Port::new(Self::select(at, offset)).write(value) }
    }
}

/// Reads 4 bytes of the configuration space of a function on bus 0. `offset` is a multiple of 4.
#[must_use]
pub fn read_legacy(device: u8, function: u8, offset: u8) -> u32 {
    let port = Legacy::select((0, device, function), offset.into());
    // SAFETY: the data port of the address that was just selected.
    unsafe { Port::new(port).read() }
}

/// Writes one byte to the configuration space of a function on bus 0.
pub fn write_legacy(device: u8, function: u8, offset: u8, value: u8) {
    let port = Legacy::select((0, device, function), offset.into());
    // SAFETY: the data port of the address that was just selected.
    unsafe { Port::new(port).write(value) };
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Fake {
        functions: BTreeMap<Address, (u16, u16)>,
        stuck: Option<Address>,
    }

    impl Space for Fake {
        fn read(&mut self, at: Address, offset: u16) -> u16 {
            match (self.functions.get(&at), offset) {
                (None, _) => 0xFFFF,
                (Some((command, _)), COMMAND) => *command,
                (Some((_, header)), HEADER_TYPE) => *header,
                _ => 0x8086,
            }
        }
        fn write(&mut self, at: Address, offset: u16, value: u16) {
            assert_eq!(offset, COMMAND);
            if self.stuck != Some(at) {
                self.functions.get_mut(&at).unwrap().0 = value;
            }
        }
    }

    #[test]
    fn every_function_loses_its_bus_mastering_and_nothing_else() {
        let mut fake = Fake::default();
        fake.functions.insert((0, 0, 0), (0x107, 0));
        fake.functions.insert((0, 31, 0), (0x003, MULTI_FUNCTION));
        fake.functions.insert((0, 31, 2), (0x407, 0));
        fake.functions.insert((7, 1, 0), (0x006, 1));
        let mut found = Found::default();
        sweep(&mut fake, 0..=255, &mut found);
        assert_eq!((found.functions, found.stopped, found.stubborn), (4, 3, 0));
        assert_eq!(fake.functions[&(0, 0, 0)].0, 0x103);
        assert_eq!(fake.functions[&(0, 31, 0)].0, 0x003);
        assert!(fake.functions.values().all(|(c, _)| c & BUS_MASTER == 0));
    }

    #[test]
    fn a_function_that_does_not_obey_is_counted() {
        let mut fake = Fake::default();
        fake.functions.insert((0, 2, 0), (7, 0));
        fake.stuck = Some((0, 2, 0));
        let mut found = Found::default();
        sweep(&mut fake, 0..=0, &mut found);
        assert_eq!((found.stopped, found.stubborn), (0, 1));
    }
}

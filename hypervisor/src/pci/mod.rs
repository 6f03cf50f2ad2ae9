//! PCI functions before the hypervisor takes the machine: USB controllers are taken from the firmware, and bus mastering
//! is switched off for every function before any memory is donated to the TDX module, because a device's partial write
//! to a private line would poison it.
#![expect(
    unsafe_code,
    reason = "configuration space is device memory or two I/O ports"
)]

mod usb;

use alloc::{format, string::String, vec::Vec};
use core::{fmt, ops::RangeInclusive};

use x86_64::instructions::port::Port;

use crate::{firmware::mcfg::Segment, memory};

const VENDOR: u16 = 0;
const DEVICE: u16 = 2;
const COMMAND: u16 = 4;
const BUS_MASTER: u16 = 1 << 2;
/// Programming interface in bits 15:8, revision in bits 7:0.
const INTERFACE: u16 = 8;
/// Class in bits 15:8, subclass in bits 7:0.
const CLASS: u16 = 0x0A;
const HEADER_TYPE: u16 = 0x0E;
const MULTI_FUNCTION: u16 = 1 << 7;

/// Bridges from the host and to ISA, EISA and MicroChannel have no DMA of their own: in old chipsets the bit is hard-wired.
const HARMLESS_BRIDGES: RangeInclusive<u16> = 0x0600..=0x0603;

/// The result of [`take`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Number of functions that exist.
    pub functions: u32,
    /// Number of functions whose bus mastering was on and is now off.
    pub stopped: u32,
    /// Number of USB controllers that the firmware has handed over.
    pub usb: u32,
    /// Functions that could not be stopped, and segments that could not be reached, one sentence each.
    pub problems: Vec<String>,
}

/// The address of a function in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    bus: u8,
    device: u8,
    function: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// 16-bit accesses to the configuration space of one segment.
trait Space {
    fn read(&mut self, at: Address, offset: u16) -> u16;
    fn write(&mut self, at: Address, offset: u16, value: u16);
}

/// Takes the USB controllers from the firmware and switches bus mastering off, on every function of every segment.
/// Without a table of segments, it covers segment 0 through the legacy ports.
pub fn take(segments: &[Segment]) -> Found {
    let mut found = Found::default();
    if segments.is_empty() {
        sweep(&mut Legacy, 0..=255, 0, &mut found);
    }
    for segment in segments {
        match Memory::of(segment) {
            Ok(mut space) => {
                let buses = segment.first_bus..=segment.last_bus;
                sweep(&mut space, buses, segment.number, &mut found);
            }
            Err(e) => found.problems.push(format!(
                "the devices of PCI segment {} may still write to memory: its configuration space at {:#x} can't be \
                 reached ({e})",
                segment.number, segment.base
            )),
        }
    }
    found
}

fn sweep(space: &mut impl Space, buses: RangeInclusive<u8>, segment: u16, found: &mut Found) {
    for bus in buses {
        for device in 0..32 {
            for function in 0..8 {
                let at = Address {
                    bus,
                    device,
                    function,
                };
                if space.read(at, VENDOR) == 0xFFFF {
                    if function == 0 {
                        break;
                    }
                    continue;
                }
                found.functions += 1;
                // The firmware's driver may need DMA until it has let go.
                match usb::take(space, at) {
                    Some(Ok(())) => found.usb += 1,
                    Some(Err(why)) => found
                        .problems
                        .push(format!("USB controller {segment:04x}:{at}: {why}")),
                    None => {}
                }
                stop(space, at, segment, found);
                if function == 0 && space.read(at, HEADER_TYPE) & MULTI_FUNCTION == 0 {
                    break;
                }
            }
        }
    }
}

/// Switches bus mastering off on a function.
fn stop(space: &mut impl Space, at: Address, segment: u16, found: &mut Found) {
    let command = space.read(at, COMMAND);
    if command & BUS_MASTER == 0 {
        return;
    }
    space.write(at, COMMAND, command & !BUS_MASTER);
    if space.read(at, COMMAND) & BUS_MASTER == 0 {
        found.stopped += 1;
    } else if !HARMLESS_BRIDGES.contains(&space.read(at, CLASS)) {
        found.problems.push(format!(
            "PCI function {segment:04x}:{at} ({:04x}:{:04x}, class {:04x}) keeps its bus mastering on and may write to \
             memory: remove the device",
            space.read(at, VENDOR),
            space.read(at, DEVICE),
            space.read(at, CLASS)
        ));
    }
}

/// Configuration space in memory (ECAM).
struct Memory {
    va: u64,
    first_bus: u8,
}

impl Memory {
    /// Maps a segment's configuration space.
    fn of(segment: &Segment) -> Result<Self, memory::Error> {
        const BUS_BYTES: u64 = 1 << 20;
        let start = segment.base + u64::from(segment.first_bus) * BUS_BYTES;
        let buses = u64::from(segment.last_bus.saturating_sub(segment.first_bus)) + 1;
        Ok(Self {
            va: memory::device(start, buses * BUS_BYTES)?,
            first_bus: segment.first_bus,
        })
    }

    fn at(&self, at: Address, offset: u16) -> *mut u16 {
        let bus = u64::from(at.bus - self.first_bus);
        let place = bus << 20 | u64::from(at.device) << 15 | u64::from(at.function) << 12;
        (self.va + place + u64::from(offset)) as *mut u16
    }
}

impl Space for Memory {
    fn read(&mut self, at: Address, offset: u16) -> u16 {
        // SAFETY: the window maps the segment's configuration space, whose reads have no side effect in the header.
        unsafe { self.at(at, offset).read_volatile() }
    }

    fn write(&mut self, at: Address, offset: u16, value: u16) {
        // SAFETY: as above; only registers that this program may write are.
        unsafe { self.at(at, offset).write_volatile(value) }
    }
}

/// Configuration space through ports 0xCF8 and 0xCFC.
struct Legacy;

impl Legacy {
    fn select(at: Address, offset: u16) -> u16 {
        let address = 1u32 << 31
            | u32::from(at.bus) << 16
            | u32::from(at.device) << 11
            | u32::from(at.function) << 8
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

const fn on_bus_0(device: u8, function: u8) -> Address {
    Address {
        bus: 0,
        device,
        function,
    }
}

/// Reads 4 bytes of the configuration space of a function on bus 0. `offset` is a multiple of 4.
#[must_use]
pub fn read_legacy(device: u8, function: u8, offset: u8) -> u32 {
    let port = Legacy::select(on_bus_0(device, function), offset.into());
    // SAFETY: the data port of the address that was just selected.
    unsafe { Port::new(port).read() }
}

/// Writes one byte to the configuration space of a function on bus 0.
pub fn write_legacy(device: u8, function: u8, offset: u8, value: u8) {
    let port = Legacy::select(on_bus_0(device, function), offset.into());
    // SAFETY: the data port of the address that was just selected.
    unsafe { Port::new(port).write(value) };
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeMap;

    use super::*;

    pub(super) const fn at(bus: u8, device: u8, function: u8) -> Address {
        Address {
            bus,
            device,
            function,
        }
    }

    /// A segment with these functions: command, class, header type.
    #[derive(Default)]
    struct Fake {
        functions: BTreeMap<Address, [u16; 3]>,
        stuck: Vec<Address>,
    }

    impl Space for Fake {
        fn read(&mut self, at: Address, offset: u16) -> u16 {
            let Some([command, class, header]) = self.functions.get(&at) else {
                return 0xFFFF;
            };
            match offset {
                COMMAND => *command,
                CLASS => *class,
                HEADER_TYPE => *header,
                DEVICE => 0x1237,
                _ => 0x8086,
            }
        }
        fn write(&mut self, at: Address, offset: u16, value: u16) {
            assert_eq!(offset, COMMAND);
            if !self.stuck.contains(&at) {
                self.functions.get_mut(&at).unwrap()[0] = value;
            }
        }
    }

    #[test]
    fn every_function_loses_its_bus_mastering_and_nothing_else() {
        let mut fake = Fake::default();
        let functions = [
            (at(0, 0, 0), [0x107, 0x0600, 0]),
            (at(0, 31, 0), [0x003, 0x0601, MULTI_FUNCTION]),
            (at(0, 31, 2), [0x407, 0x0106, 0]),
            (at(7, 1, 0), [0x006, 0x0200, 1]),
        ];
        fake.functions.extend(functions);
        let mut found = Found::default();
        sweep(&mut fake, 0..=255, 0, &mut found);
        assert_eq!((found.functions, found.stopped), (4, 3));
        assert!(found.problems.is_empty());
        assert_eq!(fake.functions[&at(0, 0, 0)][0], 0x103);
        assert_eq!(fake.functions[&at(0, 31, 0)][0], 0x003);
        assert!(fake.functions.values().all(|f| f[0] & BUS_MASTER == 0));
    }

    #[test]
    fn a_function_that_does_not_obey_is_named_unless_it_is_a_harmless_bridge() {
        let mut fake = Fake::default();
        // A 440FX's host bridge and PIIX3's ISA bridge, and a disk controller.
        let functions = [
            (at(0, 0, 0), [7, 0x0600, 0]),
            (at(0, 1, 0), [7, 0x0601, 0]),
            (at(2, 3, 0), [7, 0x0104, 0]),
        ];
        fake.functions.extend(functions);
        fake.stuck = functions.map(|(at, _)| at).to_vec();
        let mut found = Found::default();
        sweep(&mut fake, 0..=255, 1, &mut found);
        assert_eq!(found.stopped, 0);
        assert_eq!(
            found.problems,
            [
                "PCI function 0001:02:03.0 (8086:1237, class 0104) keeps its bus mastering on and may write to memory: \
                 remove the device"
            ]
        );
    }
}

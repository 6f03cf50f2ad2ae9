//! PCI functions before the hypervisor takes the machine: USB controllers are taken from the firmware, and bus mastering
//! is switched off for every function before any memory is donated to the TDX module, because a device's partial write
//! to a private line would poison it. Then the inventory of the functions is taken.

mod space;
mod usb;

use alloc::{format, string::String, vec::Vec};

use io::{Function, Inventory, Space, Stopped, scan};
use sync::{IrqLock, Once};

pub use self::space::{Configuration, read_legacy, write_legacy};
use crate::firmware::{mcfg::Segment, spcr::Place};

/// The machine's PCI functions.
pub struct Pci {
    /// Access to their configuration space.
    pub space: Configuration,
    /// The functions, their groups and owners.
    pub inventory: IrqLock<Inventory>,
}

/// The place of a device's first register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Its physical address, or its I/O port.
    pub address: u64,
    /// True for an I/O port.
    pub is_port: bool,
}

impl From<Place> for Location {
    fn from(place: Place) -> Self {
        match place {
            Place::Io(port) => Self {
                address: port.into(),
                is_port: true,
            },
            Place::Memory { pa, .. } => Self {
                address: pa,
                is_port: false,
            },
        }
    }
}

static PCI: Once<Pci> = Once::new();

/// Returns the machine's PCI functions; `None` before [`take`].
#[must_use]
pub fn get() -> Option<&'static Pci> {
    PCI.get()
}

/// The result of [`take`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Number of functions that exist.
    pub functions: usize,
    /// Number of functions whose bus mastering was on and is now off.
    pub stopped: u32,
    /// Number of USB controllers that the firmware has handed over.
    pub usb: u32,
    /// Functions that could not be stopped, and functions and segments that could not be reached, one sentence each.
    pub problems: Vec<String>,
}

/// Takes the USB controllers from the firmware and switches bus mastering off, on every function of every segment, and
/// takes the inventory. Without a table of segments, it covers segment 0 through the legacy ports. `console` is the place
/// of the console's port, which must answer at every moment.
pub fn take(segments: &[Segment], console: Option<Location>) -> Found {
    let mut found = Found::default();
    let space = Configuration::map(segments, &mut found.problems);
    let mut functions = Vec::new();
    for reach in space.reach() {
        let buses = reach.first_bus..=reach.last_bus;
        functions.extend(scan::segment(&space, reach.segment, buses));
    }
    quiet(&space, &functions, &mut found);
    let is_needed = |function: &Function| console.is_some_and(|place| may_have(function, place));
    let inventory = Inventory::new(&space, functions, is_needed);
    found.problems.extend(inventory.volume_managers().map(|at| {
        format!(
            "Intel VMD at {at} hides the drives behind it from the host: disable VMD in the firmware's setup to use them"
        )
    }));
    PCI.call_once(|| Pci {
        space,
        inventory: IrqLock::new(inventory),
    });
    found
}

/// Takes the functions from the firmware and stops them.
fn quiet(space: &impl Space, functions: &[Function], found: &mut Found) {
    found.functions = functions.len();
    for function in functions {
        let at = function.address;
        // The firmware's driver may need DMA until it has let go.
        match usb::take(space, function) {
            Some(Ok(())) => found.usb += 1,
            Some(Err(why)) => found.problems.push(format!("USB controller {at}: {why}")),
            None => {}
        }
        match function.stop(space) {
            Stopped::WasOff => {}
            Stopped::Now => found.stopped += 1,
            Stopped::Refused if function.is_harmless_bridge() => {}
            Stopped::Refused => found.problems.push(format!(
                "PCI function {at} ({:04x}:{:04x}, class {:04x}) keeps its bus mastering on and may write to memory: \
                 remove the device",
                function.identity.vendor,
                function.identity.device,
                function.identity.class.code()
            )),
        }
    }
}

/// Returns true if the function may have a serial port at `place`.
fn may_have(function: &Function, Location { address, is_port }: Location) -> bool {
    // Its registers are not measured. The largest register of a serial port's function is assumed.
    let reach = if is_port { 0x100 } else { 0x1_0000 };
    let mut bars = function.bars.iter();
    bars.any(|bar| {
        (bar.kind == io::BarKind::Io) == is_port
            && (bar.address..bar.address.saturating_add(reach)).contains(&address)
    })
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{cell::RefCell, collections::BTreeMap};

    use io::Address;

    use super::*;

    pub(super) const fn at(bus: u8, device: u8, function: u8) -> Address {
        Address {
            segment: 1,
            bus,
            device,
            function,
        }
    }

    /// Functions whose command register can be written, or is stuck.
    #[derive(Default)]
    pub(super) struct Fake {
        pub words: RefCell<BTreeMap<(Address, u16), u32>>,
        pub stuck: Vec<Address>,
        /// A register, and the bits of it that firmware clears when it is written.
        pub answered: Option<(Address, u16, u32)>,
    }

    impl Fake {
        pub fn add(&self, at: Address, command: u32, class: u32) {
            let mut words = self.words.borrow_mut();
            let registers = [(0, 0x1237_8086), (4, command), (8, class << 8), (0xC, 0)];
            words.extend(registers.map(|(offset, value)| ((at, offset), value)));
        }

        pub fn get(&self, at: Address, offset: u16) -> u32 {
            self.words.borrow().get(&(at, offset)).copied().unwrap_or(0)
        }
    }

    impl Space for Fake {
        fn read(&self, at: Address, offset: u16) -> u32 {
            let words = self.words.borrow();
            match words.contains_key(&(at, 0)) {
                true => words.get(&(at, offset)).copied().unwrap_or(0),
                false => u32::MAX,
            }
        }
        fn write(&self, at: Address, offset: u16, value: u32) {
            let value = match self.answered {
                Some((place, register, bits)) if (place, register) == (at, offset) => value & !bits,
                _ => value,
            };
            if !self.stuck.contains(&at) {
                self.words.borrow_mut().insert((at, offset), value);
            }
        }
        fn write16(&self, at: Address, offset: u16, value: u16) {
            let shift = offset % 4 * 8;
            let old = self.read(at, offset & !3) & !(0xFFFF << shift);
            self.write(at, offset & !3, old | u32::from(value) << shift);
        }
        fn write8(&self, at: Address, offset: u16, value: u8) {
            let shift = offset % 4 * 8;
            let old = self.read(at, offset & !3) & !(0xFF << shift);
            self.write(at, offset & !3, old | u32::from(value) << shift);
        }
    }

    fn found(fake: &Fake) -> Found {
        let mut found = Found::default();
        quiet(fake, &scan::segment(fake, 1, 0..=255), &mut found);
        found
    }

    #[test]
    fn every_function_loses_its_bus_mastering_and_nothing_else() {
        let fake = Fake::default();
        fake.add(at(0, 0, 0), 0x107, 0x06_0000);
        fake.add(at(0, 31, 0), 0x003, 0x06_0100);
        fake.add(at(0, 31, 2), 0x407, 0x01_0601);
        fake.add(at(7, 1, 0), 0x006, 0x02_0000);
        fake.write(at(0, 31, 0), 0xC, 1 << 23);
        let found = found(&fake);
        assert_eq!((found.functions, found.stopped), (4, 3));
        assert!(found.problems.is_empty());
        assert_eq!(fake.get(at(0, 0, 0), 4), 0x103);
        assert_eq!(fake.get(at(0, 31, 0), 4), 0x003);
        assert_eq!(fake.get(at(0, 31, 2), 4), 0x403);
    }

    #[test]
    fn a_function_that_does_not_obey_is_named_unless_it_is_a_harmless_bridge() {
        let mut fake = Fake::default();
        // A 440FX's host bridge and PIIX3's ISA bridge, and a disk controller.
        fake.add(at(0, 0, 0), 7, 0x06_0000);
        fake.add(at(0, 1, 0), 7, 0x06_0100);
        fake.add(at(2, 3, 0), 7, 0x01_0400);
        fake.stuck = [at(0, 0, 0), at(0, 1, 0), at(2, 3, 0)].into();
        let found = found(&fake);
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

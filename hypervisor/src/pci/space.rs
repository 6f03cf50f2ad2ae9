//! Configuration space: in memory (ECAM), or through ports 0xCF8 and 0xCFC.
#![expect(
    unsafe_code,
    reason = "configuration space is device memory or two I/O ports"
)]

use alloc::{format, string::String, vec::Vec};

use io::{Address, Space};
use sync::IrqLock;
use x86_64::instructions::port::Port;

use crate::{firmware::mcfg::Segment, memory};

/// The configuration space of the machine.
#[derive(Debug)]
pub struct Configuration {
    windows: Vec<Window>,
    /// True if the firmware names no configuration space in memory, and the ports reach segment 0.
    by_ports: bool,
}

/// The configuration space of some buses of a segment, in memory.
#[derive(Debug)]
struct Window {
    segment: u16,
    first_bus: u8,
    last_bus: u8,
    va: u64,
}

/// Buses of a segment whose configuration space is within reach.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// The segment.
    pub segment: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
}

impl Configuration {
    /// Maps the configuration space of `segments`. Adds a sentence to `problems` for each one that can't be reached.
    pub fn map(segments: &[Segment], problems: &mut Vec<String>) -> Self {
        let mut windows = Vec::new();
        for segment in segments {
            match Window::of(segment) {
                Ok(window) => windows.push(window),
                Err(e) => problems.push(format!(
                    "the devices of PCI segment {} may still write to memory: its configuration space at {:#x} can't \
                     be reached ({e})",
                    segment.number, segment.base
                )),
            }
        }
        Self {
            windows,
            by_ports: segments.is_empty(),
        }
    }

    /// Returns the buses that are within reach.
    pub fn reach(&self) -> impl Iterator<Item = Reach> {
        let by_ports = self.by_ports.then_some(Reach {
            segment: 0,
            first_bus: 0,
            last_bus: 255,
        });
        let windows = self.windows.iter().map(|window| Reach {
            segment: window.segment,
            first_bus: window.first_bus,
            last_bus: window.last_bus,
        });
        windows.chain(by_ports)
    }

    /// Returns the place of a register in memory.
    fn place(&self, at: Address, offset: u16) -> Option<u64> {
        let mut windows = self.windows.iter();
        let window = windows.find(|window| {
            window.segment == at.segment && (window.first_bus..=window.last_bus).contains(&at.bus)
        })?;
        let bus = u64::from(at.bus - window.first_bus);
        let function = u64::from(at.device & 0x1F) << 15 | u64::from(at.function & 7) << 12;
        Some(window.va + (bus << 20 | function | u64::from(offset & 0xFFF)))
    }

    /// Returns the ports' number of a register.
    fn port(&self, at: Address, offset: u16) -> Option<u32> {
        (self.by_ports && at.segment == 0 && offset < 0x100).then(|| number(at, offset as u8))
    }
}

impl Window {
    fn of(segment: &Segment) -> Result<Self, memory::Error> {
        const BUS_BYTES: u64 = 1 << 20;
        let start = segment.base + u64::from(segment.first_bus) * BUS_BYTES;
        let buses = u64::from(segment.last_bus.saturating_sub(segment.first_bus)) + 1;
        Ok(Self {
            segment: segment.number,
            first_bus: segment.first_bus,
            last_bus: segment.last_bus,
            va: memory::device(start, buses * BUS_BYTES)?,
        })
    }
}

impl Space for Configuration {
    fn read(&self, at: Address, offset: u16) -> u32 {
        if let Some(place) = self.place(at, offset & !3) {
            // SAFETY: the window maps the segment's configuration space; callers read registers without side effects.
            unsafe { (place as *const u32).read_volatile() }
        } else if let Some(number) = self.port(at, offset) {
            let _guard = PORTS.lock();
            // SAFETY: the data port of the register that was just selected.
            unsafe { Port::new(select(number)).read() }
        } else {
            u32::MAX
        }
    }

    fn write(&self, at: Address, offset: u16, value: u32) {
        if let Some(place) = self.place(at, offset & !3) {
            // SAFETY: as for `read`; only registers that this program may write are.
            unsafe { (place as *mut u32).write_volatile(value) }
        } else if let Some(number) = self.port(at, offset) {
            let _guard = PORTS.lock();
            // SAFETY: as for `read`.
            unsafe { Port::new(select(number)).write(value) }
        }
    }

    fn write16(&self, at: Address, offset: u16, value: u16) {
        if let Some(place) = self.place(at, offset & !1) {
            // SAFETY: as for `write`.
            unsafe { (place as *mut u16).write_volatile(value) }
        } else if let Some(number) = self.port(at, offset) {
            let _guard = PORTS.lock();
            // SAFETY: as for `write`.
            unsafe { Port::new(select(number) + (offset & 2)).write(value) }
        }
    }

    fn write8(&self, at: Address, offset: u16, value: u8) {
        if let Some(place) = self.place(at, offset) {
            // SAFETY: as for `write`.
            unsafe { (place as *mut u8).write_volatile(value) }
        } else if let Some(number) = self.port(at, offset) {
            let _guard = PORTS.lock();
            // SAFETY: as for `write`.
            unsafe { Port::new(select(number) + (offset & 3)).write(value) }
        }
    }
}

/// The two ports, which are used one access at a time.
static PORTS: IrqLock<()> = IrqLock::new(());

/// Returns what the address port takes to select a register.
fn number(at: Address, offset: u8) -> u32 {
    1 << 31 | u32::from(at.requester()) << 8 | u32::from(offset & 0xFC)
}

/// Selects a register. Returns the data port of its first byte.
fn select(number: u32) -> u16 {
    // SAFETY: this program alone uses the address port, one access at a time.
    unsafe { Port::new(0xCF8).write(number) };
    0xCFC
}

const fn on_bus_0(device: u8, function: u8) -> Address {
    Address {
        segment: 0,
        bus: 0,
        device,
        function,
    }
}

/// Reads 4 bytes of the configuration space of a function on bus 0 through the ports. `offset` is a multiple of 4.
#[must_use]
pub fn read_legacy(device: u8, function: u8, offset: u8) -> u32 {
    let _guard = PORTS.lock();
    let port = select(number(on_bus_0(device, function), offset));
    // SAFETY: the data port of the register that was just selected.
    unsafe { Port::new(port).read() }
}

/// Writes one byte to the configuration space of a function on bus 0 through the ports, to reset the machine.
pub fn write_legacy(device: u8, function: u8, offset: u8, value: u8) {
    // The lock's holder may be a CPU that no longer runs.
    let _guard = PORTS.try_lock();
    let port = select(number(on_bus_0(device, function), offset));
    // SAFETY: as above.
    unsafe { Port::new(port + u16::from(offset & 3)).write(value) };
}

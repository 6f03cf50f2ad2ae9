//! The devices of a TD: small models behind a trait, reached through ports and memory-mapped registers.
//!
//! A device knows neither the calling vCPU nor the host. It turns each access into a value or an [`Effect`], which the
//! caller carries out. Each device has its own lock, taken only for accesses to that device. An access to a port
//! without a device costs one comparison.

mod cmos;
mod io_apic;
mod pci;
mod pm;
mod pvpanic;
mod uart;

use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use spin::Mutex;

pub use cmos::Cmos;
pub use io_apic::{IoApic, Message, Trigger};
pub use pci::Pci;
use pci::Window;
pub use pm::{Power, PowerManagement};
pub use uart::Uart;

/// The location of an access: the offset from the device's first register, and the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the first register.
    pub offset: u64,
    /// Size of the access: 1, 2, 4 or 8 bytes.
    pub size: u8,
}

/// The current time, as devices need it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds since a fixed point in time; never decreases.
    pub monotonic_us: u64,
    /// Seconds since 1970-01-01 00:00 UTC.
    pub unix_seconds: u64,
}

/// An action that a device requests from its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// No action.
    None,
    /// Write a byte to the TD's console.
    Output(u8),
    /// Power off or reset the TD.
    Power(Power),
    /// The guest's kernel has panicked.
    Panicked,
}

/// A device.
pub trait Device: fmt::Debug + Send {
    /// Reads a register. A location without a register reads as all ones.
    fn read(&mut self, place: Place, now: Now) -> u64;

    /// Writes the low `place.size` bytes of `value` to a register. Ignored if there is no register.
    fn write(&mut self, place: Place, value: u64, now: Now) -> Effect;
}

/// Returns the value of a read that no device answers.
#[must_use]
pub const fn open_bus(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * size as u32)
}

/// The devices of one TD.
#[derive(Debug)]
pub struct Devices {
    /// The serial port.
    pub uart: Mutex<Uart>,
    /// The real-time clock.
    pub cmos: Mutex<Cmos>,
    /// The power-management registers.
    pub pm: Mutex<PowerManagement>,
    /// The interrupt controller that turns lines into messages.
    pub io_apic: Mutex<IoApic>,
    /// The PCI bus.
    pub pci: Mutex<Pci>,
    /// [`Pci::window`] after the last write to the bus: the address of the memory-mapped configuration space.
    window: AtomicU64,
}

/// The ports of a PC's interval timer.
const NO_TIMER: u16 = 0x40;
const NO_TIMER_LAST: u16 = 0x43;
/// The first port of the bus, and the reset-control register among its ports.
const PCI: u16 = pci::ADDRESS;
const RESET: u16 = pm::RESET_CONTROL - PCI;

/// The destination of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Uart(u16),
    Cmos(u16),
    Pm(u16),
    /// The bus; offset [`RESET`] is the reset-control register.
    Pci(u16),
    /// The keyboard controller's command register, its only emulated register. The status reads as all ones, so guests
    /// detect no controller.
    Keyboard,
    /// The port where a kernel reports a panic.
    Panic,
    /// The interval timer, which is absent: its counters read as zero. Linux detects this from the first byte. It would
    /// read an open bus 100,000 times.
    NoTimer,
}

impl Port {
    /// Returns the device at a port, and the offset in it.
    const fn of(port: u16) -> Option<Self> {
        Some(match port {
            uart::BASE..=uart::LAST => Self::Uart(port - uart::BASE),
            cmos::INDEX..=cmos::DATA => Self::Cmos(port - cmos::INDEX),
            pm::BASE..=pm::LAST => Self::Pm(port - pm::BASE),
            pm::KEYBOARD_COMMAND => Self::Keyboard,
            pci::ADDRESS..=pci::DATA_LAST => Self::Pci(port - PCI),
            pvpanic::PORT => Self::Panic,
            NO_TIMER..=NO_TIMER_LAST => Self::NoTimer,
            _ => return None,
        })
    }
}

impl Devices {
    /// Creates the devices of a TD with these memory ranges.
    #[must_use]
    pub fn new(memory: impl IntoIterator<Item = Range<u64>>) -> Self {
        Self {
            uart: Mutex::default(),
            cmos: Mutex::new(Cmos::new(memory)),
            pm: Mutex::default(),
            io_apic: Mutex::default(),
            pci: Mutex::default(),
            window: AtomicU64::new(0),
        }
    }

    /// Executes IN of 1, 2 or 4 bytes. Returns `None` if no device is there, which the guest sees as [`open_bus`]. An
    /// access that reaches beyond the device's last register is an access to the first one alone.
    #[inline]
    pub fn input(&self, port: u16, size: u8, now: impl FnOnce() -> Now) -> Option<u64> {
        Some(self.read(Port::of(port)?, size, now()))
    }

    /// Executes OUT of 1, 2 or 4 bytes. Returns `None` if no device is there.
    #[inline]
    pub fn output(
        &self,
        port: u16,
        size: u8,
        value: u64,
        now: impl FnOnce() -> Now,
    ) -> Option<Effect> {
        Some(self.write(Port::of(port)?, size, value, now()))
    }

    /// Not inlined into [`Self::input`], so that a port without a device stays cheap.
    #[inline(never)]
    fn read(&self, port: Port, size: u8, now: Now) -> u64 {
        let place = |offset: u16| Place {
            offset: offset.into(),
            size,
        };
        let value = match port {
            Port::Uart(offset) => self.uart.lock().read(place(offset), now),
            Port::Cmos(offset) => self.cmos.lock().read(place(offset), now),
            Port::Pm(offset) => self.pm.lock().read(place(offset), now),
            Port::Pci(RESET) | Port::NoTimer => 0,
            Port::Pci(offset) => self.pci.lock().read(place(offset), now),
            Port::Panic => pvpanic::PANICKED.into(),
            Port::Keyboard => u64::MAX,
        };
        value & open_bus(size)
    }

    #[inline(never)]
    fn write(&self, port: Port, size: u8, value: u64, now: Now) -> Effect {
        let value = value & open_bus(size);
        let place = |offset: u16| Place {
            offset: offset.into(),
            size,
        };
        match port {
            Port::Uart(offset) => self.uart.lock().write(place(offset), value, now),
            Port::Cmos(offset) => self.cmos.lock().write(place(offset), value, now),
            Port::Pm(offset) => self.pm.lock().write(place(offset), value, now),
            Port::Pci(RESET) => pm::reset(pm::RESET_CONTROL, value as u8),
            Port::Pci(offset) => {
                let mut pci = self.pci.lock();
                let effect = pci.write(place(offset), value, now);
                self.note_window(&pci);
                effect
            }
            Port::Keyboard => pm::reset(pm::KEYBOARD_COMMAND, value as u8),
            Port::Panic => pvpanic::write(value as u8),
            Port::NoTimer => Effect::None,
        }
    }

    /// Reads a memory-mapped register. Returns `None` if no device is there.
    pub fn load(&self, gpa: u64, size: u8, now: Now) -> Option<u64> {
        let value = match self.registers_at(gpa)? {
            Registers::IoApic(offset) => self.io_apic.lock().read(Place { offset, size }, now),
            Registers::Pci(offset) => self.pci.lock().load(Place { offset, size }),
        };
        Some(value & open_bus(size))
    }

    /// Writes a memory-mapped register. Returns `None` if no device is there.
    pub fn store(&self, gpa: u64, size: u8, value: u64, now: Now) -> Option<Effect> {
        let value = value & open_bus(size);
        Some(match self.registers_at(gpa)? {
            Registers::IoApic(offset) => {
                let place = Place { offset, size };
                self.io_apic.lock().write(place, value, now)
            }
            Registers::Pci(offset) => {
                let mut pci = self.pci.lock();
                pci.store(Place { offset, size }, value);
                self.note_window(&pci);
                Effect::None
            }
        })
    }

    fn registers_at(&self, gpa: u64) -> Option<Registers> {
        match gpa.checked_sub(io_apic::BASE) {
            Some(offset) if offset < io_apic::BYTES => Some(Registers::IoApic(offset)),
            _ => Window(self.window.load(Relaxed))
                .offset(gpa)
                .map(Registers::Pci),
        }
    }

    fn note_window(&self, pci: &Pci) {
        self.window.store(pci.window().0, Relaxed);
    }

    /// Moves bytes of `input` to the serial port as long as it has room, and passes a change of its interrupt line to the
    /// interrupt controller. Returns the message to send, if any.
    pub fn feed_uart(&self, input: impl Fn() -> Option<u8>) -> Option<Message> {
        let mut uart = self.uart.lock();
        while uart.has_room()
            && let Some(byte) = input()
        {
            uart.receive(byte);
        }
        let (line, raised) = uart.line_change()?;
        // The port stays locked, so that changes arrive in their order.
        self.io_apic.lock().set_line(line, raised)
    }
}

/// The destination of an MMIO access, with the offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Registers {
    IoApic(u64),
    Pci(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_without_a_device_is_an_open_bus() {
        let devices = Devices::new([]);
        assert_eq!(devices.input(0x80, 1, Now::default), None);
        assert_eq!(devices.output(0x80, 1, 7, Now::default), None);
        assert_eq!(
            [1, 2, 4, 8].map(open_bus),
            [0xFF, 0xFFFF, 0xFFFF_FFFF, u64::MAX]
        );
    }

    #[test]
    fn the_interval_timers_counters_stand_still_at_zero() {
        let devices = Devices::new([]);
        assert_eq!(
            devices.output(0x43, 1, 0xB0, Now::default),
            Some(Effect::None)
        );
        assert_eq!(devices.input(0x42, 1, Now::default), Some(0));
    }

    #[test]
    fn nobody_finds_a_keyboard_controller_though_it_resets() {
        let devices = Devices::new([]);
        assert_eq!(devices.input(0x64, 1, Now::default), Some(0xFF));
        assert_eq!(devices.input(0x60, 1, Now::default), None);
        let reset = Some(Effect::Power(Power::Reset));
        assert_eq!(devices.output(0x64, 1, 0xFE, Now::default), reset);
        assert_eq!(
            devices.output(0x64, 1, 0xAD, Now::default),
            Some(Effect::None)
        );
    }

    #[test]
    fn reset_control_is_a_byte_among_the_ports_of_the_bus() {
        let devices = Devices::new([]);
        let output = |port, size, value| devices.output(port, size, value, Now::default);
        assert_eq!(output(0xCF8, 4, 0x8000_0600), Some(Effect::None));
        assert_eq!(devices.input(0xCF8, 4, Now::default), Some(0x8000_0600));
        assert_eq!(output(0xCF9, 1, 6), Some(Effect::Power(Power::Reset)));
    }

    #[test]
    fn the_bus_has_its_registers_in_memory_once_the_guest_says_where() {
        let devices = Devices::new([]);
        let load = |gpa| devices.load(gpa, 4, Now::default());
        assert_eq!(load(0xB000_0000), None);
        devices.output(0xCF8, 4, 0x8000_0060, Now::default);
        devices.output(0xCFC, 4, 0xB000_0001, Now::default);
        assert_eq!(load(0xB000_0000), Some(0x29C0_8086));
        assert_eq!(load(0xB000_1000), Some(0xFFFF_FFFF));
        // Switched off again through its own memory-mapped register.
        let stored = devices.store(0xB000_0060, 4, 0, Now::default());
        assert_eq!(stored, Some(Effect::None));
        assert_eq!(load(0xB000_0000), None);
        assert!(load(io_apic::BASE).is_some());
    }

    #[test]
    fn a_wide_read_of_a_narrow_device_is_cut_to_its_size() {
        let devices = Devices::new([]);
        for port in 0..=u16::MAX {
            for size in [1, 2, 4] {
                if let Some(value) = devices.input(port, size, Now::default) {
                    assert_eq!(value & !open_bus(size), 0, "{port:#x}");
                }
            }
        }
    }

    #[test]
    fn a_byte_received_becomes_a_message_once_the_guest_asks_for_it() {
        let devices = Devices::new([]);
        let message = |line: u8| {
            devices.uart.lock().receive(line);
            devices.feed_uart(|| None)
        };
        assert_eq!(message(b'a'), None, "the guest enabled no interrupt");
        devices.io_apic.lock().program(4, 3 << 56 | 0x31);
        devices.output(uart::BASE + 1, 1, 1, Now::default);
        let sent = devices.feed_uart(|| None).unwrap();
        assert_eq!((sent.vector, sent.destination), (0x31, 3));
        assert_eq!(message(b'b'), None, "the line is up since before");
        for byte in *b"ab" {
            assert_eq!(
                devices.input(uart::BASE, 1, Now::default),
                Some(byte.into())
            );
        }
        assert_eq!(devices.feed_uart(|| None), None);
        assert!(message(b'c').is_some());
    }
}

//! The devices that a TD sees: small models behind a trait, reached by ports and by memory-mapped registers.
//!
//! A device knows neither the vCPU that asks nor the host. What it is told, it turns into an answer and an [`Effect`], which
//! the caller carries out. Each has a lock of its own, taken only by who really reaches it: a port where no device is costs
//! a comparison.

mod cmos;
mod io_apic;
mod pm;
mod pvpanic;
mod uart;

use core::fmt;

use spin::Mutex;

pub use cmos::Cmos;
pub use io_apic::{IoApic, Message, Trigger};
pub use pm::{Power, PowerManagement};
pub use uart::Uart;

/// How much of a device is reached, and where: a register's offset from the device's first, and 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the first register.
    pub offset: u64,
    /// 1, 2, 4 or 8 bytes.
    pub size: u8,
}

/// The time as devices need it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds since some moment; never goes back.
    pub monotonic_us: u64,
    /// Seconds since 1970-01-01 00:00 UTC.
    pub unix_seconds: u64,
}

/// What a device wants to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A byte goes to who watches the TD's console.
    Output(u8),
    /// The machine goes off, or starts anew.
    Power(Power),
    /// The guest's kernel can't go on.
    Panicked,
}

/// A device.
pub trait Device: fmt::Debug + Send {
    /// Reads a register. What is no register reads as all ones.
    fn read(&mut self, place: Place, now: Now) -> u64;

    /// Writes a register; of `value` only `place.size` bytes count. What is no register is ignored.
    fn write(&mut self, place: Place, value: u64, now: Now) -> Effect;

    /// The interrupt line, if the device has one: its number and whether it is raised.
    fn line(&self) -> Option<(u8, bool)> {
        None
    }
}

/// The value of a read that no device answers.
#[must_use]
pub const fn open_bus(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * size as u32)
}

/// The devices of one TD.
#[derive(Debug, Default)]
pub struct Devices {
    /// The serial port.
    pub uart: Mutex<Uart>,
    /// The clock.
    pub cmos: Mutex<Cmos>,
    /// The power-management registers.
    pub pm: Mutex<PowerManagement>,
    /// The interrupt controller that turns lines into messages.
    pub io_apic: Mutex<IoApic>,
}

/// The ports of a PC's interval timer.
const NO_TIMER: u16 = 0x40;
const NO_TIMER_LAST: u16 = 0x43;

/// Where a port leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Uart(u16),
    Cmos(u16),
    Pm(u16),
    /// The reset-control register, and the keyboard controller's command register.
    Reset(u16),
    /// Where a kernel says that it has panicked.
    Panic,
    /// The interval timer's, which is not there: its counters read as zero. Linux tells by the first byte that they are no
    /// timer, and would ask an open bus 100,000 times.
    NoTimer,
}

impl Port {
    /// The device at a port, and the offset in it.
    const fn of(port: u16) -> Option<Self> {
        Some(match port {
            uart::BASE..=uart::LAST => Self::Uart(port - uart::BASE),
            cmos::INDEX..=cmos::DATA => Self::Cmos(port - cmos::INDEX),
            pm::BASE..=pm::LAST => Self::Pm(port - pm::BASE),
            pm::RESET_CONTROL | pm::KEYBOARD_COMMAND => Self::Reset(port),
            pvpanic::PORT => Self::Panic,
            NO_TIMER..=NO_TIMER_LAST => Self::NoTimer,
            _ => return None,
        })
    }
}

impl Devices {
    /// IN of 1, 2 or 4 bytes; `None` when no device is there, which the guest sees as [`open_bus`]. An access that reaches
    /// beyond the device's last register is an access to its first.
    #[inline]
    pub fn input(&self, port: u16, size: u8, now: impl FnOnce() -> Now) -> Option<u64> {
        let place = |offset: u16| Place {
            offset: offset.into(),
            size,
        };
        let value = match Port::of(port)? {
            Port::Uart(offset) => self.uart.lock().read(place(offset), now()),
            Port::Cmos(offset) => self.cmos.lock().read(place(offset), now()),
            Port::Pm(offset) => self.pm.lock().read(place(offset), now()),
            Port::Panic => pvpanic::PANICKED.into(),
            Port::Reset(_) | Port::NoTimer => 0,
        };
        Some(value & open_bus(size))
    }

    /// OUT of 1, 2 or 4 bytes; `None` when no device is there.
    #[inline]
    pub fn output(
        &self,
        port: u16,
        size: u8,
        value: u64,
        now: impl FnOnce() -> Now,
    ) -> Option<Effect> {
        let value = value & open_bus(size);
        let place = |offset: u16| Place {
            offset: offset.into(),
            size,
        };
        Some(match Port::of(port)? {
            Port::Uart(offset) => self.uart.lock().write(place(offset), value, now()),
            Port::Cmos(offset) => self.cmos.lock().write(place(offset), value, now()),
            Port::Pm(offset) => self.pm.lock().write(place(offset), value, now()),
            Port::Reset(port) => pm::reset(port, value as u8),
            Port::Panic => pvpanic::write(value as u8),
            Port::NoTimer => Effect::None,
        })
    }

    /// Reads memory-mapped registers; `None` when no device is there.
    pub fn load(&self, gpa: u64, size: u8, now: Now) -> Option<u64> {
        let place = io_apic_place(gpa, size)?;
        Some(self.io_apic.lock().read(place, now) & open_bus(size))
    }

    /// Writes memory-mapped registers; `None` when no device is there.
    pub fn store(&self, gpa: u64, size: u8, value: u64, now: Now) -> Option<Effect> {
        let place = io_apic_place(gpa, size)?;
        let value = value & open_bus(size);
        Some(self.io_apic.lock().write(place, value, now))
    }

    /// Shows the interrupt controller how the devices' lines are; the message that comes of it, if any.
    pub fn route_lines(&self) -> Option<Message> {
        let (line, raised) = self.uart.lock().line()?;
        self.io_apic.lock().set_line(line, raised)
    }
}

fn io_apic_place(gpa: u64, size: u8) -> Option<Place> {
    let offset = gpa.checked_sub(io_apic::BASE)?;
    (offset < io_apic::BYTES).then_some(Place { offset, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_without_a_device_is_an_open_bus() {
        let devices = Devices::default();
        assert_eq!(devices.input(0x80, 1, Now::default), None);
        assert_eq!(devices.output(0x80, 1, 7, Now::default), None);
        assert_eq!(
            [1, 2, 4, 8].map(open_bus),
            [0xFF, 0xFFFF, 0xFFFF_FFFF, u64::MAX]
        );
    }

    #[test]
    fn the_interval_timers_counters_stand_still_at_zero() {
        let devices = Devices::default();
        assert_eq!(
            devices.output(0x43, 1, 0xB0, Now::default),
            Some(Effect::None)
        );
        assert_eq!(devices.input(0x42, 1, Now::default), Some(0));
    }

    #[test]
    fn a_wide_read_of_a_narrow_device_is_cut_to_its_size() {
        let devices = Devices::default();
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
        let devices = Devices::default();
        let message = |line: u8| {
            devices.uart.lock().receive(line);
            devices.route_lines()
        };
        assert_eq!(message(b'a'), None, "the guest enabled no interrupt");
        devices.io_apic.lock().program(4, 3 << 56 | 0x31);
        devices.output(uart::BASE + 1, 1, 1, Now::default);
        let sent = devices.route_lines().unwrap();
        assert_eq!((sent.vector, sent.destination), (0x31, 3));
        assert_eq!(message(b'b'), None, "the line is up since before");
        for byte in *b"ab" {
            assert_eq!(
                devices.input(uart::BASE, 1, Now::default),
                Some(byte.into())
            );
        }
        assert_eq!(devices.route_lines(), None);
        assert!(message(b'c').is_some());
    }
}

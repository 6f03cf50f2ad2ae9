//! The devices of a TD: small models behind one trait, reached through ports and memory-mapped registers.
//!
//! A device knows neither the calling vCPU nor the host. It turns each access into a value or an [`Effect`], which the
//! caller carries out. Each device has its own lock, taken only for accesses to that device. [`Space`] and [`PortSpace`]
//! find the device at an address; a new device is one line in [`Devices::new`], and a function of the PCI bus is passed
//! to it.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod absent;
mod cmos;
pub mod fw_cfg;
mod io_apic;
mod memory;
mod message;
pub mod pci;
mod pm;
mod pvpanic;
mod space;
mod uart;

use alloc::{sync::Arc, vec::Vec};
use core::fmt;
use core::ops::Range;

use sync::Mutex;
use td_base::board;

pub use io_apic::IoApic;
pub use memory::{Memory, Other, Page, Unshared};
pub use message::{Message, Trigger};
pub use pm::Power;
pub use space::{PortSpace, Space};
pub use uart::Uart;

use fw_cfg::FwCfg;
use pci::{Bus, Function};
use pm::PowerManagement;

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
    /// Functions of the PCI bus have interrupts to send: deliver [`Bus::take_message`] until there is none.
    Signal,
    /// Functions of the PCI bus have work with the guest's memory: call [`Bus::serve`] before the guest runs again.
    Work,
    /// The firmware asks for a transfer that the descriptor at this address describes: carry out
    /// [`Devices::transfer`].
    Transfer(u64),
    /// The memory of functions of the PCI bus that the guest accesses without the host has moved: map it where
    /// [`pci::Bus::pieces`] says, and then call [`pci::Bus::settle`]. No lock of a device may be held.
    Windows,
}

/// A device.
pub trait Device: fmt::Debug + Send {
    /// Reads a register. A location without a register reads as all ones. Bits beyond the size are ignored.
    fn read(&mut self, place: Place, now: Now) -> u64;

    /// Writes the low `place.size` bytes of `value` to a register. Ignored if there is no register.
    fn write(&mut self, place: Place, value: u64, now: Now) -> Effect;
}

/// The memory that a guest shares with the host, as devices reach it.
pub trait SharedMemory {
    /// Reads bytes from guest address `gpa` on. Each byte is read once.
    ///
    /// # Errors
    /// [`NotShared`].
    fn read(&self, gpa: u64, to: &mut [u8]) -> Result<(), NotShared>;

    /// Writes bytes from guest address `gpa` on.
    ///
    /// # Errors
    /// [`NotShared`]; the bytes before the first such page are written.
    fn write(&self, gpa: u64, from: &[u8]) -> Result<(), NotShared>;
}

/// A part of the memory is not shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotShared;

/// Returns the value of a read that no device answers.
#[must_use]
pub const fn open_bus(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * size as u32)
}

/// The devices of one TD.
#[derive(Debug)]
pub struct Devices {
    ports: PortSpace,
    memory: Space,
    uart: Arc<Mutex<Uart>>,
    pm: Arc<Mutex<PowerManagement>>,
    io_apic: Arc<Mutex<IoApic>>,
    pci: Arc<Bus>,
    fw_cfg: Option<Arc<Mutex<FwCfg>>>,
}

impl Devices {
    /// Creates the devices of a TD with these memory ranges. `functions` go to the PCI bus, in this order, behind
    /// those that every TD has.
    ///
    /// # Panics
    /// More than [`pci::MOST`] functions.
    #[must_use]
    pub fn new(
        memory: impl IntoIterator<Item = Range<u64>>,
        functions: Vec<Arc<Mutex<dyn Function>>>,
    ) -> Self {
        let memory: Vec<_> = memory.into_iter().collect();
        let uart = Arc::new(Mutex::new(Uart::default()));
        let pm = Arc::new(Mutex::new(PowerManagement::default()));
        let io_apic = Arc::new(Mutex::new(IoApic::default()));
        let pci = Arc::new(Bus::new(memory.iter().cloned(), functions));
        let bus_ports = Arc::new(Mutex::new(pci::Ports::of(&pci)));
        let ports = PortSpace::default()
            .with(absent::TIMER, Arc::new(Mutex::new(absent::Timer)))
            .with(absent::KEYBOARD, Arc::new(Mutex::new(absent::Keyboard)))
            .with(cmos::PORTS, Arc::new(Mutex::new(cmos::Cmos::new(memory))))
            .with(uart::PORTS, uart.clone())
            .with(pvpanic::PORTS, Arc::new(Mutex::new(pvpanic::Panic)))
            .with(pm::PORTS, pm.clone())
            .with(pm::RESET_PORTS, Arc::new(Mutex::new(pm::ResetControl)))
            .with(pci::PORTS, bus_ports);
        Self {
            ports,
            memory: Space::default().with(io_apic::REGISTERS, io_apic.clone()),
            uart,
            pm,
            io_apic,
            pci,
            fw_cfg: None,
        }
    }

    /// Adds the device that tells UEFI firmware what machine it runs on.
    #[must_use]
    pub fn with_fw_cfg(mut self, facts: &fw_cfg::Facts) -> Self {
        let memory: Vec<_> = self.pci.memory().collect();
        let fw_cfg = Arc::new(Mutex::new(FwCfg::new(facts, &memory, &self.pci)));
        self.ports = self.ports.with(fw_cfg::PORTS, fw_cfg.clone());
        self.fw_cfg = Some(fw_cfg);
        self
    }

    /// Returns whether UEFI firmware learns its machine from these devices.
    #[must_use]
    pub const fn has_fw_cfg(&self) -> bool {
        self.fw_cfg.is_some()
    }

    /// Carries out the transfer that the descriptor at guest address `at` describes. The memory must not wait for other
    /// CPUs.
    pub fn transfer(&self, at: u64, memory: &dyn SharedMemory) -> fw_cfg::Outcome {
        match &self.fw_cfg {
            Some(fw_cfg) => fw_cfg.lock().transfer(at, memory),
            None => fw_cfg::Outcome::Refused,
        }
    }

    /// Returns whether a device has a port.
    #[inline]
    #[must_use]
    pub fn has_port(&self, port: u16) -> bool {
        self.ports.has(port)
    }

    /// Executes IN of 1, 2 or 4 bytes. Returns `None` if no device is there, which the guest sees as [`open_bus`]. An
    /// access that reaches beyond the device's last register is an access to the first one alone.
    pub fn input(&self, port: u16, size: u8, now: impl FnOnce() -> Now) -> Option<u64> {
        let (device, offset) = self.ports.find(port)?;
        let now = now();
        let value = device.lock().read(Place { offset, size }, now);
        Some(value & open_bus(size))
    }

    /// Executes OUT of 1, 2 or 4 bytes. Returns `None` if no device is there.
    pub fn output(
        &self,
        port: u16,
        size: u8,
        value: u64,
        now: impl FnOnce() -> Now,
    ) -> Option<Effect> {
        let (device, offset) = self.ports.find(port)?;
        let value = value & open_bus(size);
        let now = now();
        Some(device.lock().write(Place { offset, size }, value, now))
    }

    /// Reads a memory-mapped register. Returns `None` if no device is there.
    pub fn load(&self, gpa: u64, size: u8, now: Now) -> Option<u64> {
        let value = match self.memory.find(gpa) {
            Some((device, offset)) => device.lock().read(Place { offset, size }, now),
            None => self.pci.load(gpa, size, now)?,
        };
        Some(value & open_bus(size))
    }

    /// Writes a memory-mapped register. Returns `None` if no device is there.
    pub fn store(&self, gpa: u64, size: u8, value: u64, now: Now) -> Option<Effect> {
        let value = value & open_bus(size);
        match self.memory.find(gpa) {
            Some((device, offset)) => Some(device.lock().write(Place { offset, size }, value, now)),
            None => self.pci.store(gpa, size, value, now),
        }
    }

    /// Presses the power button. Returns the message to send, if any.
    ///
    /// # Errors
    /// [`NotListening`].
    pub fn press_power_button(&self) -> Result<Option<Message>, NotListening> {
        let mut pm = self.pm.lock();
        if !pm.press() {
            return Err(NotListening);
        }
        let mut io_apic = self.io_apic.lock();
        // Each press is an edge, even if the guest has not served the one before.
        io_apic.set_line(board::POWER_INTERRUPT, false);
        Ok(io_apic.set_line(board::POWER_INTERRUPT, true))
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

    /// Returns the PCI bus.
    #[must_use]
    pub const fn pci(&self) -> &Arc<Bus> {
        &self.pci
    }
}

/// The guest has not enabled the event of its power button.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotListening;

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Devices {
        Devices::new([], Vec::new())
    }

    #[test]
    fn a_port_without_a_device_is_an_open_bus() {
        let devices = devices();
        assert_eq!(devices.input(0x80, 1, Now::default), None);
        assert_eq!(devices.output(0x80, 1, 7, Now::default), None);
        assert_eq!(
            [1, 2, 4, 8].map(open_bus),
            [0xFF, 0xFFFF, 0xFFFF_FFFF, u64::MAX]
        );
    }

    #[test]
    fn the_interval_timers_counters_stand_still_at_zero() {
        let devices = devices();
        assert_eq!(
            devices.output(0x43, 1, 0xB0, Now::default),
            Some(Effect::None)
        );
        assert_eq!(devices.input(0x42, 1, Now::default), Some(0));
    }

    #[test]
    fn nobody_finds_a_keyboard_controller_though_it_resets() {
        let devices = devices();
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
        let devices = devices();
        let output = |port, size, value| devices.output(port, size, value, Now::default);
        assert_eq!(output(0xCF8, 4, 0x8000_0600), Some(Effect::None));
        assert_eq!(devices.input(0xCF8, 4, Now::default), Some(0x8000_0600));
        assert_eq!(output(0xCF9, 1, 6), Some(Effect::Power(Power::Reset)));
    }

    #[test]
    fn the_bus_has_its_registers_in_memory_once_the_guest_says_where() {
        let devices = devices();
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
        assert!(load(io_apic::REGISTERS.start).is_some());
    }

    #[test]
    fn a_wide_read_of_a_narrow_device_is_cut_to_its_size() {
        let devices = devices();
        for port in 0..=u16::MAX {
            for size in [1, 2, 4] {
                if let Some(value) = devices.input(port, size, Now::default) {
                    assert_eq!(value & !open_bus(size), 0, "{port:#x}");
                }
            }
        }
    }

    #[test]
    fn each_press_of_the_power_button_is_a_message_to_a_guest_that_listens() {
        let devices = devices();
        assert_eq!(devices.press_power_button(), Err(NotListening));
        devices.output(pm::BASE + 2, 2, 0x100, Now::default);
        assert_eq!(devices.press_power_button(), Ok(None), "the pin is masked");
        devices.io_apic.lock().program(9, 2 << 56 | 0x39);
        for _ in 0..2 {
            let message = devices.press_power_button().unwrap().unwrap();
            assert_eq!((message.vector, message.destination), (0x39, 2));
        }
        devices.output(pm::BASE, 2, 0x100, Now::default);
        assert!(devices.press_power_button().unwrap().is_some(), "answered");
    }

    #[test]
    fn a_byte_received_becomes_a_message_once_the_guest_asks_for_it() {
        let devices = devices();
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

//! Reset and power-off, by whatever means the machine offers.
#![expect(
    unsafe_code,
    reason = "the registers that reset or switch off the machine are I/O ports and device memory"
)]

use alloc::string::String;

use sync::IrqLock;
use x86_64::instructions::port::Port;

use crate::{
    cpu,
    firmware::{
        Firmware,
        aml::SleepType,
        fadt::{Fadt, Register},
    },
    memory, pci, time, watchdog,
};

/// One way to reset the machine or to switch it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The FADT's reset register.
    ResetRegister(Register, u8),
    /// The chipset's reset control register, port 0xCF9.
    ResetControl,
    /// The keyboard controller's reset line.
    KeyboardController,
    /// Sleep state S5 through the PM1 control registers.
    SoftOff {
        a: u16,
        b: Option<u16>,
        sleep: SleepType,
        enable: Option<(u16, u8)>,
    },
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::ResetRegister(..) => "ACPI reset register",
            Self::ResetControl => "reset control register (port 0xCF9)",
            Self::KeyboardController => "keyboard controller",
            Self::SoftOff { .. } => "ACPI sleep state S5",
        }
    }
}

static RESET_REGISTER: IrqLock<Option<Way>> = IrqLock::new(None);
static OFF: IrqLock<Option<Way>> = IrqLock::new(None);

/// Records the ways that the machine offers, and switches it to ACPI mode. Returns the problem, if any.
pub fn init(firmware: &Firmware) -> Option<&'static str> {
    *RESET_REGISTER.lock() = reset_register(&firmware.fadt);
    *OFF.lock() = off_way(&firmware.fadt, firmware.s5);
    let control = firmware.fadt.pm1a_control?;
    (!acpi_mode_on(control, firmware.fadt.enable)).then_some(
        "the firmware does not switch to ACPI mode: its power button and power-off may not work",
    )
}

/// Returns true if the machine is in ACPI mode, after asking the firmware for it. `control` is the port of PM1a control,
/// `enable` the port and the value that ask.
fn acpi_mode_on(control: u16, enable: Option<(u16, u8)>) -> bool {
    into_acpi_mode(&Real, control, enable)
}

/// The machine's ports and clock, as the way into ACPI mode needs them.
trait Ports {
    /// Reads a control register.
    fn read(&self, port: u16) -> u16;
    /// Writes a byte.
    fn write(&self, port: u16, value: u8);
    /// Waits for `us` microseconds at most, until `done`. Returns the last answer of `done`.
    fn wait_us(&self, us: u64, done: impl FnMut() -> bool) -> bool;
}

struct Real;

impl Ports for Real {
    fn read(&self, port: u16) -> u16 {
        in16(port)
    }
    fn write(&self, port: u16, value: u8) {
        out(port, value);
    }
    fn wait_us(&self, us: u64, done: impl FnMut() -> bool) -> bool {
        time::wait_us(us, done)
    }
}

/// Writes ACPI_ENABLE to SMI_CMD unless the machine is in ACPI mode, and waits for SCI_EN.
///
/// Source: ACPI Specification 6.5, section 4.8.3.2.1 and table 5.9 (SMI_CMD).
fn into_acpi_mode(ports: &impl Ports, control: u16, enable: Option<(u16, u8)>) -> bool {
    const SCI_EN: u16 = 1;
    let is_on = || ports.read(control) & SCI_EN != 0;
    // Without the port, there is no other mode.
    let Some((port, value)) = enable.filter(|_| !is_on()) else {
        return true;
    };
    ports.write(port, value);
    ports.wait_us(SECOND_US, is_on)
}

fn reset_register(fadt: &Fadt) -> Option<Way> {
    fadt.reset.map(|(r, value)| Way::ResetRegister(r, value))
}

/// Returns the ways to reset the machine, in the order in which they are tried.
fn reset_ways(register: Option<Way>) -> impl Iterator<Item = Way> {
    let chipset = [Way::ResetControl, Way::KeyboardController];
    register.into_iter().chain(chipset)
}

fn off_way(fadt: &Fadt, s5: Option<SleepType>) -> Option<Way> {
    Some(Way::SoftOff {
        a: fadt.pm1a_control?,
        b: fadt.pm1b_control,
        sleep: s5?,
        enable: fadt.enable,
    })
}

/// Returns the name of the way in which the machine will be reset.
#[must_use]
pub fn reset_name() -> &'static str {
    let register = *RESET_REGISTER.lock();
    reset_ways(register).next().map_or("nothing", Way::name)
}

/// Returns the name of the way in which the machine will be switched off.
///
/// # Errors
/// A sentence if the ACPI tables give no way.
pub fn off_name() -> Result<String, String> {
    OFF.lock().map(|w| w.name().into()).ok_or_else(|| {
        "the ACPI tables name no way to switch the machine off (no PM1 control register or no _S5): use `reboot`, or \
         the service processor"
            .into()
    })
}

/// Resets the machine. Tries each way in turn.
pub fn reset_now() -> ! {
    // The lock's holder may be a CPU that no longer runs.
    let register = RESET_REGISTER.try_lock().and_then(|register| *register);
    reset_ways(register).for_each(go);
    cpu::stop_here()
}

/// Switches the machine off. If it is still on after a second, says so and stops every CPU.
pub fn off_now() -> ! {
    let way = *OFF.lock();
    watchdog::stop();
    if let Some(way) = way {
        go(way);
    }
    log::error!("the machine is still on; its CPUs stop here");
    cpu::stop_others();
    cpu::stop_here()
}

const SECOND_US: u64 = 1_000_000;

/// Tries a way, and waits a second for its effect.
fn go(way: Way) {
    const PORT_CF9: u16 = 0xCF9;
    match way {
        Way::ResetRegister(Register::Port(port), value) => out(port, value),
        Way::ResetRegister(Register::Memory(pa), value) => {
            if let Ok(at) = memory::window(pa, 1) {
                // SAFETY: the FADT says that this is the reset register.
                unsafe { (at as *mut u8).write_volatile(value) };
            }
        }
        Way::ResetRegister(Register::Pci(device, function, offset), value) => {
            pci::write_legacy(device, function, offset, value);
        }
        Way::ResetControl => {
            // First selects system reset, then triggers it; a full power cycle is included.
            out(PORT_CF9, 0x0A);
            out(PORT_CF9, 0x0E);
        }
        Way::KeyboardController => out(0x64, 0xFE),
        Way::SoftOff {
            a,
            b,
            sleep,
            enable,
        } => {
            acpi_mode_on(a, enable);
            sleep_on(a, sleep.a);
            if let Some(b) = b {
                sleep_on(b, sleep.b);
            }
        }
    }
    time::wait_us(SECOND_US, || false);
}

/// Writes SLP_TYP and SLP_EN to a PM1 control register.
fn sleep_on(port: u16, sleep_type: u8) {
    let keep = in16(port) & !(7 << 10);
    // SAFETY: the FADT says that this is a PM1 control register.
    unsafe { Port::new(port).write(keep | u16::from(sleep_type) << 10 | 1u16 << 13) };
}

fn in16(port: u16) -> u16 {
    // SAFETY: the FADT says that this is a PM1 control register, which may be read.
    unsafe { Port::new(port).read() }
}

fn out(port: u16, value: u8) {
    // SAFETY: the port asks the firmware for ACPI mode, or it resets the machine, which this program is done with.
    unsafe { Port::new(port).write(value) };
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};
    use core::cell::{Cell, RefCell};

    use super::*;

    const CONTROL: u16 = 0x604;
    const COMMAND: u16 = 0xB2;
    const ENABLE: u8 = 2;

    /// Firmware that enters ACPI mode at the read of the register with this number after the command.
    struct Chipset {
        is_on: Cell<bool>,
        answers_after: u32,
        reads: Cell<u32>,
        written: RefCell<Vec<(u16, u8)>>,
    }

    impl Chipset {
        fn new(is_on: bool, answers_after: u32) -> Self {
            Self {
                is_on: Cell::new(is_on),
                answers_after,
                reads: Cell::new(0),
                written: RefCell::default(),
            }
        }
    }

    impl Ports for Chipset {
        fn read(&self, port: u16) -> u16 {
            assert_eq!(port, CONTROL);
            if !self.written.borrow().is_empty() {
                self.reads.set(self.reads.get() + 1);
                self.is_on.set(self.reads.get() > self.answers_after);
            }
            // The other bits are the firmware's own.
            0x1C02 | u16::from(self.is_on.get())
        }
        fn write(&self, port: u16, value: u8) {
            self.written.borrow_mut().push((port, value));
        }
        fn wait_us(&self, us: u64, mut done: impl FnMut() -> bool) -> bool {
            assert_eq!(us, SECOND_US, "the wait is bounded");
            (0..1000).any(|_| done())
        }
    }

    #[test]
    fn a_machine_in_legacy_mode_is_asked_once_and_waited_for() {
        let machine = Chipset::new(false, 20);
        assert!(into_acpi_mode(&machine, CONTROL, Some((COMMAND, ENABLE))));
        assert_eq!(*machine.written.borrow(), [(COMMAND, ENABLE)]);
        assert_eq!(machine.reads.get(), 21);
        let silent = Chipset::new(false, u32::MAX);
        assert!(!into_acpi_mode(&silent, CONTROL, Some((COMMAND, ENABLE))));
        assert_eq!(silent.written.borrow().len(), 1);
    }

    #[test]
    fn a_machine_in_acpi_mode_or_without_another_is_not_asked() {
        let machine = Chipset::new(true, 0);
        assert!(into_acpi_mode(&machine, CONTROL, Some((COMMAND, ENABLE))));
        assert_eq!(*machine.written.borrow(), vec![]);
        assert!(into_acpi_mode(&Chipset::new(false, 0), CONTROL, None));
    }

    #[test]
    fn the_tables_way_comes_first_and_the_chipsets_remain() {
        let fadt = Fadt {
            reset: Some((Register::Port(0xCF9), 0xF)),
            ..Fadt::default()
        };
        let names =
            |fadt: &Fadt| -> Vec<_> { reset_ways(reset_register(fadt)).map(Way::name).collect() };
        let chipset = ["reset control register (port 0xCF9)", "keyboard controller"];
        assert_eq!(names(&fadt)[0], "ACPI reset register");
        assert_eq!(names(&fadt)[1..], chipset);
        assert_eq!(names(&Fadt::default()), chipset);
    }

    #[test]
    fn switching_off_takes_the_register_and_the_value() {
        let fadt = Fadt {
            pm1a_control: Some(0x604),
            ..Fadt::default()
        };
        assert_eq!(off_way(&fadt, None), None);
        assert!(off_way(&fadt, Some(SleepType { a: 5, b: 0 })).is_some());
    }
}

//! USB controllers that the firmware drives for its own keyboard emulation: each is asked to hand its controller over,
//! and its system-management interrupts are switched off. A firmware that is not told goes on handling them, with a
//! controller that has lost its bus mastering.
//!
//! Sources: xHCI 1.2, section 7.1; EHCI 1.0, sections 2.1.7 and 5.1; OHCI 1.0a, section 5.1.1.3; UHCI 1.1 and Intel's
//! ICH9 data sheet, USB legacy keyboard and mouse control register.

use alloc::{format, string::String};

use super::{Address, CLASS, COMMAND, INTERFACE, Space};
use crate::{memory, time};

/// Class 0x0C (serial bus), subclass 3 (USB).
const USB: u16 = 0x0C03;
/// How long a firmware may take to let go, in microseconds. It answers within milliseconds, or never.
const PATIENCE_US: u64 = 1_000_000;

/// The registers of a controller beyond its configuration space.
trait Registers {
    /// Reads the 32-bit register at an offset.
    fn read(&mut self, offset: u32) -> u32;
    /// Writes it.
    fn write(&mut self, offset: u32, value: u32);
}

/// Takes the function at `at` from the firmware, if it is a USB controller. Returns `None` if it is none.
pub(super) fn take(space: &mut impl Space, at: Address) -> Option<Result<(), String>> {
    if space.read(at, CLASS) != USB {
        return None;
    }
    Some(match space.read(at, INTERFACE) >> 8 {
        0x00 => {
            uhci(space, at);
            Ok(())
        }
        0x10 => registers(space, at, 0x1000).and_then(|mut r| ohci(&mut r)),
        0x20 => registers(space, at, 0x1000).and_then(|mut r| ehci(&mut r, space, at)),
        0x30 => registers(space, at, 0x1_0000).and_then(|mut r| xhci(&mut r)),
        _ => return None,
    })
}

/// Switches off the legacy support of a UHCI controller, which has no owner to ask.
fn uhci(space: &mut impl Space, at: Address) {
    const LEGACY: u16 = 0xC0;
    /// The status bits, which are cleared by writing ones; no interrupt enabled.
    const CLEAR: u16 = 0x8F00;
    space.write(at, LEGACY, CLEAR);
}

fn ohci(registers: &mut impl Registers) -> Result<(), String> {
    const CONTROL: u32 = 4;
    const COMMAND_STATUS: u32 = 8;
    const INTERRUPT_DISABLE: u32 = 0x14;
    const ROUTED_TO_FIRMWARE: u32 = 1 << 8;
    const OWNERSHIP_CHANGE: u32 = 1 << 3;
    let free = |r: &mut _| Registers::read(r, CONTROL) & ROUTED_TO_FIRMWARE == 0;
    if !free(registers) {
        registers.write(COMMAND_STATUS, OWNERSHIP_CHANGE);
        if !time::wait_us(PATIENCE_US, || free(registers)) {
            return Err(KEEPS.into());
        }
    }
    registers.write(INTERRUPT_DISABLE, u32::MAX);
    Ok(())
}

/// The capability's register: the firmware owns the controller; the operating system does.
const FIRMWARE_OWNS: u32 = 1 << 16;
const SYSTEM_OWNS: u32 = 1 << 24;
const KEEPS: &str =
    "the firmware does not hand it over: disable \"Legacy USB Support\" in the firmware's setup";
/// Maximum number of capabilities in a list; a longer one is a loop.
const MAX_CAPABILITIES: usize = 64;

fn ehci(registers: &mut impl Registers, space: &mut impl Space, at: Address) -> Result<(), String> {
    const PARAMETERS: u32 = 8;
    let mut offset = (registers.read(PARAMETERS) >> 8 & 0xFC) as u16;
    for _ in 0..MAX_CAPABILITIES {
        // The capabilities are in configuration space, behind its header.
        if offset < 0x40 {
            break;
        }
        let mut capability = Configuration { space, at, offset };
        let value = capability.read(0);
        if value & 0xFF == 1 {
            return hand_over(&mut capability, 0);
        }
        offset = (value >> 8 & 0xFC) as u16;
    }
    Ok(())
}

fn xhci(registers: &mut impl Registers) -> Result<(), String> {
    const PARAMETERS: u32 = 0x10;
    // In units of 32 bits: from the start, then from one capability to the next.
    let mut offset = registers.read(PARAMETERS) >> 16 << 2;
    for _ in 0..MAX_CAPABILITIES {
        if offset == 0 {
            break;
        }
        let value = registers.read(offset);
        if value & 0xFF == 1 {
            return hand_over(registers, offset);
        }
        match value >> 8 & 0xFF {
            0 => break,
            next => offset += next << 2,
        }
    }
    Ok(())
}

/// Goes through the handshake with the firmware at the capability at `offset`: owner, then control and status.
fn hand_over(registers: &mut impl Registers, offset: u32) -> Result<(), String> {
    /// The bits that enable an interrupt to the firmware.
    const ENABLES: u32 = 0xE01F;
    /// The status bits, which are cleared by writing ones.
    const STATUS: u32 = 0xE000_0000;
    let owner = registers.read(offset);
    registers.write(offset, owner | SYSTEM_OWNS);
    let given = time::wait_us(PATIENCE_US, || registers.read(offset) & FIRMWARE_OWNS == 0);
    // Whatever the firmware answers, it is not to be interrupted any more.
    let control = registers.read(offset + 4);
    registers.write(offset + 4, control & !ENABLES | STATUS);
    if given { Ok(()) } else { Err(KEEPS.into()) }
}

/// Configuration space from an offset on.
struct Configuration<'a, S> {
    space: &'a mut S,
    at: Address,
    offset: u16,
}

impl<S: Space> Registers for Configuration<'_, S> {
    fn read(&mut self, offset: u32) -> u32 {
        let low = self.offset + offset as u16;
        u32::from(self.space.read(self.at, low))
            | u32::from(self.space.read(self.at, low + 2)) << 16
    }

    fn write(&mut self, offset: u32, value: u32) {
        let low = self.offset + offset as u16;
        self.space.write(self.at, low, value as u16);
        self.space.write(self.at, low + 2, (value >> 16) as u16);
    }
}

/// Registers in memory.
struct Mapped {
    va: u64,
    bytes: u32,
}

/// Maps the registers of a controller, which its first base address register locates.
fn registers(space: &mut impl Space, at: Address, bytes: u32) -> Result<Mapped, String> {
    const BASE: u16 = 0x10;
    const IO: u64 = 1;
    const IS_64_BIT: u64 = 2 << 1;
    const MEMORY_SPACE: u16 = 1 << 1;
    let mut bar = Configuration {
        space,
        at,
        offset: BASE,
    };
    let low = u64::from(bar.read(0));
    let high = if low & 7 == IS_64_BIT {
        u64::from(bar.read(4))
    } else {
        0
    };
    let pa = (high << 32 | low) & !0xF;
    let decodes = space.read(at, COMMAND) & MEMORY_SPACE != 0;
    if !decodes || low & IO != 0 || pa == 0 {
        // Nobody can reach its registers, so no firmware drives it.
        return Ok(Mapped { va: 0, bytes: 0 });
    }
    match memory::device(pa, bytes.into()) {
        Ok(va) => Ok(Mapped { va, bytes }),
        Err(e) => Err(format!("its registers at {pa:#x} can't be reached: {e}")),
    }
}

#[expect(unsafe_code, reason = "the registers are device memory")]
impl Registers for Mapped {
    fn read(&mut self, offset: u32) -> u32 {
        if offset.saturating_add(4) > self.bytes {
            return 0;
        }
        // SAFETY: the offset is inside the window that maps the controller's registers.
        unsafe { ((self.va + u64::from(offset)) as *const u32).read_volatile() }
    }

    fn write(&mut self, offset: u32, value: u32) {
        if offset.saturating_add(4) <= self.bytes {
            // SAFETY: as above; only registers that hand the controller over are written.
            unsafe { ((self.va + u64::from(offset)) as *mut u32).write_volatile(value) }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeMap, vec, vec::Vec};

    use super::{super::tests::at, *};

    /// Registers, with a firmware that lets go of the capability at `owner` or not.
    #[derive(Default)]
    struct Fake {
        words: BTreeMap<u32, u32>,
        owner: u32,
        obeys: bool,
        writes: Vec<(u32, u32)>,
    }

    impl Registers for Fake {
        fn read(&mut self, offset: u32) -> u32 {
            self.words.get(&offset).copied().unwrap_or(0)
        }
        fn write(&mut self, offset: u32, value: u32) {
            self.writes.push((offset, value));
            let lets_go = offset == self.owner && value & SYSTEM_OWNS != 0 && self.obeys;
            let value = if lets_go {
                value & !FIRMWARE_OWNS
            } else {
                value
            };
            self.words.insert(offset, value);
        }
    }

    fn xhci_of(obeys: bool) -> Fake {
        Fake {
            words: BTreeMap::from([
                (0x10, 0x200 << 16),
                // Another capability comes first.
                (0x800, 0x0402),
                (0x810, 1 | FIRMWARE_OWNS),
                (0x814, 0xE01F),
            ]),
            owner: 0x810,
            obeys,
            writes: Vec::new(),
        }
    }

    #[test]
    fn an_xhci_controller_is_handed_over_without_interrupts() {
        let mut fake = xhci_of(true);
        assert_eq!(xhci(&mut fake), Ok(()));
        assert_eq!(
            fake.writes,
            [
                (0x810, 1 | FIRMWARE_OWNS | SYSTEM_OWNS),
                (0x814, 0xE000_0000)
            ]
        );
    }

    #[test]
    fn a_firmware_that_keeps_its_controller_is_reported_and_silenced() {
        time::set_hz(1_000_000_000);
        let mut fake = xhci_of(false);
        assert_eq!(xhci(&mut fake), Err(KEEPS.into()));
        assert_eq!(fake.writes.last(), Some(&(0x814, 0xE000_0000)));
    }

    #[test]
    fn lists_that_loop_or_lead_nowhere_end() {
        let mut looping = Fake::default();
        looping.words.insert(0x10, 1 << 16);
        for offset in (4..0x1000).step_by(4) {
            looping.words.insert(offset, 0x0102);
        }
        assert_eq!(xhci(&mut looping), Ok(()));
        assert_eq!(xhci(&mut Fake::default()), Ok(()));
        let mut absent = Mapped { va: 0, bytes: 0 };
        assert_eq!(xhci(&mut absent), Ok(()));
        assert_eq!(ohci(&mut absent), Ok(()));
    }

    /// Configuration space of one function.
    struct Function(Vec<u16>);

    impl Space for Function {
        fn read(&mut self, _: Address, offset: u16) -> u16 {
            self.0[usize::from(offset / 2)]
        }
        fn write(&mut self, _: Address, offset: u16, value: u16) {
            // The firmware lets go at once.
            let value = if offset == 0x6A { value & !1 } else { value };
            self.0[usize::from(offset / 2)] = value;
        }
    }

    #[test]
    fn an_ehci_controller_is_handed_over_through_configuration_space() {
        let mut function = Function(vec![0; 128]);
        function.0[0x68 / 2] = 1;
        function.0[0x6A / 2] = 1;
        function.0[0x6C / 2] = 0x1F;
        let mut registers = Fake::default();
        registers.words.insert(8, 0x68 << 8);
        assert_eq!(ehci(&mut registers, &mut function, at(0, 29, 7)), Ok(()));
        assert_eq!(function.0[0x6A / 2], 0x100, "the system owns it alone");
        assert_eq!(function.0[0x6C / 2], 0, "no interrupt is enabled");
    }

    #[test]
    fn an_ohci_controller_is_asked_for_a_change_of_owner() {
        let mut free = Fake::default();
        assert_eq!(ohci(&mut free), Ok(()));
        assert_eq!(free.writes, [(0x14, u32::MAX)]);
    }

    #[test]
    fn a_uhci_controller_loses_its_legacy_support() {
        let mut function = Function(vec![0; 128]);
        function.0[usize::from(CLASS / 2)] = USB;
        function.0[0xC0 / 2] = 0x2000;
        assert_eq!(take(&mut function, at(0, 1, 2)), Some(Ok(())));
        assert_eq!(function.0[0xC0 / 2], 0x8F00);
        function.0[usize::from(CLASS / 2)] = 0x0200;
        assert_eq!(take(&mut function, at(0, 1, 2)), None);
    }
}

//! USB controllers that the firmware drives for its own keyboard emulation: each is asked to hand its controller over,
//! and its system-management interrupts are switched off. A firmware that is not told goes on handling them, with a
//! controller that has lost its bus mastering.
//!
//! Sources: xHCI 1.2, section 7.1; EHCI 1.0, sections 2.1.7 and 5.1; OHCI 1.0a, section 5.1.1.3; UHCI 1.1 and Intel's
//! ICH9 data sheet, USB legacy keyboard and mouse control register.

use alloc::{format, string::String};

use io::{
    Address, BarKind, Function, Space,
    register::{COMMAND, MEMORY_SPACE},
};

use crate::{memory, time};

/// Class 0x0C (serial bus), subclass 3 (USB).
const USB: u16 = 0x0C03;
/// The time that a firmware may take to let go, in microseconds. It answers within milliseconds, or never.
const PATIENCE_US: u64 = 1_000_000;

/// The registers of a controller beyond its configuration space.
trait Registers {
    /// Reads the 32-bit register at an offset.
    fn read(&mut self, offset: u32) -> u32;
    /// Writes it.
    fn write(&mut self, offset: u32, value: u32);
}

/// Takes the function from the firmware, if it is a USB controller. Returns `None` if it is none.
pub(super) fn take(space: &impl Space, function: &Function) -> Option<Result<(), String>> {
    let (at, class) = (function.address, function.identity.class);
    if class.code() != USB {
        return None;
    }
    let registers = |bytes| registers(space, function, bytes);
    Some(match class.interface {
        0x00 => {
            uhci(space, at);
            Ok(())
        }
        0x10 => registers(0x1000).and_then(|mut r| ohci(&mut r)),
        0x20 => registers(0x1000).and_then(|mut r| ehci(&mut r, space, at)),
        0x30 => registers(0x1_0000).and_then(|mut r| xhci(&mut r)),
        _ => return None,
    })
}

/// Switches off the legacy support of a UHCI controller, which has no owner to ask.
fn uhci(space: &impl Space, at: Address) {
    const LEGACY: u16 = 0xC0;
    /// The status bits, which are cleared by writing ones; no interrupt enabled.
    const CLEAR: u16 = 0x8F00;
    space.write16(at, LEGACY, CLEAR);
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

fn ehci(registers: &mut impl Registers, space: &impl Space, at: Address) -> Result<(), String> {
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
    space: &'a S,
    at: Address,
    offset: u16,
}

impl<S: Space> Registers for Configuration<'_, S> {
    fn read(&mut self, offset: u32) -> u32 {
        self.space.read(self.at, self.offset + offset as u16)
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.space
            .write(self.at, self.offset + offset as u16, value);
    }
}

/// Registers in memory.
struct Mapped {
    va: u64,
    bytes: u32,
}

/// Maps the registers of a controller, which its first base address register locates.
fn registers(space: &impl Space, function: &Function, bytes: u32) -> Result<Mapped, String> {
    let mut bars = function.bars.iter();
    let bar = bars.find(|bar| bar.index == 0 && bar.kind != BarKind::Io);
    let decodes = space.read16(function.address, COMMAND) & MEMORY_SPACE != 0;
    let Some(pa) = bar.map(|bar| bar.address).filter(|_| decodes) else {
        // Nobody can reach its registers, so no firmware drives it.
        return Ok(Mapped { va: 0, bytes: 0 });
    };
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

    use std::{collections::BTreeMap, vec::Vec};

    use super::{
        super::tests::{Fake as Space, at},
        *,
    };

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

    #[test]
    fn an_ehci_controller_is_handed_over_through_configuration_space() {
        let place = at(0, 29, 7);
        let fake = Space {
            answered: Some((place, 0x68, FIRMWARE_OWNS)),
            ..Space::default()
        };
        fake.add(place, 0, 0x0C_0320);
        fake.words
            .borrow_mut()
            .extend([((place, 0x68), 1 | FIRMWARE_OWNS), ((place, 0x6C), 0x1F)]);
        let mut registers = Fake::default();
        registers.words.insert(8, 0x68 << 8);
        assert_eq!(ehci(&mut registers, &fake, place), Ok(()));
        assert_eq!(
            fake.get(place, 0x68),
            1 | SYSTEM_OWNS,
            "the system owns it alone"
        );
        assert_eq!(fake.get(place, 0x6C) & 0xFFFF, 0, "no interrupt is enabled");
    }

    #[test]
    fn an_ohci_controller_is_asked_for_a_change_of_owner() {
        let mut free = Fake::default();
        assert_eq!(ohci(&mut free), Ok(()));
        assert_eq!(free.writes, [(0x14, u32::MAX)]);
    }

    #[test]
    fn a_uhci_controller_loses_its_legacy_support() {
        let fake = Space::default();
        fake.add(at(0, 1, 2), 0, 0x0C_0300);
        fake.add(at(0, 1, 0), 0, 0x02_0000);
        fake.words.borrow_mut().insert((at(0, 1, 0), 0xC), 1 << 23);
        fake.words.borrow_mut().insert((at(0, 1, 2), 0xC0), 0x2000);
        let functions = io::scan::segment(&fake, 1, 0..=0);
        let taken: Vec<_> = functions.iter().map(|f| take(&fake, f)).collect();
        assert_eq!(taken, [None, Some(Ok(()))]);
        assert_eq!(fake.get(at(0, 1, 2), 0xC0), 0x8F00);
    }
}

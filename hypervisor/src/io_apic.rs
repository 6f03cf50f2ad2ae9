//! The I/O APIC, as far as one serial port and the power button need it. The legacy interrupt controllers are switched off.
//!
//! Source: Intel 82093AA I/O APIC data sheet, section 3.
#![expect(unsafe_code, reason = "the I/O APIC's registers are device memory")]

use alloc::{format, string::String, vec::Vec};

use sync::IrqLock;
use vtd::{
    Origin,
    interrupt::{Handle, Route},
};
use x86_64::instructions::port::Port;

use crate::{
    firmware::madt::{Madt, Override},
    iommu, memory,
};

const VERSION: u32 = 1;
const REDIRECTION: u32 = 0x10;
/// A redirection entry's low half: the interrupt is masked, and nothing else.
const MASKED: u32 = 1 << 16;

/// Masks every input of the old 8259 controllers.
pub fn mask_legacy() {
    for port in [0x21u16, 0xA1] {
        // SAFETY: the interrupt mask registers of the two controllers; a machine without them ignores the writes.
        unsafe { Port::new(port).write(0xFFu8) };
    }
}

/// Masks every input of every I/O APIC: the firmware may have left some open, to vectors of its own.
pub fn mask_all(madt: &Madt) {
    for io_apic in &madt.io_apics {
        if let Ok(at) = memory::device(io_apic.pa, 0x20) {
            let mut registers = Registers(at);
            for input in 0..registers.inputs() {
                registers.write(REDIRECTION + input * 2, MASKED);
            }
        }
    }
}

/// Routes an interrupt line to `vector` on the CPU with `apic_id`. If a VT-d unit remaps the I/O APIC's
/// interrupts, the line gets an entry of its own.
///
/// # Errors
/// The reason why it can't be done, for the operator.
pub fn route(madt: &Madt, line: &Override, vector: u8, apic_id: u32) -> Result<Routed, String> {
    let (mut input, id) = find(madt, line).ok_or("no I/O APIC has the interrupt")?;
    let route = Route {
        vector,
        destination: apic_id,
        is_level: line.level,
    };
    let (handle, entry) = match iommu::route(Origin::IoApic(id), &route) {
        Some(Ok(handle)) => (Some(handle), handle.redirection(&route, line.active_low)),
        Some(Err(error)) => return Err(format!("{error}")),
        None => {
            // Without interrupt remapping the destination has 8 bits.
            let to = u8::try_from(apic_id);
            let to = to.map_err(|_| "the CPU's APIC id does not fit into 8 bits")?;
            (None, entry(line, vector, to))
        }
    };
    input.write(entry);
    Ok(Routed { input, handle })
}

/// An interrupt line that is routed.
#[derive(Clone, Copy, Debug)]
pub struct Routed {
    input: Input,
    handle: Option<Handle>,
}

impl Routed {
    /// Masks the line, and frees its entry.
    pub fn close(mut self) {
        self.input.mask();
        self.handle.into_iter().for_each(iommu::unroute);
    }
}

/// The input of ACPI's events, while it is open.
static ACPI: IrqLock<Option<Routed>> = IrqLock::new(None);

/// Routes the interrupt of ACPI's events, which is active low and level-triggered unless an override says otherwise.
///
/// # Errors
/// The reason why it can't be done, for the operator.
pub fn route_acpi(madt: &Madt, isa: u8, vector: u8, apic_id: u32) -> Result<(), String> {
    let line = match madt.overrides.iter().find(|o| o.isa == isa) {
        Some(line) => *line,
        None => Override {
            active_low: true,
            level: true,
            ..madt.isa(isa)
        },
    };
    *ACPI.lock() = Some(route(madt, &line, vector, apic_id)?);
    Ok(())
}

/// Masks the interrupt of ACPI's events.
pub fn mask_acpi() {
    if let Some(mut routed) = ACPI.lock().take() {
        routed.input.mask();
    }
}

/// Masks every input that is open in compatibility format, which no VT-d unit that remaps interrupts lets pass. Returns
/// a sentence for each: this program opens none.
pub fn mask_unremapped(madt: &Madt) -> Vec<String> {
    let mut problems = Vec::new();
    for io_apic in &madt.io_apics {
        let Ok(at) = memory::device(io_apic.pa, 0x20) else {
            continue;
        };
        for number in 0..Registers(at).inputs() {
            let mut input = Input { at, number };
            let [low, high] = input.read();
            if low & MASKED == 0 && !Handle::is_remappable(high) {
                input.mask();
                problems.push(format!(
                    "input {number} of I/O APIC {} was open without interrupt remapping, and is masked",
                    io_apic.id
                ));
            }
        }
    }
    problems
}

/// Returns the I/O APIC's input that has the line, and the I/O APIC's id.
fn find(madt: &Madt, line: &Override) -> Option<(Input, u8)> {
    madt.io_apics.iter().find_map(|io_apic| {
        let at = memory::device(io_apic.pa, 0x20).ok()?;
        let inputs = Registers(at).inputs();
        let number = line.gsi.checked_sub(io_apic.first_gsi)?;
        (number < inputs).then_some((Input { at, number }, io_apic.id))
    })
}

/// Encodes a redirection entry in compatibility format: fixed delivery, physical destination, not masked.
fn entry(line: &Override, vector: u8, to: u8) -> [u32; 2] {
    let polarity = u32::from(line.active_low) << 13;
    let trigger = u32::from(line.level) << 15;
    [u32::from(vector) | polarity | trigger, u32::from(to) << 24]
}

/// An input of an I/O APIC, by the address of the registers and its number.
#[derive(Clone, Copy, Debug)]
struct Input {
    at: u64,
    number: u32,
}

impl Input {
    /// Reads the redirection entry, lower half first.
    fn read(&mut self) -> [u32; 2] {
        let (mut registers, at) = (Registers(self.at), REDIRECTION + self.number * 2);
        [registers.read(at), registers.read(at + 1)]
    }

    /// Writes the redirection entry of a masked input.
    fn write(&mut self, [low, high]: [u32; 2]) {
        let (mut registers, at) = (Registers(self.at), REDIRECTION + self.number * 2);
        registers.write(at + 1, high);
        registers.write(at, low);
    }

    fn mask(&mut self) {
        Registers(self.at).write(REDIRECTION + self.number * 2, MASKED);
    }
}

struct Registers(u64);

impl Registers {
    fn select(&mut self, register: u32) -> *mut u32 {
        // SAFETY: the window maps the I/O APIC's register pair.
        unsafe { (self.0 as *mut u32).write_volatile(register) };
        (self.0 + 0x10) as *mut u32
    }

    /// Returns the number of inputs.
    fn inputs(&mut self) -> u32 {
        // A redirection entry takes two registers, whose numbers have 8 bits.
        const MAX: u32 = 120;
        let inputs = (self.read(VERSION) >> 16 & 0xFF) + 1;
        inputs.min(MAX)
    }

    fn read(&mut self, register: u32) -> u32 {
        // SAFETY: as above.
        unsafe { self.select(register).read_volatile() }
    }

    fn write(&mut self, register: u32, value: u32) {
        // SAFETY: as above; the entries written are those of interrupts that this program serves.
        unsafe { self.select(register).write_volatile(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_isa_line_is_edge_triggered_and_active_high() {
        let line = Madt::default().isa(4);
        assert_eq!(entry(&line, 0x40, 3), [0x40, 0x0300_0000]);
        let level = Override {
            active_low: true,
            level: true,
            ..line
        };
        assert_eq!(entry(&level, 0x40, 0), [0xA040, 0]);
    }
}

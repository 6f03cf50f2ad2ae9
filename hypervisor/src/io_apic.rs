//! The I/O APIC, as far as one serial port and the power button need it. The legacy interrupt controllers are switched off.
//!
//! Source: Intel 82093AA I/O APIC data sheet, section 3.
#![expect(unsafe_code, reason = "the I/O APIC's registers are device memory")]

use sync::IrqLock;
use x86_64::instructions::port::Port;

use crate::{
    firmware::madt::{Madt, Override},
    memory,
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

/// Routes an interrupt line to `vector` on the CPU with `apic_id`.
///
/// # Errors
/// The reason why it can't be done, for the operator.
pub fn route(madt: &Madt, line: &Override, vector: u8, apic_id: u32) -> Result<(), &'static str> {
    open(madt, line, vector, apic_id).map(drop)
}

/// The input of ACPI's events, while it is open: the registers' address, and the input's number.
static ACPI: IrqLock<Option<(u64, u32)>> = IrqLock::new(None);

/// Routes the interrupt of ACPI's events, which is active low and level-triggered unless an override says otherwise.
///
/// # Errors
/// The reason why it can't be done, for the operator.
pub fn route_acpi(madt: &Madt, isa: u8, vector: u8, apic_id: u32) -> Result<(), &'static str> {
    let line = match madt.overrides.iter().find(|o| o.isa == isa) {
        Some(line) => *line,
        None => Override {
            active_low: true,
            level: true,
            ..madt.isa(isa)
        },
    };
    let (registers, input) = open(madt, &line, vector, apic_id)?;
    *ACPI.lock() = Some((registers.0, input));
    Ok(())
}

/// Masks the interrupt of ACPI's events.
pub fn mask_acpi() {
    if let Some((at, input)) = ACPI.lock().take() {
        Registers(at).write(REDIRECTION + input * 2, MASKED);
    }
}

fn open(
    madt: &Madt,
    line: &Override,
    vector: u8,
    apic_id: u32,
) -> Result<(Registers, u32), &'static str> {
    // Without interrupt remapping the destination has 8 bits.
    let to = u8::try_from(apic_id).map_err(|_| "the CPU's APIC id does not fit into 8 bits")?;
    let [low, high] = entry(line, vector, to);
    let (mut registers, input) = find(madt, line).ok_or("no I/O APIC has the interrupt")?;
    registers.write(REDIRECTION + input * 2 + 1, high);
    registers.write(REDIRECTION + input * 2, low);
    Ok((registers, input))
}

/// Masks an interrupt line.
pub fn mask(madt: &Madt, line: &Override) {
    if let Some((mut registers, input)) = find(madt, line) {
        registers.write(REDIRECTION + input * 2, MASKED);
    }
}

/// Returns the I/O APIC that has the line, and its input.
fn find(madt: &Madt, line: &Override) -> Option<(Registers, u32)> {
    madt.io_apics.iter().find_map(|io_apic| {
        let mut registers = Registers(memory::device(io_apic.pa, 0x20).ok()?);
        let inputs = registers.inputs();
        let input = line.gsi.checked_sub(io_apic.first_gsi)?;
        (input < inputs).then_some((registers, input))
    })
}

/// Encodes a redirection entry: fixed delivery, physical destination, not masked.
fn entry(line: &Override, vector: u8, to: u8) -> [u32; 2] {
    let polarity = u32::from(line.active_low) << 13;
    let trigger = u32::from(line.level) << 15;
    [u32::from(vector) | polarity | trigger, u32::from(to) << 24]
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

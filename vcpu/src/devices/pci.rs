//! The PCI bus: its configuration space, by ports and by memory, with the functions that every PC has on bus 0. These
//! are a host bridge, which identifies the machine type, and an ISA bridge to the ports of [`pm`](super::pm) and of the
//! serial port. Both match QEMU's q35, which guest firmware knows.
//!
//! Source: PCI Local Bus Specification 3.0, section 3.2.2.3.2 (ports) and chapter 6 (registers); PCI Express Base
//! Specification, section 7.2.2 (memory); Intel 3 Series Express Chipset Family data sheet, section 5.1 (PCIEXBAR);
//! Intel I/O Controller Hub 9 data sheet, sections 10.1 (RCBA) and 13.1 (PMBASE, ACPI_CNTL, PIRQ).

use super::{Device, Effect, Now, Place, open_bus, pm};

/// The port that selects a register. Only 32-bit accesses reach it.
pub const ADDRESS: u16 = 0xCF8;
/// The first port that reads and writes the selected register.
pub const DATA: u16 = 0xCFC;
/// The last such port.
pub const DATA_LAST: u16 = DATA + 3;

/// ADDRESS: accesses to the data ports are configuration accesses.
const ENABLE: u32 = 1 << 31;
/// Bytes of configuration space per function, by ports and by memory.
const BYTES: usize = 256;
const WIDE_BYTES: u64 = 4096;
/// Bytes of configuration space per bus, by memory.
const BUS_BYTES: u64 = 256 * WIDE_BYTES;

/// Registers of every function.
const VENDOR: usize = 0x00;
const COMMAND: usize = 0x04;
const REVISION_AND_CLASS: usize = 0x08;
const SUBSYSTEM: usize = 0x2C;
const INTERRUPT_LINE: u8 = 0x3C;
/// Registers of the host bridge: the address of the memory-mapped configuration space, in eight bytes.
const PCIEXBAR: usize = 0x60;
/// Registers of the ISA bridge: base port of [`pm`], its enable register, and interrupt routes, which have no effect.
const PMBASE: usize = 0x40;
const ACPI_CNTL: usize = 0x44;

/// The host bridge of Intel's Q35, the ISA bridge of its ICH9, and QEMU as the subsystem vendor.
const Q35: u32 = 0x29C0_8086;
const ICH9: u32 = 0x2918_8086;
const QEMU: u32 = 0x1100_1AF4;
const HOST_BRIDGE: u32 = 0x06_0000 << 8;
const ISA_BRIDGE: u32 = 0x06_0100 << 8 | 2;
/// COMMAND: I/O decoding, memory decoding and bus mastering are enabled. The guest can't change this.
const ON: u32 = 7;

/// The functions: device and function number in one byte.
const HOST_BRIDGE_AT: u8 = 0x00;
const ISA_BRIDGE_AT: u8 = 0x1F << 3;

/// A function of the bus.
#[derive(Debug)]
struct Function {
    at: u8,
    registers: [u8; BYTES],
    /// Writable bits: first register byte, last register byte, and the mask for each byte between.
    writable: &'static [(u8, u8, u8)],
}

impl Function {
    const fn new(at: u8, id: u32, class: u32, writable: &'static [(u8, u8, u8)]) -> Self {
        let function = Self {
            at,
            registers: [0; BYTES],
            writable,
        };
        function
            .with(VENDOR, id)
            .with(COMMAND, ON)
            .with(REVISION_AND_CLASS, class)
            .with(SUBSYSTEM, QEMU)
    }

    const fn with(mut self, register: usize, value: u32) -> Self {
        let bytes = value.to_le_bytes();
        let mut at = 0;
        while at < bytes.len() {
            self.registers[register + at] = bytes[at];
            at += 1;
        }
        self
    }

    fn read(&self, at: usize, size: usize) -> u64 {
        let bytes = self.registers[at..at + size].iter().rev();
        bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn write(&mut self, at: usize, size: usize, value: u64) {
        for (register, byte) in (at..at + size).zip(value.to_le_bytes()) {
            let all = self.writable.iter();
            let mask = all
                .filter(|(first, last, _)| {
                    (usize::from(*first)..=usize::from(*last)).contains(&register)
                })
                .fold(0, |mask, (_, _, bits)| mask | bits);
            let kept = &mut self.registers[register];
            *kept = *kept & !mask | byte & mask;
        }
    }
}

/// The PCI bus.
#[derive(Debug)]
pub struct Pci {
    address: u32,
    functions: [Function; 2],
}

impl Default for Pci {
    fn default() -> Self {
        const HOST_BRIDGE_WRITABLE: &[(u8, u8, u8)] = &[
            (INTERRUPT_LINE, INTERRUPT_LINE, 0xFF),
            // PCIEXBAR: enable bit, number of buses, and base address, a multiple of 64 MiB.
            (0x60, 0x60, 0x07),
            (0x63, 0x63, 0xFC),
            (0x64, 0x64, 0x0F),
        ];
        const ISA_BRIDGE_WRITABLE: &[(u8, u8, u8)] = &[
            (INTERRUPT_LINE, INTERRUPT_LINE, 0xFF),
            // PIRQ routes.
            (0x60, 0x63, 0x8F),
            (0x68, 0x6B, 0x8F),
            // RCBA.
            (0xF0, 0xF0, 0x01),
            (0xF1, 0xF1, 0xC0),
            (0xF2, 0xF3, 0xFF),
        ];
        let host = Function::new(HOST_BRIDGE_AT, Q35, HOST_BRIDGE, HOST_BRIDGE_WRITABLE);
        // The power-management ports are at their fixed base, and enabled.
        let isa = Function::new(ISA_BRIDGE_AT, ICH9, ISA_BRIDGE, ISA_BRIDGE_WRITABLE)
            .with(PMBASE, pm::BASE as u32 | 1)
            .with(ACPI_CNTL, 1 << 7);
        Self {
            address: 0,
            functions: [host, isa],
        }
    }
}

/// Location of the memory-mapped configuration space: the value of PCIEXBAR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window(pub u64);

impl Window {
    /// Returns the offset of `gpa` in the window, or `None` if it is outside.
    pub const fn offset(self, gpa: u64) -> Option<u64> {
        const ON: u64 = 1 << 0;
        let buses = match self.0 >> 1 & 3 {
            0 => 256,
            1 => 128,
            2 => 64,
            _ => return None,
        };
        let bytes = buses * BUS_BYTES;
        // The size determines which address bits count.
        let base = self.0 & !(bytes - 1);
        if self.0 & ON != 0 && gpa & !(bytes - 1) == base {
            Some(gpa - base)
        } else {
            None
        }
    }
}

/// The address of a register on the bus.
#[derive(Clone, Copy)]
struct Register {
    bus: u64,
    function: u8,
    offset: u64,
}

impl Pci {
    /// Returns the location of the memory-mapped configuration space.
    pub fn window(&self) -> Window {
        Window(self.functions[0].read(PCIEXBAR, 8))
    }

    /// Reads a register by memory, `offset` bytes from the start of the window.
    pub fn load(&self, Place { offset, size }: Place) -> u64 {
        self.read_register(Register::by_memory(offset), size)
    }

    /// Writes a register by memory, `offset` bytes from the start of the window.
    pub fn store(&mut self, Place { offset, size }: Place, value: u64) {
        self.write_register(Register::by_memory(offset), size, value);
    }

    /// Returns the register that the data ports select.
    fn selected(&self, port: u64) -> Option<Register> {
        let address = u64::from(self.address);
        (self.address & ENABLE != 0).then_some(Register {
            bus: address >> 16 & 0xFF,
            function: (address >> 8) as u8,
            offset: address & 0xFC | port & 3,
        })
    }

    /// Returns the index of the function and the start of the access in its registers. An access that crosses a double
    /// word hits no register.
    fn find(&self, register: Register, size: u8) -> Option<(usize, usize)> {
        let Register {
            bus,
            function,
            offset,
        } = register;
        let is_whole = offset % 4 + u64::from(size) <= 4;
        if bus != 0 || offset >= BYTES as u64 || !is_whole {
            return None;
        }
        let mut all = self.functions.iter();
        let number = all.position(|there| there.at == function)?;
        Some((number, offset as usize))
    }

    fn read_register(&self, register: Register, size: u8) -> u64 {
        match self.find(register, size) {
            Some((number, at)) => self.functions[number].read(at, size.into()),
            None => open_bus(size),
        }
    }

    fn write_register(&mut self, register: Register, size: u8, value: u64) {
        if let Some((number, at)) = self.find(register, size) {
            self.functions[number].write(at, size.into(), value);
        }
    }
}

impl Register {
    const fn by_memory(offset: u64) -> Self {
        Self {
            bus: offset / BUS_BYTES,
            function: (offset / WIDE_BYTES) as u8,
            offset: offset % WIDE_BYTES,
        }
    }
}

/// Accesses by ports; offsets count from `ADDRESS`.
impl Device for Pci {
    fn read(&mut self, place: Place, _: Now) -> u64 {
        match (place.offset, place.size) {
            (0, 4) => self.address.into(),
            (data @ 4..=7, size) => match self.selected(data) {
                Some(register) => self.read_register(register, size),
                None => open_bus(size),
            },
            (_, size) => open_bus(size),
        }
    }

    fn write(&mut self, place: Place, value: u64, _: Now) -> Effect {
        match (place.offset, place.size) {
            (0, 4) => self.address = value as u32 & (ENABLE | 0xFF_FFFC),
            (data @ 4..=7, size) => {
                if let Some(register) = self.selected(data) {
                    self.write_register(register, size, value);
                }
            }
            _ => {}
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16, size: u8) -> Place {
        let offset = (port - ADDRESS).into();
        Place { offset, size }
    }

    fn read(pci: &mut Pci, function: u32, register: u16, size: u8) -> u64 {
        select(pci, function, register);
        pci.read(at(DATA + register % 4, size), Now::default())
    }

    fn write(pci: &mut Pci, function: u32, register: u16, size: u8, value: u64) {
        select(pci, function, register);
        let effect = pci.write(at(DATA + register % 4, size), value, Now::default());
        assert_eq!(effect, Effect::None);
    }

    fn select(pci: &mut Pci, function: u32, register: u16) {
        let address = ENABLE | function << 8 | u32::from(register) & !3;
        pci.write(at(ADDRESS, 4), address.into(), Now::default());
    }

    const HOST: u32 = 0;
    const ISA: u32 = 0xF8;

    #[test]
    fn firmware_finds_a_q35_with_its_power_management() {
        let mut pci = Pci::default();
        assert_eq!(read(&mut pci, HOST, 2, 2), 0x29C0);
        assert_eq!(read(&mut pci, HOST, 0xA, 2), 0x0600);
        assert_eq!(read(&mut pci, ISA, 0, 4), 0x2918_8086);
        assert_eq!(read(&mut pci, ISA, 0xB, 1), 0x06);
        assert_eq!(read(&mut pci, ISA, 0xE, 1), 0, "one function");
        assert_eq!(read(&mut pci, ISA, PMBASE as u16, 4), 0x601);
        assert_eq!(read(&mut pci, ISA, ACPI_CNTL as u16, 1), 0x80);
        // The ports can't be moved or disabled.
        write(&mut pci, ISA, PMBASE as u16, 4, 0xB001);
        write(&mut pci, ISA, ACPI_CNTL as u16, 1, 0);
        assert_eq!(read(&mut pci, ISA, PMBASE as u16, 4), 0x601);
        assert_eq!(read(&mut pci, ISA, ACPI_CNTL as u16, 1), 0x80);
    }

    #[test]
    fn there_is_nothing_else_on_the_bus_and_no_other_bus() {
        let mut pci = Pci::default();
        for function in (0..0x1_0000).filter(|at| ![HOST, ISA].contains(at)) {
            assert_eq!(read(&mut pci, function, 0, 4), 0xFFFF_FFFF, "{function:#x}");
            write(&mut pci, function, 4, 4, 0);
        }
        for bar in (0x10..0x28).step_by(4) {
            write(&mut pci, HOST, bar, 4, u64::MAX);
            assert_eq!(read(&mut pci, HOST, bar, 4), 0, "no base address");
        }
        assert_eq!(read(&mut pci, HOST, 0x34, 1), 0, "no capabilities");
    }

    #[test]
    fn the_address_is_a_double_word_and_leads_nowhere_when_it_is_off() {
        let mut pci = Pci::default();
        select(&mut pci, HOST, 0);
        for (port, size) in [(ADDRESS, 1), (ADDRESS, 2), (ADDRESS + 3, 1)] {
            assert_eq!(pci.read(at(port, size), Now::default()), open_bus(size));
            pci.write(at(port, size), 0, Now::default());
        }
        assert_eq!(pci.read(at(ADDRESS, 4), Now::default()), 0x8000_0000);
        assert_eq!(pci.read(at(DATA, 4), Now::default()), 0x29C0_8086);
        pci.write(at(ADDRESS, 4), 0x7F00_0003, Now::default());
        assert_eq!(pci.read(at(ADDRESS, 4), Now::default()), 0);
        assert_eq!(pci.read(at(DATA, 4), Now::default()), 0xFFFF_FFFF);
    }

    #[test]
    fn an_access_stays_within_its_double_word() {
        let mut pci = Pci::default();
        assert_eq!(read(&mut pci, HOST, 3, 2), 0xFFFF);
        assert_eq!(read(&mut pci, HOST, 1, 4), 0xFFFF_FFFF);
        let wide = Place { offset: 0, size: 8 };
        assert_eq!(pci.load(wide), u64::MAX);
        pci.store(wide, 0);
        assert_eq!(read(&mut pci, HOST, 0, 4), 0x29C0_8086);
    }

    #[test]
    fn registers_are_in_memory_where_the_guest_puts_them() {
        let mut pci = Pci::default();
        assert_eq!(pci.window().offset(0), None);
        write(&mut pci, HOST, 0x64, 4, 0);
        write(&mut pci, HOST, 0x60, 4, 0xB000_0001);
        let window = pci.window();
        assert_eq!(window.offset(0xAFFF_FFFF), None);
        assert_eq!(window.offset(0xC000_0000), None);
        let offset = window.offset(0xB00F_8040).unwrap();
        assert_eq!(pci.load(Place { offset, size: 4 }), 0x601);
        pci.store(
            Place {
                offset: 0x3C,
                size: 1,
            },
            0x5A,
        );
        assert_eq!(read(&mut pci, HOST, 0x3C, 1), 0x5A);
        // Beyond conventional configuration space, another function, another bus.
        for offset in [0x100, 0x1000, 0x10_0000, 0xFFF_FFFF] {
            assert_eq!(pci.load(Place { offset, size: 1 }), 0xFF, "{offset:#x}");
        }
    }

    #[test]
    fn the_window_has_the_size_that_the_guest_wants() {
        for (size, mib) in [(0, 256), (1, 128), (2, 64)] {
            let window = Window(0xE_0400_0001 | size << 1);
            let bytes = mib << 20;
            let base = 0xE_0400_0000 / bytes * bytes;
            assert_eq!(window.offset(base), Some(0));
            assert_eq!(window.offset(base + bytes - 1), Some(bytes - 1));
            assert_eq!(window.offset(base + bytes), None);
        }
        assert_eq!(Window(0xB000_0007).offset(0xB000_0000), None, "reserved");
        assert_eq!(Window(0xB000_0000).offset(0xB000_0000), None, "off");
    }

    proptest::proptest! {
        #[test]
        fn any_access_has_an_answer_of_its_size(
            accesses in proptest::collection::vec((0u64..8, 0u8..4, proptest::prelude::any::<u64>(), 0u8..4), 1..50),
        ) {
            let mut pci = Pci::default();
            for (offset, log, value, way) in accesses {
                let place = Place { offset, size: 1 << log };
                let by_memory = Place { offset: value, size: 1 << log };
                let (mask, now) = (open_bus(place.size), Now::default());
                match way {
                    0 => assert_eq!(pci.read(place, now) & !mask, 0),
                    1 => _ = pci.write(place, value & mask, now),
                    2 => assert_eq!(pci.load(by_memory) & !mask, 0),
                    _ => pci.store(by_memory, value),
                }
                assert_eq!(read(&mut pci, HOST, 0, 4), 0x29C0_8086);
            }
        }
    }
}

//! The ACPI tables of a TD: processors and their wakeup, power, devices, the PCI bus, and the event log.
//!
//! Source: ACPI Specification 6.6, section 5.2; CCEL: Guest-Host-Communication Interface for Intel TDX 1.5, section
//! 4.3.

use td_base::board;

use crate::aml;

/// The facts about the TD that the tables contain.
#[derive(Clone, Copy, Debug)]
pub struct Td {
    /// Number of processors; their x2APIC ids count from 0.
    pub processors: u32,
    /// The address of the wakeup mailbox.
    pub mailbox: u64,
    /// The address at which a processor returns to the mailbox.
    pub reset: u64,
    /// The address of the FACS, a multiple of 64.
    pub facs: u64,
    /// The address and the size of the event log.
    pub log: (u64, u64),
}

/// The address of each processor's local APIC.
const LOCAL_APIC: u32 = 0xFEE0_0000;
/// The port of PM1 control.
const PM_CONTROL: u16 = board::POWER + board::POWER_CONTROL;
/// The port of the power-management timer.
const PM_TIMER: u16 = board::POWER + board::POWER_TIMER;
/// The value that resets the TD when written to the reset-control register.
const RESET_VALUE: u8 = 6;

const HEADER_BYTES: usize = 36;
const RSDP_BYTES: usize = 36;
const FADT_BYTES: usize = 276;

/// Size in bytes of the FACS.
pub const FACS_BYTES: usize = 64;

/// The error for tables that do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

/// Writes the tables to `memory`, which the TD has at address `at`, a multiple of 16. Returns the RSDP's address.
///
/// # Errors
/// [`TooLarge`].
pub fn write(memory: &mut [u8], at: u64, td: Td) -> Result<u64, TooLarge> {
    let mut memory = Writer {
        memory,
        at,
        used: RSDP_BYTES,
    };
    let dsdt = memory.table(*b"DSDT", 2, &[&devices()])?;
    let fadt = memory.table(*b"FACP", 6, &[&fadt(dsdt, td.facs)[HEADER_BYTES..]])?;
    let madt = memory.madt(td)?;
    let ccel = memory.table(*b"CCEL", 1, &[&ccel(td.log)])?;
    let mcfg = memory.table(*b"MCFG", 1, &[&mcfg()])?;
    let pointers = [fadt, madt, ccel, mcfg].map(u64::to_le_bytes);
    let xsdt = memory.table(*b"XSDT", 1, &[pointers.as_flattened()])?;
    let rsdp = memory.memory.first_chunk_mut().ok_or(TooLarge)?;
    *rsdp = root(xsdt);
    Ok(at)
}

/// Builds the FACS. Its only use is the global lock, which an operating system may want.
pub fn facs() -> [u8; FACS_BYTES] {
    let mut facs = [0; FACS_BYTES];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = FACS_BYTES as u8;
    facs[32] = 2;
    facs
}

struct Writer<'a> {
    memory: &'a mut [u8],
    at: u64,
    used: usize,
}

impl Writer<'_> {
    /// Adds a table whose content is in parts. Returns its address.
    fn table(&mut self, name: [u8; 4], revision: u8, parts: &[&[u8]]) -> Result<u64, TooLarge> {
        let start = self.used.next_multiple_of(16);
        let length = HEADER_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
        let table = self.memory.get_mut(start..start + length).ok_or(TooLarge)?;
        let (head, mut rest) = table.split_at_mut(HEADER_BYTES);
        head.copy_from_slice(&header(name, revision, length));
        for part in parts {
            let (to, next) = rest.split_at_mut(part.len());
            to.copy_from_slice(part);
            rest = next;
        }
        table[9] = checksum(table);
        self.used = start + length;
        Ok(self.at + start as u64)
    }

    fn madt(&mut self, td: Td) -> Result<u64, TooLarge> {
        const X2APIC: u8 = 9;
        const IO_APIC: u8 = 1;
        const OVERRIDE: u8 = 2;
        const OVERRIDE_BYTES: usize = 10;
        const EDGE_ACTIVE_HIGH: u8 = 1 << 2 | 1;
        const WAKEUP: u8 = 0x10;
        const WAKEUP_BYTES: usize = 24;
        /// The version of the mailbox that has the Test command and a reset vector.
        const WAKEUP_VERSION: u16 = 1;
        const ENABLED: u32 = 1;
        let start = self.used.next_multiple_of(16);
        let count = td.processors as usize;
        let length = HEADER_BYTES + 8 + 16 * count + 12 + OVERRIDE_BYTES + WAKEUP_BYTES;
        let table = self.memory.get_mut(start..start + length).ok_or(TooLarge)?;
        table[..HEADER_BYTES].copy_from_slice(&header(*b"APIC", 7, length));
        // The flags are 0: there are no 8259s.
        table[HEADER_BYTES..][..4].copy_from_slice(&LOCAL_APIC.to_le_bytes());
        let (processors, rest) = table[HEADER_BYTES + 8..].split_at_mut(16 * count);
        for (id, entry) in (0u32..).zip(processors.as_chunks_mut::<16>().0) {
            entry[0] = X2APIC;
            entry[1] = 16;
            entry[4..8].copy_from_slice(&id.to_le_bytes());
            entry[8..12].copy_from_slice(&ENABLED.to_le_bytes());
            entry[12..].copy_from_slice(&id.to_le_bytes());
        }
        let (io_apic, rest) = rest.split_at_mut(12);
        let (sci, wakeup) = rest.split_at_mut(OVERRIDE_BYTES);
        io_apic[0] = IO_APIC;
        io_apic[1] = 12;
        io_apic[4..8].copy_from_slice(&board::IO_APIC.to_le_bytes());
        // Without this, ACPI's interrupt would be level-triggered, which the host can't offer.
        sci[0] = OVERRIDE;
        sci[1] = OVERRIDE_BYTES as u8;
        sci[3] = board::POWER_INTERRUPT;
        sci[4] = board::POWER_INTERRUPT;
        sci[8] = EDGE_ACTIVE_HIGH;
        wakeup[0] = WAKEUP;
        wakeup[1] = WAKEUP_BYTES as u8;
        wakeup[2..4].copy_from_slice(&WAKEUP_VERSION.to_le_bytes());
        wakeup[8..16].copy_from_slice(&td.mailbox.to_le_bytes());
        wakeup[16..].copy_from_slice(&td.reset.to_le_bytes());
        table[9] = checksum(table);
        self.used = start + length;
        Ok(self.at + start as u64)
    }
}

fn header(name: [u8; 4], revision: u8, length: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&name);
    header[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    header[8] = revision;
    header[10..16].copy_from_slice(b"SEAMRK");
    header[16..24].copy_from_slice(b"TD      ");
    header[24] = 1;
    header[28..32].copy_from_slice(b"SMRK");
    header[32] = 1;
    header
}

/// Returns the checksum that makes the sum of all bytes zero. The checksum byte itself must be zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn root(xsdt: u64) -> [u8; RSDP_BYTES] {
    let mut rsdp = [0; RSDP_BYTES];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(b"SEAMRK");
    rsdp[15] = 2;
    rsdp[20] = RSDP_BYTES as u8;
    rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

/// Returns the FADT's fields that are not zero, at their offsets. The first 36 bytes are left for the header.
fn fadt(dsdt: u64, facs: u64) -> [u8; FADT_BYTES] {
    const WBINVD: u32 = 1 << 0;
    /// The sleep button is not a fixed feature. The power button is.
    const NO_SLEEP_BUTTON: u32 = 1 << 5;
    const RESET_REGISTER: u32 = 1 << 10;
    /// Interrupts name one processor: an 8-bit destination of the I/O APIC can't name a set of x2APICs.
    const PHYSICAL: u32 = 1 << 19;
    /// No VGA. There is no CMOS flag and no 8042, and the power-management timer has 24 bits, so its flag is clear.
    const NO_VGA: u16 = 1 << 2;
    const SYSTEM_IO: u8 = 1;
    let mut fadt = [0; FADT_BYTES];
    let mut put = |at: usize, bytes: &[u8]| fadt[at..at + bytes.len()].copy_from_slice(bytes);
    // Both are below 4 GiB; the FACS must not have a second address then.
    put(36, &(facs as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(46, &u16::from(board::POWER_INTERRUPT).to_le_bytes());
    put(56, &u32::from(board::POWER).to_le_bytes());
    put(64, &u32::from(PM_CONTROL).to_le_bytes());
    put(76, &u32::from(PM_TIMER).to_le_bytes());
    // Lengths of event block, control block and timer.
    put(88, &[4, 2]);
    put(91, &[4]);
    put(108, &[board::CENTURY]);
    put(109, &NO_VGA.to_le_bytes());
    put(
        112,
        &(WBINVD | NO_SLEEP_BUTTON | RESET_REGISTER | PHYSICAL).to_le_bytes(),
    );
    put(116, &[SYSTEM_IO, 8, 0, 1]);
    put(120, &u64::from(board::RESET).to_le_bytes());
    put(128, &[RESET_VALUE]);
    // ACPI 6.3.
    put(131, &[3]);
    put(140, &dsdt.to_le_bytes());
    for (at, bits, port) in [
        (148, 32, board::POWER),
        (172, 16, PM_CONTROL),
        (208, 32, PM_TIMER),
    ] {
        put(at, &[SYSTEM_IO, bits]);
        put(at + 4, &u64::from(port).to_le_bytes());
    }
    fadt
}

/// Builds the content of the DSDT: power-off, the serial port, the clock, the panic device, the PCI bus, and the
/// memory of the bus's configuration space, which is no device's.
fn devices() -> aml::Term {
    let mut terms = aml::name(*b"_S5_", &aml::package(&[0, 0, 0, 0]));
    let device = |name, id: &[u8], resources: &[&[u8]]| {
        let resources = aml::template(resources);
        aml::device(
            name,
            &[&aml::name(*b"_HID", id), &aml::name(*b"_CRS", &resources)],
        )
    };
    let serial = [
        aml::ports(board::SERIAL, 8),
        aml::interrupt(board::SERIAL_INTERRUPT),
    ];
    let [serial_ports, serial_interrupt] = &serial;
    let config = aml::fixed_memory(board::PCI_CONFIG as u32, board::PCI_CONFIG_BYTES as u32);
    let scope = aml::scope(
        *b"_SB_",
        &[
            &device(
                *b"COM1",
                &aml::pnp(0x0501),
                &[serial_ports, serial_interrupt],
            ),
            &device(*b"RTC0", &aml::pnp(0x0B00), &[&aml::ports(board::CLOCK, 2)]),
            &device(
                *b"PEVT",
                &aml::string("QEMU0001"),
                &[&aml::ports(board::PANIC, 1)],
            ),
            &device(*b"PCFG", &aml::pnp(0x0C02), &[&config]),
            &bus(),
        ],
    );
    terms
        .try_extend_from_slice(&scope)
        .expect("the devices have room");
    terms
}

/// Builds the host bridge of the PCI bus, a PCI Express one that conventional systems know too. It has no interrupt
/// lines, and so no routes of them.
fn bus() -> aml::Term {
    let resources = aml::template(&[
        &aml::buses(0, 0),
        &aml::ports(board::PCI_ADDRESS, 8),
        &aml::memory(board::PCI_LOW),
        &aml::memory(board::PCI_HIGH),
    ]);
    aml::device(
        *b"PCI0",
        &[
            &aml::name(*b"_HID", &aml::pnp(0x0A08)),
            &aml::name(*b"_CID", &aml::pnp(0x0A03)),
            &aml::name(*b"_UID", &aml::byte(0)),
            &aml::name(*b"_SEG", &aml::byte(0)),
            &aml::name(*b"_BBN", &aml::byte(0)),
            &aml::name(*b"_CRS", &resources),
        ],
    )
}

/// Returns the location of the configuration space: that of segment 0, bus 0.
///
/// Source: PCI Firmware Specification 3.2, section 4.1.2.
fn mcfg() -> [u8; 24] {
    let mut content = [0; 24];
    content[8..16].copy_from_slice(&board::PCI_CONFIG.to_le_bytes());
    content
}

fn ccel((at, bytes): (u64, u64)) -> [u8; 20] {
    const TDX: u8 = 2;
    let mut content = [0; 20];
    content[0] = TDX;
    content[4..12].copy_from_slice(&bytes.to_le_bytes());
    content[12..].copy_from_slice(&at.to_le_bytes());
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0xFFC1_0000;
    const TD: Td = Td {
        processors: 5,
        mailbox: 0xFFC2_0000,
        reset: 0xFFC0_1240,
        facs: 0xFFC2_1000,
        log: (0xFFC2_2000, 0x1000),
    };

    fn tables() -> Vec<u8> {
        let mut memory = vec![0; crate::TABLES_BYTES];
        assert_eq!(write(&mut memory, AT, TD), Ok(AT));
        memory
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Returns the table at an address after checking its length and its sum.
    fn table(memory: &[u8], at: u64) -> &[u8] {
        let table = &memory[(at - AT) as usize..];
        let length = long(table, 4) as u32 as usize;
        let table = &table[..length];
        assert_eq!(checksum(table), 0, "{:?}", &table[..4]);
        table
    }

    fn named(memory: &[u8], name: &[u8; 4]) -> Vec<u8> {
        let xsdt = table(memory, long(memory, 24));
        let mut pointers = xsdt[HEADER_BYTES..].chunks(8).map(|p| long(p, 0));
        let found = pointers.find(|at| table(memory, *at).starts_with(name));
        table(memory, found.unwrap()).to_vec()
    }

    #[test]
    fn the_root_leads_to_every_table() {
        let memory = tables();
        assert_eq!(checksum(&memory[..20]), 0);
        assert_eq!(checksum(&memory[..36]), 0);
        for name in [b"FACP", b"APIC", b"CCEL", b"MCFG"] {
            assert!(!named(&memory, name).is_empty());
        }
        let fadt = named(&memory, b"FACP");
        assert!(table(&memory, long(&fadt, 140)).starts_with(b"DSDT"));
        assert_eq!(long(&fadt, 36) as u32, TD.facs as u32);
    }

    #[test]
    fn every_processor_the_mailbox_and_the_way_back_are_in_the_madt() {
        let madt = named(&tables(), b"APIC");
        let mut entries = &madt[HEADER_BYTES + 8..];
        let mut kinds = Vec::new();
        let mut ids = Vec::new();
        while let [kind, length, ..] = *entries {
            let (entry, rest) = entries.split_at(length.into());
            match kind {
                9 => ids.push(long(entry, 4) as u32),
                0x10 => {
                    let version = u16::from_le_bytes([entry[2], entry[3]]);
                    assert_eq!((entry.len(), version), (24, 1));
                    assert_eq!((long(entry, 8), long(entry, 16)), (TD.mailbox, TD.reset));
                }
                _ => {}
            }
            kinds.push(kind);
            entries = rest;
        }
        assert_eq!(ids, [0, 1, 2, 3, 4]);
        assert_eq!(kinds, [9, 9, 9, 9, 9, 1, 2, 0x10]);
    }

    #[test]
    fn the_log_is_described() {
        let ccel = named(&tables(), b"CCEL");
        assert_eq!(
            (ccel[36], long(&ccel, 40), long(&ccel, 48)),
            (2, 0x1000, 0xFFC2_2000)
        );
    }

    #[test]
    fn the_configuration_space_is_described_twice_and_at_no_window() {
        let mcfg = named(&tables(), b"MCFG");
        assert_eq!(mcfg.len(), HEADER_BYTES + 8 + 16);
        assert_eq!(long(&mcfg, 44), board::PCI_CONFIG);
        assert_eq!(mcfg[52..], [0; 8], "segment 0, bus 0 alone");
        let space = aml::fixed_memory(board::PCI_CONFIG as u32, 1 << 20);
        let dsdt = devices();
        assert!(dsdt.windows(space.len()).any(|part| part == &space[..]));
        let end = board::PCI_CONFIG + board::PCI_CONFIG_BYTES;
        assert!(board::PCI_LOW.end <= board::PCI_CONFIG && end <= board::IO_APIC.into());
    }

    #[test]
    fn more_processors_than_there_is_room_for_are_refused() {
        let mut memory = vec![0; crate::TABLES_BYTES];
        let td = Td {
            processors: 2000,
            ..TD
        };
        assert_eq!(write(&mut memory, AT, td), Err(TooLarge));
        let most = Td {
            processors: 1024,
            ..TD
        };
        assert!(write(&mut memory, AT, most).is_ok());
    }
}

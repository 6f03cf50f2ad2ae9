use super::*;

const AT: u64 = 0xFFC1_0000;
const BYTES: usize = 0x6000;
const WAKEUP: Wakeup = Wakeup {
    mailbox: 0xFFC2_0000,
    reset: 0xFFC0_1240,
};
const FACS: u64 = 0xFFC2_1000;

fn td() -> Td {
    Td {
        processors: 5,
        wakeup: Some(WAKEUP),
        facs: FACS,
        log: Some(Log {
            at: 0xFFC2_2000,
            bytes: 0x1000,
        }),
        pci: Pci::default(),
    }
}

fn written(memory: &mut [u8], td: &Td) -> Result<Written, TooLarge> {
    let (at, from) = (AT, RSDP_BYTES);
    write(Place { memory, at, from }, td)
}

fn tables_of(td: &Td) -> Vec<u8> {
    let mut memory = vec![0xAA; BYTES];
    let written = written(&mut memory, td).unwrap();
    memory[..RSDP_BYTES].copy_from_slice(&root(written.xsdt));
    memory
}

fn tables() -> Vec<u8> {
    tables_of(&td())
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
    assert_eq!(long(&fadt, 36) as u32, FACS as u32);
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
                assert_eq!(
                    (long(entry, 8), long(entry, 16)),
                    (WAKEUP.mailbox, WAKEUP.reset)
                );
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
    let dsdt = dsdt::devices(&Pci::default());
    assert!(dsdt.windows(space.len()).any(|part| part == &space[..]));
    let end = board::PCI_CONFIG + board::PCI_CONFIG_BYTES;
    assert!(board::PCI_LOW.end <= board::PCI_CONFIG && end <= board::IO_APIC.into());
}

#[test]
fn more_processors_than_there_is_room_for_are_refused() {
    let mut memory = vec![0; BYTES];
    let mut of = |processors| written(&mut memory, &Td { processors, ..td() }).map(|_| ());
    assert_eq!(of(2000), Err(TooLarge));
    assert_eq!(of(1024), Ok(()));
}

#[test]
fn what_a_tds_firmware_adds_itself_can_be_left_out() {
    let memory = tables_of(&Td {
        wakeup: None,
        log: None,
        ..td()
    });
    let madt = named(&memory, b"APIC");
    assert_eq!(madt.len(), HEADER_BYTES + 8 + 5 * 16 + 12 + 10);
    let xsdt = table(&memory, long(&memory, 24));
    assert_eq!(xsdt.len(), HEADER_BYTES + 3 * 8);
}

#[test]
fn a_bus_has_its_windows_and_its_configuration_space_where_it_is() {
    let windows = [
        1 << 31..0xB000_0000,
        0xC000_0000..0xFC00_0000,
        7 << 44..1 << 47,
    ];
    let mut pci = Pci {
        config: Some(0xB000_0000),
        windows: windows.clone().into_iter().collect(),
    };
    let has = |pci: &Pci, part: &[u8]| {
        let dsdt = dsdt::devices(pci);
        dsdt.windows(part.len()).any(|found| found == part)
    };
    for window in windows {
        assert!(has(&pci, &aml::memory(window)));
    }
    assert!(has(&pci, &aml::fixed_memory(0xB000_0000, 1 << 20)));
    pci.config = Some(1 << 40);
    assert!(has(&pci, &aml::memory(1 << 40..(1 << 40) + (1 << 20))));
    pci.config = None;
    assert!(!has(&pci, &aml::pnp(0x0C02)));
    let memory = tables_of(&Td { pci, ..td() });
    let xsdt = table(&memory, long(&memory, 24));
    assert_eq!(xsdt.len(), HEADER_BYTES + 3 * 8, "no MCFG");
}

#[test]
fn every_pointer_is_noted_and_leads_to_a_table() {
    let mut memory = vec![0; BYTES];
    let written = written(&mut memory, &td()).unwrap();
    let starts = written.tables.iter().map(|table| AT + table.start as u64);
    let known: Vec<_> = starts.chain([FACS]).collect();
    let mut targets: Vec<_> = written
        .pointers
        .iter()
        .map(|pointer| match pointer.bytes {
            4 => u64::from(long(&memory, pointer.at) as u32),
            _ => long(&memory, pointer.at),
        })
        .collect();
    assert!(targets.iter().all(|target| known.contains(target)));
    targets.sort_unstable();
    targets.dedup();
    // Every table but the XSDT, and the FACS.
    assert_eq!(targets.len(), written.tables.len());
    assert_eq!(
        written.xsdt,
        AT + written.tables.last().unwrap().start as u64
    );
}

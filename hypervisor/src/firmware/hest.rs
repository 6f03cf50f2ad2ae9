//! The sources of hardware errors that the firmware reports itself: the HEST.
//!
//! Source: ACPI Specification 6.5, section 18.3.2.

use alloc::{format, string::String, vec::Vec};

use mca::scan::Banks;

/// The way in which the firmware tells that a source has a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// By an NMI.
    Nmi,
    /// In another way, or not at all: the record is looked for.
    Polled,
}

/// A generic hardware error source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The source's number.
    pub id: u16,
    /// Physical address of the 8 bytes that hold the physical address of the record.
    pub pointer: u64,
    /// Maximum size of the record in bytes.
    pub bytes: u32,
    /// The way in which the firmware tells that there is a record.
    pub notice: Notice,
    /// The acknowledgement that the firmware waits for before it writes the next record.
    pub acknowledge: Option<Acknowledge>,
}

/// A register that tells the firmware that a record was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledge {
    /// Physical address of the 8 bytes.
    pub register: u64,
    /// Bits that are preserved.
    pub preserve: u64,
    /// Bits that are set.
    pub write: u64,
}

/// The contents of the HEST.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hest {
    /// The enabled generic sources whose registers are memory.
    pub sources: Vec<Source>,
    /// The banks whose corrected errors the firmware handles first. Software leaves them alone.
    pub firmware_first: Banks,
    /// The problem with the table, if any. What comes before it is used.
    pub problem: Option<String>,
}

const COUNT: usize = 36;
const ENTRIES: usize = 40;
const GENERIC: u64 = 9;
const GENERIC_2: u64 = 10;
const CORRECTED: u64 = 1;
/// Size in bytes of the description of a bank.
const BANK: usize = 28;
/// Maximum size in bytes of a record.
const MAX_RECORD: u64 = 64 << 10;

/// Parses the HEST. An entry that is cut off or of an unknown type, whose size is unknown, ends the list.
#[must_use]
pub fn parse(table: &[u8]) -> Hest {
    let mut hest = Hest::default();
    let mut rest = table.get(ENTRIES..).unwrap_or_default();
    for index in 0..number(table, COUNT, 4) {
        let Some(entry) = size(rest).and_then(|bytes| rest.get(..bytes)) else {
            hest.problem = Some(format!(
                "entry {index} of the HEST, of type {}, is cut off or not known: the error sources from it on are not \
                 used",
                number(rest, 0, 2)
            ));
            break;
        };
        match number(entry, 0, 2) {
            GENERIC | GENERIC_2 => hest.sources.extend(source(entry)),
            CORRECTED => {
                const FIRMWARE_FIRST: u64 = 1;
                if number(entry, 6, 1) & FIRMWARE_FIRST != 0 {
                    let banks = entry[48..].chunks_exact(BANK);
                    banks.for_each(|bank| hest.firmware_first.add(bank[0]));
                }
            }
            _ => {}
        }
        rest = &rest[entry.len()..];
    }
    hest
}

/// Returns the size of the entry at the start of `bytes`.
fn size(bytes: &[u8]) -> Option<usize> {
    let with_banks =
        |header: usize, count: usize| Some(header + BANK * usize::from(*bytes.get(count)?));
    match number(bytes.get(..2)?, 0, 2) {
        // The machine check exception, the corrected machine check and the deferred machine check.
        0 => with_banks(40, 32),
        1 | 11 => with_banks(48, 44),
        // NMI, PCIe root port, PCIe device, PCIe bridge.
        2 => Some(20),
        6 => Some(48),
        7 => Some(44),
        8 => Some(56),
        9 => Some(64),
        10 => Some(92),
        _ => None,
    }
}

fn source(entry: &[u8]) -> Option<Source> {
    const NMI: u64 = 4;
    let is_enabled = number(entry, 7, 1) != 0;
    let bytes = number(entry, 60, 4);
    let is_usable = (mca::cper::HEADER as u64..=MAX_RECORD).contains(&bytes);
    let pointer = memory(entry, 20).filter(|_| is_enabled && is_usable)?;
    let acknowledge = memory(entry, 64).map(|register| Acknowledge {
        register,
        preserve: number(entry, 76, 8),
        write: number(entry, 84, 8),
    });
    Some(Source {
        id: number(entry, 2, 2) as u16,
        pointer,
        bytes: bytes as u32,
        notice: match number(entry, 32, 1) {
            NMI => Notice::Nmi,
            _ => Notice::Polled,
        },
        acknowledge,
    })
}

/// Returns the address in a generic address structure of 8 aligned bytes in memory.
fn memory(entry: &[u8], at: usize) -> Option<u64> {
    const SYSTEM_MEMORY: u64 = 0;
    const BITS: u64 = 64;
    let address = number(entry, at + 4, 8);
    let is_plain = number(entry, at, 1) == SYSTEM_MEMORY
        && number(entry, at + 1, 1) == BITS
        && number(entry, at + 2, 1) == 0
        && entry.len() >= at + 12;
    (is_plain && address != 0 && address.is_multiple_of(8) && address < 1 << 52).then_some(address)
}

/// Reads the number of `size` bytes at `at`; 0 behind the end.
fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let field = bytes.get(at..at + size).unwrap_or_default();
    field
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn table(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut table = vec![0; COUNT];
        table.extend((entries.len() as u32).to_le_bytes());
        table.extend(entries.concat());
        table
    }

    fn generic(kind: u8, notice: u8) -> Vec<u8> {
        let mut entry = vec![0; if kind == 10 { 92 } else { 64 }];
        entry[0] = kind;
        entry[2] = 7;
        entry[7] = 1;
        entry[21] = 64;
        entry[24..32].copy_from_slice(&0x7E00_0000u64.to_le_bytes());
        entry[32] = notice;
        entry[60..64].copy_from_slice(&0x1000u32.to_le_bytes());
        if kind == 10 {
            entry[65] = 64;
            entry[68..76].copy_from_slice(&0x7E00_0008u64.to_le_bytes());
            entry[76..84].copy_from_slice(&(!1u64).to_le_bytes());
            entry[84..92].copy_from_slice(&1u64.to_le_bytes());
        }
        entry
    }

    /// The corrected machine check, of these banks.
    fn corrected(flags: u8, banks: &[u8]) -> Vec<u8> {
        let mut entry = vec![0; 48];
        entry[0] = 1;
        entry[6] = flags;
        entry[44] = banks.len() as u8;
        for bank in banks {
            entry.push(*bank);
            entry.extend([0; BANK - 1]);
        }
        entry
    }

    #[test]
    fn sources_are_found_behind_entries_of_every_size() {
        let mut check = vec![0; 40 + 2 * BANK];
        check[32] = 2;
        let others = [(2, 20), (6, 48), (7, 44), (8, 56)].map(|(kind, bytes)| {
            let mut entry = vec![0; bytes];
            entry[0] = kind;
            entry
        });
        let mut entries = vec![check, corrected(1, &[3, 5]), corrected(0, &[1])];
        entries.extend(others);
        entries.extend([generic(9, 0), generic(10, 4)]);
        let hest = parse(&table(&entries));
        assert_eq!(hest.problem, None);
        assert_eq!(hest.firmware_first, Banks(1 << 3 | 1 << 5));
        let polled = Source {
            id: 7,
            pointer: 0x7E00_0000,
            bytes: 0x1000,
            notice: Notice::Polled,
            acknowledge: None,
        };
        let by_nmi = Source {
            notice: Notice::Nmi,
            acknowledge: Some(Acknowledge {
                register: 0x7E00_0008,
                preserve: !1,
                write: 1,
            }),
            ..polled
        };
        assert_eq!(hest.sources, [polled, by_nmi]);
    }

    #[test]
    fn what_can_not_be_used_is_left_out() {
        let changed = |at: usize, value: u8| {
            let mut entry = generic(9, 0);
            entry[at] = value;
            entry
        };
        // Disabled, an I/O port, an odd address, a record larger than 64 KiB.
        let entries = [
            changed(7, 0),
            changed(20, 1),
            changed(24, 1),
            changed(63, 1),
        ];
        let hest = parse(&table(&entries));
        assert_eq!((hest.sources, hest.problem), (vec![], None));
    }

    #[test]
    fn an_unknown_entry_ends_the_list_with_a_sentence() {
        let hest = parse(&table(&[generic(9, 0), vec![99; 64], generic(9, 0)]));
        assert_eq!(hest.sources.len(), 1);
        assert!(
            hest.problem
                .is_some_and(|problem| problem.starts_with("entry 1 of the HEST"))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, mut tail in prop::collection::vec(0u8..12, 0..300)) {
            let _ = parse(&bytes);
            let mut table = vec![0; COUNT];
            table.extend([9, 0, 0, 0]);
            table.append(&mut tail);
            let hest = parse(&table);
            prop_assert!(hest.sources.len() <= 9);
        }
    }
}

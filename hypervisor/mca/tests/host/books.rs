//! The books of a CPU, and the firmware's records.

use crate::cpu::{LINE, LOST, reading};
use mca::{
    books::{Books, KEPT},
    cper::{Block, HEADER, Kind, Severity},
    verdict::{Occasion, Verdict},
};
use proptest::prelude::*;

#[test]
fn corrected_errors_count_as_the_bank_counted_them() {
    let books = Books::new();
    let enter = |status: u64| {
        let error = reading(1 << 63 | status, 0x5000, LINE);
        books.enter(7, &error, Verdict::Corrected, Occasion::Poll);
    };
    enter(0x90);
    enter(5 << 38 | 0x90);
    books.count_signal();
    let lost = reading(LOST, 0x5000, LINE);
    books.enter(8, &lost, Verdict::Optional, Occasion::MachineCheck);
    // An error that stays in a bank for another CPU is entered there.
    books.enter(9, &lost, Verdict::NotHere, Occasion::MachineCheck);
    let counts = books.counts();
    assert_eq!(
        (counts.corrected, counts.uncorrected, counts.signals),
        (6, 1, 1)
    );
    assert_eq!(books.last(), 3);
}

#[test]
fn the_last_errors_are_kept_in_order() {
    let books = Books::new();
    for tsc in 1..=KEPT as u64 + 3 {
        let error = reading(1 << 63, tsc << 12, LINE);
        books.enter(tsc, &error, Verdict::Corrected, Occasion::Start);
    }
    let kept = books.since(0);
    assert_eq!(kept.len(), KEPT);
    assert!(kept.iter().zip(4..).all(|(kept, number)| {
        kept.number == number
            && kept.tsc == u64::from(number)
            && kept.reading.address == Some(u64::from(number) << 12)
            && kept.is_stale
            && kept.verdict == "corrected"
    }));
    assert_eq!(books.since(10).len(), 1);
    assert!(books.since(books.last()).is_empty());
}

const MEMORY: [u8; 16] = [
    0x14, 0x11, 0xBC, 0xA5, 0x64, 0x6F, 0xDE, 0x4E, 0xB8, 0x63, 0x3E, 0x83, 0xED, 0x7C, 0x83, 0xB1,
];

/// A memory section at `address`, with the header of revision `revision`.
fn section(severity: u32, revision: u16, address: Option<u64>) -> Vec<u8> {
    let mut body = vec![0; 80];
    body[0] = if address.is_some() { 2 } else { 0 };
    body[16..24].copy_from_slice(&address.unwrap_or(0).to_le_bytes());
    let mut section = MEMORY.to_vec();
    section.extend(severity.to_le_bytes());
    section.extend(revision.to_le_bytes());
    section.extend([0, 0]);
    section.extend((body.len() as u32).to_le_bytes());
    section.resize(if revision >= 0x300 { 72 } else { 64 }, 0);
    section.extend(body);
    section
}

fn block(severity: u32, sections: &[Vec<u8>]) -> Vec<u8> {
    let data = sections.concat();
    let status = 1 | (sections.len() as u32) << 4;
    let mut block = status.to_le_bytes().to_vec();
    block.extend([0; 8]);
    block.extend((data.len() as u32).to_le_bytes());
    block.extend(severity.to_le_bytes());
    assert_eq!(block.len(), HEADER);
    block.extend(data);
    block
}

#[test]
fn a_record_of_the_firmware_names_the_page() {
    let bytes = block(
        0,
        &[
            section(2, 0x201, Some(0x12_3456_7890)),
            section(0, 0x300, None),
        ],
    );
    let block = Block::decode(&bytes).unwrap();
    assert_eq!(block.severity, Severity::Recoverable);
    let sections: Vec<_> = block.sections().collect();
    assert_eq!(sections.len(), 2);
    assert_eq!(sections[0].kind, Kind::Memory);
    assert_eq!(sections[0].severity, Severity::Corrected);
    assert_eq!(sections[0].page, Some(0x12_3456_7000));
    assert_eq!(
        (sections[1].severity, sections[1].page),
        (Severity::Recoverable, None)
    );
}

#[test]
fn an_empty_or_cut_record_is_none() {
    let mut bytes = block(1, &[section(1, 0x300, Some(0x5000))]);
    assert_eq!(Block::decode(&bytes).unwrap().severity, Severity::Fatal);
    assert!(Block::decode(&bytes[..bytes.len() - 1]).is_none());
    bytes[0] &= !0xF;
    assert!(Block::decode(&bytes).is_none(), "no error is pending");
    assert!(Block::decode(&[]).is_none());
}

proptest! {
    #[test]
    fn any_record_is_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..400), data: u16) {
        if let Some(length) = bytes.get_mut(12..16) {
            length.copy_from_slice(&u32::from(data).to_le_bytes());
        }
        if let Some(block) = Block::decode(&bytes) {
            prop_assert!(block.sections().count() <= 400 / 64);
        }
    }
}

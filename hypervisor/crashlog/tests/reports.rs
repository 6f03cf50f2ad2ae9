//! Tests that a report comes back as it was, whatever else is found beside it.

use core::fmt::Write;

use crashlog::{
    piece::{HEADER, Identity, MAX_PIECES, Piece, pieces},
    report::{Report, Store},
    text::{MAX_TEXT, Text},
};
use proptest::prelude::*;

fn of(crashes: u32, text: &str) -> Identity {
    Identity {
        crashes,
        unix: 1_700_000_000 + u64::from(crashes),
        id: 9,
        total: text.len() as u32,
    }
}

fn encode(of: Identity, text: &str, size: usize) -> Vec<Vec<u8>> {
    let encode = |piece: Piece<'_>| {
        let mut bytes = vec![0; size];
        let len = piece.encode(&mut bytes).unwrap();
        bytes.truncate(len);
        bytes
    };
    pieces(of, text.as_bytes(), size).map(encode).collect()
}

fn newest(found: &[(Store, Vec<u8>)]) -> Option<Report> {
    let found = found.iter();
    Report::newest(found.map(|(store, bytes)| (*store, bytes.as_slice())))
}

#[test]
fn the_newest_report_of_several_stores_counts() {
    let (old, new) = ("crash: old", "crash: new\ncrash: end\n");
    let mut found: Vec<(Store, Vec<u8>)> = Vec::new();
    found.extend(
        encode(of(1, old), old, 64)
            .into_iter()
            .map(|b| (Store::Variables, b)),
    );
    found.extend(
        encode(of(2, new), new, 64)
            .into_iter()
            .map(|b| (Store::Memory, b)),
    );
    found.extend(
        encode(of(2, new), new, 900)
            .into_iter()
            .map(|b| (Store::Erst, b)),
    );
    let report = newest(&found).unwrap();
    assert_eq!(report.lines, ["crash: new", "crash: end"]);
    assert_eq!(report.stores, [Store::Erst, Store::Memory]);
    assert_eq!(report.of.crashes, 2);
}

#[test]
fn stores_complete_each_other() {
    let text = "a".repeat(100);
    let all = encode(of(1, &text), &text, HEADER + 10);
    let mut found = vec![(Store::Variables, all[0].clone())];
    assert_eq!(newest(&found).unwrap().missing, 90);
    found.extend(all[1..].iter().map(|bytes| (Store::Erst, bytes.clone())));
    assert_eq!(newest(&found).unwrap().lines, [text]);
}

#[test]
fn what_could_control_a_terminal_is_escaped() {
    let text = "crash: a\x1b[2Jb\n\u{9b}c\r\n";
    let found: Vec<_> = encode(of(1, text), text, 900)
        .into_iter()
        .map(|bytes| (Store::Memory, bytes))
        .collect();
    let report = newest(&found).unwrap();
    assert!(
        !report
            .lines
            .iter()
            .any(|line| line.contains(char::is_control))
    );
    assert_eq!(report.lines[0], "crash: a\\u{1b}[2Jb");
}

#[test]
fn a_text_that_is_too_long_is_cut_and_says_so() {
    let mut text = Text::new();
    let mut all = String::new();
    for i in 0..3000 {
        writeln!(text, "crash: line={i}").unwrap();
        writeln!(all, "crash: line={i}").unwrap();
    }
    text.finish("crash: end\n");
    let kept = text.as_str();
    assert!(kept.len() <= MAX_TEXT);
    assert!(kept.ends_with("\ncrash: end\n"));
    let (lines, rest) = kept.split_once("crash: cut_bytes=").unwrap();
    assert!(all.starts_with(lines) && lines.ends_with('\n'));
    let cut: usize = rest.lines().next().unwrap().parse().unwrap();
    assert_eq!(lines.len() + cut, all.len(), "what is cut is counted");

    let mut short = Text::new();
    writeln!(short, "crash: begin").unwrap();
    short.finish("crash: end\n");
    assert_eq!(short.as_str(), "crash: begin\ncrash: end\n");
}

proptest! {
    #[test]
    fn a_report_comes_back_as_it_was(
        text in "[ -~\n]{1,4000}",
        size in HEADER + 100..2000usize,
        order in any::<u64>(),
    ) {
        let mut found: Vec<_> = encode(of(1, &text), &text, size).into_iter().map(|b| (Store::Memory, b)).collect();
        prop_assert!(found.len() <= usize::from(MAX_PIECES));
        let by = order as usize % found.len();
        found.rotate_left(by);
        let report = newest(&found).unwrap();
        prop_assert!(report.is_complete());
        let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
        prop_assert_eq!(report.lines, lines);
    }

    #[test]
    fn damage_is_noticed(text in "[ -~]{1,300}", at in any::<usize>(), bit in 0u8..8) {
        let mut piece = encode(of(1, &text), &text, 900).remove(0);
        let at = at % piece.len();
        piece[at] ^= 1 << bit;
        prop_assert_eq!(Piece::decode(&piece), None);
    }

    #[test]
    fn anything_may_be_found(
        found in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
        offset in any::<u32>(),
        total in any::<u32>(),
        part in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        // A piece with a good checksum is not trusted either.
        let of = Identity { crashes: u32::MAX, unix: u64::MAX, id: 0, total };
        let mut bytes = vec![0; 200];
        Piece { of, offset, part: &part }.encode(&mut bytes);
        let mut found: Vec<_> = found.into_iter().map(|b| (Store::Erst, b)).collect();
        found.push((Store::Variables, bytes));
        if let Some(report) = newest(&found) {
            prop_assert!(report.of.total as usize <= MAX_TEXT);
            prop_assert!(!report.lines.iter().any(|line| line.contains(char::is_control)));
        }
    }
}

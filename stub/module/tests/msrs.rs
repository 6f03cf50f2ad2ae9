//! The MSR bitmaps of a TD, as the module filled them.

mod kit;

use std::ops::RangeInclusive;

use kit::{Builder, TD_PARAMS};
use seam::abi::metadata::td::MSR_BITMAPS;
use seam::abi::{Leaf, Operand};
use stub_module::hooks::Hooks;

/// MSRs that a TD with only x87, SSE and AVX reads directly.
///
/// Source: TDX module 1.5.16, MSR configuration table.
const READS: &[RangeInclusive<u32>] = &[
    0x10..=0x10,
    0x48..=0x49,
    0xBC..=0xBC,
    0x10B..=0x10B,
    0x174..=0x176,
    0x277..=0x277,
    0x600..=0x600,
    0x808..=0x80C,
    0x80E..=0x80E,
    0x810..=0x827,
    0x83F..=0x83F,
    0xDA0..=0xDA0,
    0x1B01..=0x1B01,
    0xC000_0080..=0xC000_0082,
    0xC000_0084..=0xC000_0084,
    0xC000_0100..=0xC000_0103,
];

/// MSRs that it writes directly.
const WRITES: &[RangeInclusive<u32>] = &[
    0x48..=0x49,
    0xBD..=0xBD,
    0x10A..=0x10B,
    0x174..=0x176,
    0x277..=0x277,
    0x600..=0x600,
    0x808..=0x80C,
    0x80E..=0x80E,
    0x810..=0x827,
    0x83F..=0x83F,
    0x1B01..=0x1B01,
    0xC000_0081..=0xC000_0082,
    0xC000_0084..=0xC000_0084,
    0xC000_0100..=0xC000_0103,
];

/// Returns the bit of an MSR in the bitmaps' 4 KiB: low reads, high reads, low writes, high writes.
fn bit(msr: u32, writes: bool) -> u32 {
    let high = msr >= 0xC000_0000;
    u32::from(writes) << 14 | u32::from(high) << 13 | msr & 0x1FFF
}

/// The TD's pages are above 4 GiB ([`kit::BASE`]), as they are on a server.
#[test]
fn exactly_the_msrs_that_are_a_tds_own_do_not_exit() {
    const DEBUG: u64 = 1;
    let built = Builder::new(Hooks::default());
    let td = built.td(33);
    let memory = built.server.machine().memory();
    memory.write(TD_PARAMS, &DEBUG.to_le_bytes());
    built.initialize(&td);

    let word = |index: u32| {
        let field = MSR_BITMAPS.element(index);
        let operands = [(Operand::RCX, td.tdr), (Operand::RDX, field.0)];
        built.cpu(0).leaf(Leaf::MngRd, operands).unwrap().r8
    };
    let words: Vec<u64> = (0..512).map(word).collect();
    let let_through: Vec<u32> = (0..512 * 64)
        .filter(|&bit| words[bit as usize / 64] >> (bit % 64) & 1 == 0)
        .collect();
    let reads = READS.iter().cloned().flatten().map(|msr| bit(msr, false));
    let writes = WRITES.iter().cloned().flatten().map(|msr| bit(msr, true));
    assert_eq!(let_through, reads.chain(writes).collect::<Vec<_>>());
}

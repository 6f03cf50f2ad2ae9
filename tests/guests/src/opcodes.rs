//! Instructions generated from numbers: every opcode in turn, with prefixes and operands of all kinds.

use arrayvec::ArrayVec;
use guest_kit::numbers::Numbers;

/// Maximum length of a generated instruction: one byte more than a processor accepts.
pub const MOST: usize = 16;

/// Bytes of an instruction.
pub type Bytes = ArrayVec<u8, MOST>;

/// Number of groups of 256 further opcodes, which take turns: 0F 38, 0F 3A; VEX maps 1 to 3; and opcodes whose ModRM
/// byte selects the operation: 0F 00, 0F 01, 0F AE, 0F C7.
const GROUPS: u64 = 9;
const WITH_MODRM: [u8; 4] = [0x00, 0x01, 0xAE, 0xC7];

/// Returns instruction number `index`: one of four has one byte of opcode, two have two, one has more.
pub fn instruction(index: u64, numbers: &mut Numbers) -> Bytes {
    let mut bytes = Bytes::new();
    let (round, turn) = (index / 4, index % 4);
    let number = |value: u64| (value % 256) as u8;
    match turn {
        0 => {
            prefixes(&mut bytes, numbers);
            bytes.push(number(round));
        }
        1 | 2 => {
            prefixes(&mut bytes, numbers);
            bytes.extend([0x0F, number(round * 2 + turn - 1)]);
        }
        _ => further(&mut bytes, round / 256 % GROUPS, number(round), numbers),
    }
    operands(&mut bytes, numbers);
    bytes
}

fn further(bytes: &mut Bytes, group: u64, number: u8, numbers: &mut Numbers) {
    match group {
        0 | 1 => {
            prefixes(bytes, numbers);
            bytes.extend([0x0F, if group == 0 { 0x38 } else { 0x3A }, number]);
        }
        2..=4 => {
            let [extension, operands] = [numbers.next() as u8, numbers.next() as u8];
            bytes.extend([0xC4, extension & 0xE0 | (group - 1) as u8, operands, number]);
        }
        _ => {
            prefixes(bytes, numbers);
            let opcode = WITH_MODRM[(group - 5) as usize % WITH_MODRM.len()];
            bytes.extend([0x0F, opcode, number]);
        }
    }
}

/// Adds prefixes, usually none but REX.
fn prefixes(bytes: &mut Bytes, numbers: &mut Numbers) {
    const SEGMENTS: [u8; 6] = [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65];
    const LOCK: u8 = 0xF0;
    for (prefix, seldom) in [(0x66, 6), (0xF2, 10), (0xF3, 8), (0x67, 16), (LOCK, 24)] {
        if numbers.once_in(seldom) {
            bytes.push(prefix);
        }
    }
    if numbers.once_in(12) {
        bytes.push(numbers.of(&SEGMENTS));
    }
    if numbers.once_in(2) {
        bytes.push(0x40 | numbers.below(16) as u8);
    }
}

/// Adds ModRM and what follows it. Registers as operands and as addresses are the most common.
fn operands(bytes: &mut Bytes, numbers: &mut Numbers) {
    const MOD: u8 = 0xC0;
    let modrm = numbers.next() as u8;
    bytes.push(match numbers.below(4) {
        0 => modrm,
        1 => modrm | MOD,
        _ => modrm & !MOD,
    });
    while !bytes.is_full() {
        bytes.push(numbers.next() as u8);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use super::*;

    /// Returns an instruction without its prefixes in 64-bit mode.
    fn opcode(bytes: &[u8]) -> &[u8] {
        const PREFIXES: [u8; 11] = [
            0x66, 0xF2, 0xF3, 0x67, 0xF0, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65,
        ];
        let at = bytes
            .iter()
            .position(|byte| !PREFIXES.contains(byte) && byte & 0xF0 != 0x40);
        &bytes[at.unwrap_or(0)..]
    }

    #[test]
    fn every_opcode_comes_in_turn() {
        let mut numbers = Numbers::new(1);
        let (mut one, mut two, mut three) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for index in 0..4 * 256 * GROUPS {
            let bytes = instruction(index, &mut numbers);
            match opcode(&bytes) {
                [0x0F, table @ (0x38 | 0x3A), opcode, ..] if index % 4 == 3 => {
                    three.insert((*table, *opcode));
                }
                [0x0F, opcode, ..] if index % 4 != 0 => _ = two.insert(*opcode),
                [opcode, ..] => _ = one.insert(*opcode),
                [] => {}
            }
        }
        assert_eq!(two.len(), 256);
        assert_eq!(three.len(), 512);
        // A prefix or REX as the opcode can't be told apart.
        assert!(one.len() >= 256 - 16 - 11, "{}", one.len());
    }
}

//! ACPI Machine Language (AML), as far as a TD's devices need it.
//!
//! Source: ACPI Specification 6.5, chapter 20 (encoding), section 6.4 (resources).

use arrayvec::ArrayVec;

/// Maximum size of a term in bytes.
pub const MAX: usize = 256;

/// A term.
pub type Term = ArrayVec<u8, MAX>;

const NAME_OP: u8 = 0x08;
const SCOPE_OP: u8 = 0x10;
const BUFFER_OP: u8 = 0x11;
const PACKAGE_OP: u8 = 0x12;
const EXTENDED: u8 = 0x5B;
const DEVICE_OP: u8 = 0x82;
const BYTE_PREFIX: u8 = 0x0A;
const DWORD_PREFIX: u8 = 0x0C;
const STRING_PREFIX: u8 = 0x0D;
const END_TAG: [u8; 2] = [0x79, 0];

/// Concatenates bytes or terms. The sum must fit; a larger one is a defect of the program.
fn row(parts: &[&[u8]]) -> Term {
    let mut term = Term::new();
    for part in parts {
        term.try_extend_from_slice(part)
            .expect("a term that has room");
    }
    term
}

/// Encodes `Name (name, value)`.
pub fn name(name: [u8; 4], value: &[u8]) -> Term {
    row(&[&[NAME_OP], &name, value])
}

/// Encodes `Scope (\name) { terms }`.
pub fn scope(name: [u8; 4], terms: &[&[u8]]) -> Term {
    let body = row(&[b"\\", &name, &row(terms)]);
    row(&[&[SCOPE_OP], &package_length(body.len()), &body])
}

/// Encodes `Device (name) { terms }`.
pub fn device(name: [u8; 4], terms: &[&[u8]]) -> Term {
    let body = row(&[&name, &row(terms)]);
    row(&[&[EXTENDED, DEVICE_OP], &package_length(body.len()), &body])
}

/// Encodes `Package () { bytes }`.
pub fn package(bytes: &[u8]) -> Term {
    let mut body = Term::new();
    body.push(bytes.len() as u8);
    for byte in bytes {
        body.extend([BYTE_PREFIX, *byte]);
    }
    row(&[&[PACKAGE_OP], &package_length(body.len()), &body])
}

/// Encodes `EisaId ("PNPdddd")`, given the four hexadecimal digits.
pub fn pnp(digits: u16) -> Term {
    // Three letters of five bits each, then the digits, most significant byte first.
    let letters = b"PNP"
        .iter()
        .fold(0u16, |word, letter| word << 5 | u16::from(letter - 0x40));
    let [a, b] = letters.to_be_bytes();
    let [c, d] = digits.to_be_bytes();
    row(&[&[DWORD_PREFIX, a, b, c, d]])
}

/// Encodes a string.
pub fn string(text: &str) -> Term {
    row(&[&[STRING_PREFIX], text.as_bytes(), &[0]])
}

/// Encodes `ResourceTemplate () { IO (Decode16, port, port, 1, count); IRQNoFlags... }`: ports and an optional
/// interrupt, edge-triggered and active high.
pub fn resources(port: u16, count: u8, interrupt: Option<u8>) -> Term {
    const IO: u8 = 0x47;
    const DECODE_16: u8 = 1;
    const IRQ_WITH_FLAGS: u8 = 0x23;
    const EDGE_ACTIVE_HIGH: u8 = 1;
    let [low, high] = port.to_le_bytes();
    let mut list = row(&[&[IO, DECODE_16, low, high, low, high, 1, count]]);
    if let Some(interrupt) = interrupt {
        let [low, high] = (1u16 << interrupt).to_le_bytes();
        list.extend([IRQ_WITH_FLAGS, low, high, EDGE_ACTIVE_HIGH]);
    }
    list.extend(END_TAG);
    let body = row(&[&[BYTE_PREFIX, list.len() as u8], &list]);
    row(&[&[BUFFER_OP], &package_length(body.len()), &body])
}

/// Encodes the PkgLength of `bytes` bytes that follow it. The length includes its own encoding.
fn package_length(bytes: usize) -> ArrayVec<u8, 2> {
    let mut encoded = ArrayVec::new();
    if bytes + 1 < 1 << 6 {
        encoded.push((bytes + 1) as u8);
    } else {
        let length = bytes + 2;
        encoded.push(0x40 | (length & 0xF) as u8);
        encoded.push((length >> 4) as u8);
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_spelled_as_iasl_spells_it() {
        // iasl: EisaId ("PNP0501") is 0C 41 D0 05 01.
        assert_eq!(pnp(0x0501)[..], [0x0C, 0x41, 0xD0, 0x05, 0x01]);
        assert_eq!(
            name(*b"_S5_", &package(&[5, 0]))[..],
            [0x08, b'_', b'S', b'5', b'_', 0x12, 6, 2, 0x0A, 5, 0x0A, 0]
        );
    }

    #[test]
    fn a_string_ends_with_a_zero() {
        assert_eq!(string("AB")[..], [0x0D, b'A', b'B', 0]);
    }

    #[test]
    fn lengths_grow_to_two_bytes() {
        assert_eq!(package_length(62)[..], [63]);
        assert_eq!(package_length(63)[..], [0x41, 4]);
        assert_eq!(package_length(200)[..], [0x4A, 12]);
    }

    #[test]
    fn resources_end_with_their_tag() {
        let term = resources(0x3F8, 8, Some(4));
        assert_eq!(
            term[..],
            [
                0x11, 17, 0x0A, 14, 0x47, 1, 0xF8, 3, 0xF8, 3, 1, 8, 0x23, 0x10, 0, 1, 0x79, 0
            ]
        );
    }
}

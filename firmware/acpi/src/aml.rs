//! ACPI Machine Language (AML), as far as a TD's devices need it.
//!
//! Source: ACPI Specification 6.5, chapter 20 (encoding), section 6.4 (resources).

use core::ops::Range;

use arrayvec::ArrayVec;

/// Maximum size of a term in bytes.
pub const MAX: usize = 512;

/// A term.
pub type Term = ArrayVec<u8, MAX>;

const NAME_OP: u8 = 0x08;
const SCOPE_OP: u8 = 0x10;
const BUFFER_OP: u8 = 0x11;
const PACKAGE_OP: u8 = 0x12;
const EXTENDED: u8 = 0x5B;
const DEVICE_OP: u8 = 0x82;
const BYTE_PREFIX: u8 = 0x0A;
const WORD_PREFIX: u8 = 0x0B;
const DWORD_PREFIX: u8 = 0x0C;
const STRING_PREFIX: u8 = 0x0D;
const END_TAG: [u8; 2] = [0x79, 0];
/// Flags of an address space: both ends are fixed, and the bridge passes it on to its bus.
const FIXED: u8 = 0x0C;

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

/// Encodes a byte.
pub fn byte(value: u8) -> Term {
    row(&[&[BYTE_PREFIX, value]])
}

/// Encodes a string.
pub fn string(text: &str) -> Term {
    row(&[&[STRING_PREFIX], text.as_bytes(), &[0]])
}

/// Encodes `ResourceTemplate () { resources }`.
pub fn template(resources: &[&[u8]]) -> Term {
    let list = row(&[&row(resources), &END_TAG]);
    let [low, high] = (list.len() as u16).to_le_bytes();
    let body = match high {
        0 => row(&[&[BYTE_PREFIX, low], &list]),
        _ => row(&[&[WORD_PREFIX, low, high], &list]),
    };
    row(&[&[BUFFER_OP], &package_length(body.len()), &body])
}

/// Encodes `IO (Decode16, port, port, 1, count)`.
pub fn ports(port: u16, count: u8) -> Term {
    const IO: u8 = 0x47;
    const DECODE_16: u8 = 1;
    let [low, high] = port.to_le_bytes();
    row(&[&[IO, DECODE_16, low, high, low, high, 1, count]])
}

/// Encodes `IRQ (Edge, ActiveHigh, Exclusive) { interrupt }`.
pub fn interrupt(interrupt: u8) -> Term {
    const IRQ_WITH_FLAGS: u8 = 0x23;
    const EDGE_ACTIVE_HIGH: u8 = 1;
    let [low, high] = (1u16 << interrupt).to_le_bytes();
    row(&[&[IRQ_WITH_FLAGS, low, high, EDGE_ACTIVE_HIGH]])
}

/// Encodes `Memory32Fixed (ReadWrite, start, bytes)`.
pub fn fixed_memory(start: u32, bytes: u32) -> Term {
    const MEMORY_32_FIXED: [u8; 3] = [0x86, 9, 0];
    const READ_WRITE: u8 = 1;
    row(&[
        &MEMORY_32_FIXED,
        &[READ_WRITE],
        &start.to_le_bytes(),
        &bytes.to_le_bytes(),
    ])
}

/// Encodes `WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, first, last, 0, count)`.
pub fn buses(first: u8, last: u8) -> Term {
    const WORD_SPACE: [u8; 3] = [0x88, 13, 0];
    const BUS_NUMBERS: [u8; 3] = [2, FIXED, 0];
    let count = u16::from(last - first) + 1;
    let words = [0, first.into(), last.into(), 0, count].map(u16::to_le_bytes);
    row(&[&WORD_SPACE, &BUS_NUMBERS, words.as_flattened()])
}

/// Encodes `QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite, 0, start, end - 1, 0,
/// end - start)`.
pub fn memory(range: Range<u64>) -> Term {
    const QWORD_SPACE: [u8; 3] = [0x8A, 43, 0];
    const UNCACHED_MEMORY: [u8; 3] = [0, FIXED, 1];
    let words = [0, range.start, range.end - 1, 0, range.end - range.start];
    let words = words.map(u64::to_le_bytes);
    row(&[&QWORD_SPACE, &UNCACHED_MEMORY, words.as_flattened()])
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
    fn windows_are_spelled_as_iasl_spells_them() {
        assert_eq!(
            buses(0, 0)[..],
            [0x88, 13, 0, 2, 0x0C, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
        );
        let window = memory(0xC000_0000..0xE000_0000);
        assert_eq!(window.len(), 3 + 43);
        assert_eq!(window[..6], [0x8A, 0x2B, 0, 0, 0x0C, 1]);
        assert_eq!(window[14..22], 0xC000_0000_u64.to_le_bytes());
        assert_eq!(window[22..30], 0xDFFF_FFFF_u64.to_le_bytes());
        assert_eq!(window[38..], 0x2000_0000_u64.to_le_bytes());
        assert_eq!(
            fixed_memory(0xE000_0000, 0x10_0000)[..],
            [0x86, 9, 0, 1, 0, 0, 0, 0xE0, 0, 0, 0x10, 0]
        );
    }

    #[test]
    fn resources_end_with_their_tag() {
        let term = template(&[&ports(0x3F8, 8), &interrupt(4)]);
        assert_eq!(
            term[..],
            [
                0x11, 17, 0x0A, 14, 0x47, 1, 0xF8, 3, 0xF8, 3, 1, 8, 0x23, 0x10, 0, 1, 0x79, 0
            ]
        );
    }
}

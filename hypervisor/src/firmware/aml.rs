//! The only part of the DSDT that is needed: the package `_S5` with the values that mean "off".
//!
//! A full AML interpreter would be a lot of code for two bytes. The package is constant in every known firmware, and
//! is found by its name.
//!
//! Source: ACPI Specification 6.5, sections 7.4.2.6 and 20.2.

/// The SLP_TYP values for PM1a and PM1b control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepType {
    /// PM1a's value, 0 to 7.
    pub a: u8,
    /// PM1b's value, 0 to 7.
    pub b: u8,
}

const NAME_OP: u8 = 0x08;
const ROOT: u8 = b'\\';
const PACKAGE_OP: u8 = 0x12;

/// Returns the values for S5 in this AML, or `None` if it has no such package.
#[must_use]
pub fn s5(aml: &[u8]) -> Option<SleepType> {
    let mut from = 0;
    while let Some(found) = find(&aml[from..], b"_S5_") {
        let at = from + found;
        if is_named(&aml[..at])
            && let Some(sleep) = package(&aml[at + 4..])
        {
            return Some(sleep);
        }
        from = at + 4;
    }
    None
}

/// Returns true if the name that follows `before` is being declared.
fn is_named(before: &[u8]) -> bool {
    matches!(before, [.., NAME_OP] | [.., NAME_OP, ROOT])
}

/// Returns the first two elements of the package that starts here.
fn package(aml: &[u8]) -> Option<SleepType> {
    let (&PACKAGE_OP, rest) = aml.split_first()? else {
        return None;
    };
    // The length's first byte says how many more follow; then comes the number of elements.
    let length_bytes = 1 + usize::from(*rest.first()? >> 6);
    let elements = rest.get(length_bytes + 1..)?;
    let (a, rest) = integer(elements)?;
    // A package of one element serves both registers.
    let b = integer(rest).map_or(a, |(b, _)| b);
    (a < 8 && b < 8).then_some(SleepType { a, b })
}

/// Parses a small constant: ZeroOp, OneOp, or a byte, word or double word.
fn integer(aml: &[u8]) -> Option<(u8, &[u8])> {
    let (op, rest) = aml.split_first()?;
    let bytes = match op {
        0x00 => return Some((0, rest)),
        0x01 => return Some((1, rest)),
        0x0A => 1,
        0x0B => 2,
        0x0C => 4,
        _ => return None,
    };
    Some((*rest.first()?, rest.get(bytes..)?))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_package_is_found_by_its_name() {
        let aml = b"\x10\x05_S5__S5_\x08_S5_\x12\x06\x04\x0A\x05\x0A\x07\x00\x00";
        assert_eq!(s5(aml), Some(SleepType { a: 5, b: 7 }));
    }

    #[test]
    fn zero_is_a_value_and_the_root_may_be_named() {
        let aml = b"\x08\\_S5_\x12\x06\x04\x00\x00\x00\x00";
        assert_eq!(s5(aml), Some(SleepType { a: 0, b: 0 }));
    }

    #[test]
    fn a_name_without_a_package_is_passed_over() {
        assert_eq!(s5(b"\x08_S5_\x0A\x05"), None);
        assert_eq!(s5(b""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes: Vec<u8>) {
            let _ = s5(&bytes);
            bytes.splice(0..0, *b"\x08_S5_\x12");
            let _ = s5(&bytes);
        }
    }
}

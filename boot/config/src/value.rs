//! Values of keys that are written as text: sizes, measurements, UUIDs, device paths.

use alloc::{format, string::String, vec::Vec};
use core::fmt::Write;

use toml::de::DeValue;
use uuid::{Uuid, fmt::Hyphenated};

use super::keys::{quoted, text};

/// Granularity of a TD's memory in bytes: it consists of 2 MiB frames.
pub const MEMORY_STEP: u64 = 2 << 20;

/// Size of MRCONFIGID, MROWNER and MROWNERCONFIG in bytes.
pub const MEASUREMENT_BYTES: usize = 48;

/// Largest number of device paths in a boot order, and of characters in a path.
const DEVICE_PATHS: usize = 16;
const DEVICE_PATH: usize = 127;

/// Reads a size in 2 MiB frames.
pub fn whole_frames(value: &DeValue<'_>) -> Option<u64> {
    bytes(value.as_str()?).filter(|bytes| *bytes != 0 && bytes.is_multiple_of(MEMORY_STEP))
}

/// Parses a size such as `"256M"` and returns the bytes. Returns `None` if the text is no such size, or if it exceeds
/// 64 bits.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = [('M', 20), ('G', 30), ('T', 40)]
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = plain.then(|| digits.parse().ok())??;
    number.checked_mul(1 << shift)
}

/// Returns a size in the largest unit that it is a multiple of.
pub fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 40) => format!("{}T", bytes >> 40),
        _ if bytes.is_multiple_of(1 << 30) => format!("{}G", bytes >> 30),
        _ => format!("{}M", bytes >> 20),
    }
}

/// Reads a measurement in hexadecimal digits.
pub fn measurement(value: &DeValue<'_>) -> Option<[u8; MEASUREMENT_BYTES]> {
    let text = value.as_str()?;
    if text.len() != 2 * MEASUREMENT_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; MEASUREMENT_BYTES];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Reads a list of device paths: printable ASCII without blanks.
pub fn device_paths(value: &DeValue<'_>) -> Option<Vec<String>> {
    let list = value.as_array()?;
    let paths = list.iter().map(|path| {
        let is_path = |path: &String| {
            path.starts_with('/')
                && path.len() <= DEVICE_PATH
                && path.bytes().all(|byte| byte.is_ascii_graphic())
        };
        text(path.get_ref()).filter(is_path)
    });
    (list.len() <= DEVICE_PATHS).then(|| paths.collect())?
}

/// Parses a UUID in the notation with hyphens.
pub fn uuid(text: &str) -> Option<Uuid> {
    Some(text.parse::<Hyphenated>().ok()?.into_uuid())
}

/// Returns a UUID as [`uuid`] parses it, in quotes; `None` if it is zero.
pub fn shown_uuid(uuid: Uuid) -> Option<String> {
    (!uuid.is_nil()).then(|| quoted(&format!("{uuid}")))
}

/// Returns a measurement as [`measurement`] reads it, in quotes; `None` if it is zero.
pub fn digits(bytes: &[u8; MEASUREMENT_BYTES]) -> Option<String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let mut digits = String::new();
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
    }
    Some(quoted(&digits))
}

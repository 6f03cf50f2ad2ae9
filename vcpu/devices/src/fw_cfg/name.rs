//! Names of files.

/// Bytes of a name, which ends with a zero.
pub const NAME_BYTES: usize = 56;

/// Returns a name in as many bytes as it has everywhere.
pub fn name_bytes(name: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

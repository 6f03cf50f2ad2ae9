//! MRTD: the SHA-384 of the build steps of a TD before it was finalized.
//!
//! Source: TDX Module ABI 1.5, TDH.MEM.PAGE.ADD, TDH.MR.EXTEND and TDH.MR.FINALIZE.

use sha2::{Digest, Sha384};

/// Number of bytes that one TDH.MR.EXTEND measures.
pub const CHUNK: usize = 256;

/// A measurement in progress.
#[derive(Clone)]
pub struct Mrtd(Sha384);

impl Mrtd {
    /// Starts a measurement, as TDH.MNG.INIT does.
    pub fn new() -> Self {
        Self(Sha384::new())
    }

    /// Records that a page was added at `gpa`. Its content does not count.
    pub fn page_add(&mut self, gpa: u64) {
        self.record(b"MEM.PAGE.ADD", gpa);
    }

    /// Records that the 256 bytes at `gpa` were extended.
    pub fn extend(&mut self, gpa: u64, chunk: &[u8; CHUNK]) {
        self.record(b"MR.EXTEND", gpa);
        self.0.update(chunk);
    }

    /// Returns the measurement, as TDH.MR.FINALIZE does.
    pub fn finalize(self) -> [u8; 48] {
        self.0.finalize().into()
    }

    /// Adds 128 bytes: the name padded to 16, the GPA, zeros.
    fn record(&mut self, name: &[u8], gpa: u64) {
        let mut record = [0; 128];
        record[..name.len()].copy_from_slice(name);
        record[16..24].copy_from_slice(&gpa.to_le_bytes());
        self.0.update(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_hashed_as_it_is_laid_out() {
        let mut mrtd = Mrtd::new();
        mrtd.page_add(0x1000);
        mrtd.extend(0x1100, &[7; CHUNK]);
        let mut bytes = b"MEM.PAGE.ADD\0\0\0\0\0\x10\0\0\0\0\0\0".to_vec();
        bytes.resize(128, 0);
        bytes.extend(b"MR.EXTEND\0\0\0\0\0\0\0\0\x11\0\0\0\0\0\0");
        bytes.resize(256, 0);
        bytes.extend([7; CHUNK]);
        assert_eq!(mrtd.finalize(), <[u8; 48]>::from(Sha384::digest(bytes)));
    }
}

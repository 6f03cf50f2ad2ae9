//! The event log, from which a verifier can compute the measurement registers again.
//!
//! Source: TCG PC Client Platform Firmware Profile 1.05, section 10 (TCG_PCR_EVENT2); the number of a register in it:
//! UEFI Specification 2.10, section 38.4.1 (RTMR 0 is 1).

use seam::abi::{MEASUREMENT_SIZE, Measurement};

/// TPM_ALG_SHA384.
const SHA384: u16 = 0x000C;
const NO_ACTION: u32 = 3;
const IPL: u32 = 13;

/// The event log, in memory that is reserved for it.
#[derive(Debug)]
pub struct Log<'a> {
    memory: &'a mut [u8],
    used: usize,
}

impl<'a> Log<'a> {
    /// Creates an empty log. Its first event describes the layout of the others. All bits after the last event are
    /// set.
    pub fn new(memory: &'a mut [u8]) -> Self {
        memory.fill(0xFF);
        let mut log = Self { memory, used: 0 };
        log.put(&0u32.to_le_bytes());
        log.put(&NO_ACTION.to_le_bytes());
        log.put(&[0; 20]);
        let algorithm = [SHA384, MEASUREMENT_SIZE as u16].map(u16::to_le_bytes);
        let content: [&[u8]; 5] = [
            b"Spec ID Event03\0",
            // Platform class: client; version 2.0, errata 0; an address has two units of 32 bits.
            &[0, 0, 0, 0, 0, 2, 0, 2],
            &1u32.to_le_bytes(),
            algorithm.as_flattened(),
            // No vendor information.
            &[0],
        ];
        let length: usize = content.iter().map(|part| part.len()).sum();
        log.put(&(length as u32).to_le_bytes());
        for part in content {
            log.put(part);
        }
        log
    }

    /// Records that RTMR `register` was extended with `digest`, the digest of `what`.
    pub fn extended(&mut self, register: u8, digest: &Measurement, what: &[u8]) {
        self.put(&(u32::from(register) + 1).to_le_bytes());
        self.put(&IPL.to_le_bytes());
        self.put(&1u32.to_le_bytes());
        self.put(&SHA384.to_le_bytes());
        self.put(digest);
        self.put(&(what.len() as u32).to_le_bytes());
        self.put(what);
    }

    /// Appends bytes. A part that does not fit is cut: only the registers matter.
    fn put(&mut self, bytes: &[u8]) {
        let room = &mut self.memory[self.used..];
        let fits = bytes.len().min(room.len());
        room[..fits].copy_from_slice(&bytes[..fits]);
        self.used += fits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_follow_the_one_that_describes_them() {
        let mut memory = [0; 256];
        let mut log = Log::new(&mut memory);
        log.extended(1, &[7; 48], b"kernel");
        let first = 32 + 33;
        assert_eq!(memory[28..32], 33u32.to_le_bytes());
        assert_eq!(memory[32..47], *b"Spec ID Event03");
        assert_eq!(memory[first..first + 4], 2u32.to_le_bytes());
        assert_eq!(memory[first + 14..first + 62], [7; 48]);
        assert_eq!(memory[first + 62..first + 72], *b"\x06\0\0\0kernel");
        assert_eq!(memory[first + 72..], [0xFF; 256 - 65 - 72]);
    }

    #[test]
    fn a_full_log_takes_no_more() {
        let mut memory = [0; 100];
        let mut log = Log::new(&mut memory);
        log.extended(2, &[1; 48], &[2; 1000]);
        log.extended(2, &[1; 48], b"x");
        assert_eq!(log.used, 100);
    }
}

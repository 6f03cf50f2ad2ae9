//! Fatal errors of the module: what the host asks for at TDH.SYS.INIT, and the record that the module leaves.
//!
//! Source: TDH.SYS.INIT version 1 of modules with FATAL_DIAGNOSTICS, as module 1.5.25 answers.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::Hpa;

/// The module's actions at a fatal error: R8 of TDH.SYS.INIT, version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FatalDiagnostics {
    record: Hpa,
    vector: u8,
}

impl FatalDiagnostics {
    /// Bits of R8 with the address of the record; all ones for none.
    pub const ADDRESS: u64 = 0xF_FFFF_FFFF_FFC0;
    /// Lowest bit of R8 with the kind of notification, of two bits.
    pub const KIND: u32 = 54;
    /// Lowest bit of R8 with the vector of the notification, of eight bits.
    pub const VECTOR: u32 = 56;
    /// The lowest vector that the module accepts.
    pub const FIRST_VECTOR: u8 = 16;
    /// The kind of notification that is an interrupt.
    const INTERRUPT: u64 = 1;

    /// Asks for a [`FatalRecord`] at `record`, and for an interrupt with `vector` on every processor but the one that
    /// met the error. Returns `None` if the address is not a multiple of 64 below 2^52, or the vector is below 16.
    #[must_use]
    pub const fn new(record: Hpa, vector: u8) -> Option<Self> {
        if record.0 & !Self::ADDRESS != 0 || vector < Self::FIRST_VECTOR {
            return None;
        }
        Some(Self { record, vector })
    }

    /// Returns the address of the record.
    #[must_use]
    pub const fn record(self) -> Hpa {
        self.record
    }

    /// Returns the operand.
    pub(crate) const fn operand(self) -> u64 {
        self.record.0 | Self::INTERRUPT << Self::KIND | (self.vector as u64) << Self::VECTOR
    }
}

/// The record of a fatal error, 64 bytes. TDH.SYS.LP.INIT clears it.
#[repr(C, align(64))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FatalRecord {
    /// [`Self::COMPLETE`] in bits 7:0 once the record is complete.
    pub state: u64,
    /// The module's own number of the error, which differs from build to build.
    pub error: u64,
    /// Undocumented.
    pub rest: [u64; 6],
}

impl FatalRecord {
    /// The state of a complete record.
    pub const COMPLETE: u64 = 0xFF;

    /// Returns whether the module has written the record.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.state & 0xFF == Self::COMPLETE
    }
}

impl From<[u8; 64]> for FatalRecord {
    fn from(bytes: [u8; 64]) -> Self {
        zerocopy::transmute!(bytes)
    }
}

/// Prints the number of the error, and the whole record if it says more.
impl fmt::Display for FatalRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.error)?;
        if self.state == Self::COMPLETE && self.rest == [0; 6] {
            return Ok(());
        }
        write!(f, " (record {:#x} {:#x}", self.state, self.error)?;
        for word in self.rest {
            write!(f, " {word:#x}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    #[test]
    fn the_operand_is_the_recorded_one() {
        let asked = FatalDiagnostics::new(Hpa(0x1_6003_0000), 0x40).unwrap();
        assert_eq!(asked.operand(), 0x4040_0001_6003_0000);
        assert_eq!(asked.record(), Hpa(0x1_6003_0000));
    }

    #[test]
    fn what_the_module_refuses_cannot_be_asked_for() {
        for (record, vector) in [
            (0x1000, 15),
            (0x1001, 0x40),
            (0x1020, 0x40),
            (1 << 52, 0x40),
        ] {
            assert_eq!(FatalDiagnostics::new(Hpa(record), vector), None);
        }
    }

    #[test]
    fn a_record_shows_what_it_says() {
        let mut record = FatalRecord {
            state: FatalRecord::COMPLETE,
            error: 0x6B,
            rest: [0; 6],
        };
        assert_eq!(record.to_string(), "0x6b");
        record.rest[0] = 7;
        assert_eq!(
            record.to_string(),
            "0x6b (record 0xff 0x6b 0x7 0x0 0x0 0x0 0x0 0x0)"
        );
        assert!(record.is_complete());
        assert!(!FatalRecord::default().is_complete());
    }
}

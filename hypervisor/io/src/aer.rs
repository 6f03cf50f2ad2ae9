//! Errors that a function has reported.

use alloc::vec::Vec;

use crate::{Express, Function, Space, extended};

/// Error bits of a function (PCI Express Base 5.0, 7.8.4), or the summary of one that only has the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Uncorrectable errors: bits of the AER register.
    pub uncorrectable: u32,
    /// Correctable errors: bits of the AER register.
    pub correctable: u32,
    /// Device status: bits 0 to 3 of the PCI Express capability's register.
    pub summary: u16,
}

/// The health of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers, and has reported no error.
    Good,
    /// It has reported these errors since they were last cleared.
    Errors(Errors),
    /// It does not answer.
    Gone,
}

const UNCORRECTABLE_STATUS: u16 = 4;
const CORRECTABLE_STATUS: u16 = 0x10;
const SUMMARY: u16 = 0xF;

const UNCORRECTABLE: [(u8, &str); 16] = [
    (4, "data link protocol error"),
    (5, "surprise down"),
    (12, "poisoned TLP"),
    (13, "flow control protocol error"),
    (14, "completion timeout"),
    (15, "completer abort"),
    (16, "unexpected completion"),
    (17, "receiver overflow"),
    (18, "malformed TLP"),
    (19, "ECRC error"),
    (20, "unsupported request"),
    (21, "ACS violation"),
    (22, "uncorrectable internal error"),
    (24, "AtomicOp blocked"),
    (25, "TLP prefix blocked"),
    (26, "poisoned TLP blocked"),
];
const CORRECTABLE: [(u8, &str); 8] = [
    (0, "receiver error"),
    (6, "bad TLP"),
    (7, "bad DLLP"),
    (8, "REPLAY_NUM rollover"),
    (12, "replay timer timeout"),
    (13, "advisory non-fatal error"),
    (14, "corrected internal error"),
    (15, "header log overflow"),
];
const SUMMARIES: [(u8, &str); 4] = [
    (0, "correctable error"),
    (1, "non-fatal error"),
    (2, "fatal error"),
    (3, "unsupported request"),
];

impl Errors {
    /// Returns the names of the errors, uncorrectable ones first. Without AER they are those of the summary.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        let named = |bits: u32, names: &[(u8, &'static str)]| -> Vec<_> {
            let set = names.iter().filter(|(bit, _)| bits & 1 << bit != 0);
            set.map(|(_, name)| *name).collect()
        };
        let mut all = named(self.uncorrectable, &UNCORRECTABLE);
        all.extend(named(self.correctable, &CORRECTABLE));
        if all.is_empty() {
            all = named(self.summary.into(), &SUMMARIES);
        }
        all
    }

    /// Returns true if data was lost: an error was uncorrectable.
    #[must_use]
    pub fn is_serious(&self) -> bool {
        self.uncorrectable != 0 || self.summary & 0b110 != 0
    }

    fn is_none(&self) -> bool {
        self.uncorrectable == 0 && self.correctable == 0 && self.summary == 0
    }
}

impl Function {
    /// Reads the errors that the function has reported since they were last cleared.
    pub fn health(&self, space: &impl Space) -> Health {
        if !self.answers(space) {
            return Health::Gone;
        }
        let at = self.address;
        let mut errors = Errors::default();
        if let Some(aer) = self.capabilities.extended(extended::AER) {
            errors.uncorrectable = space.read(at, aer + UNCORRECTABLE_STATUS);
            errors.correctable = space.read(at, aer + CORRECTABLE_STATUS);
        }
        if let Some(express) = self.express {
            errors.summary = space.read16(at, express.offset + Express::STATUS) & SUMMARY;
        }
        // It may have vanished in between.
        match self.answers(space) {
            false => Health::Gone,
            true if errors.is_none() => Health::Good,
            true => Health::Errors(errors),
        }
    }

    /// Clears the errors that [`Self::health`] returned. Those that came since then stay.
    pub fn clear(&self, space: &impl Space, errors: Errors) {
        let at = self.address;
        if let Some(aer) = self.capabilities.extended(extended::AER) {
            // Each bit is cleared by writing one.
            space.write(at, aer + UNCORRECTABLE_STATUS, errors.uncorrectable);
            space.write(at, aer + CORRECTABLE_STATUS, errors.correctable);
        }
        if let Some(express) = self.express {
            space.write16(
                at,
                express.offset + Express::STATUS,
                errors.summary & SUMMARY,
            );
        }
    }
}

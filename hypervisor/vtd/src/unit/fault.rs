//! Faults, as a unit records them.
//!
//! Source: VT-d specification, sections 7.1 (Interrupt Translation Faults, Address Translation Faults) and 11.4.14
//! (Fault Recording Registers).

use core::fmt;

use crate::{Function, Source};

/// A request that a unit blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The function that made it.
    pub function: Function,
    /// The request.
    pub request: Request,
    /// The fault reason (FR).
    pub reason: Reason,
}

/// A blocked request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A read of this page.
    Read(u64),
    /// A write to this page.
    Write(u64),
    /// An interrupt, with this index of an entry.
    Interrupt(u16),
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(page) => write!(f, "a read of {page:#x}"),
            Self::Write(page) => write!(f, "a write to {page:#x}"),
            Self::Interrupt(entry) => write!(f, "an interrupt through entry {entry}"),
        }
    }
}

/// The reason of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub u8);

impl Reason {
    const FIRST_OF_INTERRUPTS: u8 = 0x20;

    /// Returns true if an interrupt was blocked.
    #[must_use]
    pub const fn is_interrupt(self) -> bool {
        self.0 >= Self::FIRST_OF_INTERRUPTS && self.0 < 0x30
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.0 {
            1 | 2 => "the function has no domain",
            3 => "invalid context entry",
            4 => "the address is too wide",
            5 => "not mapped for writes",
            6 => "not mapped for reads",
            7..=9 => "a table can't be read",
            0xA..=0xC => "reserved bits in a table",
            0xD => "a translated or forbidden kind of request",
            0xE => "the address is an interrupt's",
            0x20 => "reserved bits in the interrupt",
            0x21 => "no such entry",
            0x22 => "the entry is not in use",
            0x23 => "the entry can't be read",
            0x24 => "reserved bits in the entry",
            0x25 => "compatibility format",
            0x26 => "the entry is another source's",
            0x27 | 0x28 => "the posted-interrupt descriptor can't be used",
            _ => return write!(f, "reason {:#x}", self.0),
        };
        write!(f, "{what} ({:#x})", self.0)
    }
}

/// F of a record's upper half.
pub(super) const VALID: u64 = 1 << 63;

/// Decodes a fault record whose F bit is set.
pub(super) fn decode(segment: u16, [low, high]: [u64; 2]) -> Fault {
    const IS_READ: u64 = 1 << 62;
    const PAGE_REQUEST: u64 = 1 << 28;
    let reason = Reason((high >> 32) as u8);
    let page = low & !0xFFF;
    Fault {
        function: Function::new(segment, Source(high as u16)),
        request: if reason.is_interrupt() {
            Request::Interrupt((low >> 48) as u16)
        } else if high & IS_READ != 0 && high & PAGE_REQUEST == 0 {
            Request::Read(page)
        } else {
            Request::Write(page)
        },
        reason,
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn records_are_decoded() {
        let write = decode(1, [0x1234_5678, VALID | 2 << 32 | 0x0508]);
        assert_eq!(write.function.to_string(), "0001:05:01.0");
        assert_eq!(write.request, Request::Write(0x1234_5000));
        let read = decode(0, [0x5000, VALID | 1 << 62 | 6 << 32]);
        assert_eq!(read.request, Request::Read(0x5000));
        let interrupt = decode(0, [7 << 48, VALID | 0x26 << 32 | 0xFF00]);
        assert_eq!(interrupt.request, Request::Interrupt(7));
        assert!(interrupt.reason.to_string().contains("another source"));
    }
}

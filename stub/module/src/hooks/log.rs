//! Log of the host's violations.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

/// The kind of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "there is nothing to add")]
pub enum Access {
    Read,
    Write,
}

/// An access of the host to memory.
#[derive(Clone, Copy, Debug)]
pub struct HostAccess {
    /// The logical processor.
    pub lp: u32,
    /// The physical address.
    pub pa: u64,
    /// The kind of the access.
    pub access: Access,
    /// The host's instruction pointer, if it is known.
    pub rip: Option<u64>,
}

/// The kind of a violation by the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViolationKind {
    /// Access to memory through an address with a private KeyID.
    KeyIdAlias,
    /// Read of a page that belongs to the module or to a TD.
    PrivateRead,
    /// Write to a page that belongs to the module or to a TD.
    PrivateWrite,
    /// Access to the SEAM range.
    SeamrrAccess,
    /// Handing over a page, to the module or to another user, that still holds contents of a TD.
    ReuseWithoutClearing,
    /// Entry of a vCPU whose TD has given up its key.
    StaleKey,
}

impl ViolationKind {
    /// Returns the kind's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KeyIdAlias => "keyid-alias",
            Self::PrivateRead => "private-read",
            Self::PrivateWrite => "private-write",
            Self::SeamrrAccess => "seamrr-access",
            Self::ReuseWithoutClearing => "reuse-without-clearing",
            Self::StaleKey => "stale-key",
        }
    }
}

/// One violation by the host. Its `Display` is one line of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The kind of violation.
    pub kind: ViolationKind,
    /// The logical processor on which it happened.
    pub lp: u32,
    /// The physical address, including the KeyID.
    pub pa: u64,
    /// The HKID of the memory or key; 0 if there is none.
    pub hkid: u32,
    /// The host's instruction pointer, if known.
    pub rip: Option<u64>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            lp,
            pa,
            hkid,
            rip,
        } = self;
        let name = kind.name();
        write!(
            f,
            r#"{{"violation":"{name}","lp":{lp},"pa":"{pa:#x}","hkid":{hkid}"#
        )?;
        if let Some(rip) = rip {
            write!(f, r#","rip":"{rip:#x}""#)?;
        }
        f.write_str("}")
    }
}

/// The first thousand violations.
#[derive(Default)]
pub struct Log {
    records: Mutex<Vec<Violation>>,
    total: AtomicU64,
}

impl fmt::Debug for Log {
    /// Omits the contents, so that a module's debug output is the same before and after a failed call.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Log {
    /// The number of violations that are kept until taken. Further ones are only counted.
    pub const CAPACITY: usize = 1000;

    /// Records a violation.
    pub fn record(&self, violation: Violation) {
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut records = self.records.lock();
        if records.len() < Self::CAPACITY {
            records.push(violation);
        }
    }

    /// Returns the number of violations, including those taken and those not kept.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Takes the violations kept so far.
    pub fn take(&self) -> Vec<Violation> {
        core::mem::take(&mut *self.records.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    const WRITE: Violation = Violation {
        kind: ViolationKind::PrivateWrite,
        lp: 3,
        pa: 0x1_0000_2000,
        hkid: 33,
        rip: Some(0xffff_8000_0000_1234),
    };

    #[test]
    fn a_violation_is_one_line_of_json() {
        assert_eq!(
            WRITE.to_string(),
            r#"{"violation":"private-write","lp":3,"pa":"0x100002000","hkid":33,"rip":"0xffff800000001234"}"#
        );
    }

    #[test]
    fn a_flood_is_counted_but_not_kept() {
        let log = Log::default();
        for _ in 0..Log::CAPACITY + 5 {
            log.record(WRITE);
        }
        assert_eq!(log.take().len(), Log::CAPACITY);
        assert_eq!(log.total(), Log::CAPACITY as u64 + 5);
        assert!(log.take().is_empty());
    }
}

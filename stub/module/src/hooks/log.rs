//! What the host did that it must not do.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

/// How memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "there is nothing to add")]
pub enum Access {
    Read,
    Write,
}

/// What the host must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViolationKind {
    /// Access to memory by an address with a private KeyID.
    KeyIdAlias,
    /// Reading a page that is the module's or a TD's.
    PrivateRead,
    /// Writing to a page that is the module's or a TD's.
    PrivateWrite,
    /// Access to the SEAM range.
    SeamrrAccess,
    /// Giving a page away, to the module or to somebody else, that still holds what a TD left in it.
    ReuseWithoutClearing,
    /// Entering a vCPU of a TD that has given its key back.
    StaleKey,
}

impl ViolationKind {
    /// Its name in reports.
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

/// One thing that the host did. It is displayed as one line of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What it was.
    pub kind: ViolationKind,
    /// The logical processor on which it happened.
    pub lp: u32,
    /// The physical address concerned, KeyID included.
    pub pa: u64,
    /// The HKID whose memory or key is concerned; 0 if none is.
    pub hkid: u32,
    /// The host's instruction pointer, where it is known.
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

/// The violations so far, the first thousand of them.
#[derive(Default)]
pub struct Log {
    records: Mutex<Vec<Violation>>,
    total: AtomicU64,
}

impl fmt::Debug for Log {
    /// Not what is in it: what a module's state shows is the same before and after a call that failed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Log {
    /// Violations that are kept until they are taken; further ones are only counted.
    pub const CAPACITY: usize = 1000;

    /// Puts a violation on record.
    pub fn record(&self, violation: Violation) {
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut records = self.records.lock();
        if records.len() < Self::CAPACITY {
            records.push(violation);
        }
    }

    /// How many there were, taken ones and those not kept included.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Takes the violations that are kept.
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

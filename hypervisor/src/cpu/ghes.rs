//! The firmware's error records (GHES): looked for by the timer, on request, and in an NMI.
//!
//! Source: ACPI Specification 6.5, section 18.3.2.7.
#![expect(
    unsafe_code,
    reason = "the firmware's records and registers are memory that it writes itself"
)]

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mca::cper::{Block, Severity, is_pending};
use spin::Once;
use sync::IrqLock;

use crate::{
    firmware::hest::{Notice, Source},
    memory,
};

/// A source whose registers are mapped.
struct Mapped {
    source: Source,
    /// Address of the pointer to the record.
    pointer: u64,
    /// Physical address of the record.
    record: u64,
    /// Address of the record.
    at: u64,
    /// Address of the acknowledgement register.
    acknowledge: Option<u64>,
    counts: [AtomicU64; SEVERITIES.len()],
    /// The copy of a record while it is decoded. A handler that finds it in use leaves the record for later.
    copy: IrqLock<Vec<u8>>,
}

const SEVERITIES: [Severity; 4] = [
    Severity::Corrected,
    Severity::Recoverable,
    Severity::Fatal,
    Severity::None,
];

static SOURCES: Once<Vec<Mapped>> = Once::new();

/// Maps the sources. Returns a sentence for each that can't be used.
pub fn init(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    SOURCES.call_once(|| {
        let mut mapped = Vec::new();
        for source in sources {
            match map(source) {
                Ok(source) => mapped.push(source),
                Err(why) => problems.push(format!(
                    "error source {} of the HEST is not used: {why}",
                    source.id
                )),
            }
        }
        mapped
    });
    problems
}

fn map(source: &Source) -> Result<Mapped, String> {
    let window = |pa, bytes| memory::window(pa, bytes).map_err(|error| format!("{error}"));
    let pointer = window(source.pointer, 8)?;
    let record = load(pointer);
    let limit = 1u64 << 52;
    if record == 0 || !record.is_multiple_of(4) || record >= limit {
        return Err(format!("its record is at {record:#x}"));
    }
    let acknowledge = match source.acknowledge {
        Some(acknowledge) => Some(window(acknowledge.register, 8)?),
        None => None,
    };
    Ok(Mapped {
        source: *source,
        pointer,
        record,
        at: window(record, source.bytes.into())?,
        acknowledge,
        counts: [const { AtomicU64::new(0) }; SEVERITIES.len()],
        copy: IrqLock::new(alloc::vec![0; source.bytes as usize]),
    })
}

/// Looks for records of all sources. Returns the severity of the worst.
pub fn look() -> Option<Severity> {
    look_at(|_| true)
}

/// Looks for records of the sources that raise an NMI.
pub(super) fn look_at_nmi() -> Option<Severity> {
    look_at(|notice| notice == Notice::Nmi)
}

fn look_at(which: impl Fn(Notice) -> bool) -> Option<Severity> {
    let sources = SOURCES.get()?.iter();
    let found = sources
        .filter(|mapped| which(mapped.source.notice))
        .filter_map(Mapped::take);
    found.max_by_key(|severity| match severity {
        Severity::None => 0,
        Severity::Corrected => 1,
        Severity::Recoverable => 2,
        Severity::Fatal => 3,
    })
}

/// The records of one source so far.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// The source's number in the HEST.
    pub id: u16,
    /// The way in which the firmware tells that the source has a record.
    pub notice: Notice,
    /// Records of corrected errors.
    pub corrected: u64,
    /// Records of uncorrected errors that the machine survives.
    pub recoverable: u64,
    /// Records of fatal errors.
    pub fatal: u64,
}

/// Returns the records of each source so far.
pub fn counts() -> impl Iterator<Item = Count> {
    let sources = SOURCES.get().map_or(&[][..], Vec::as_slice);
    sources.iter().map(|mapped| {
        let count = |index: usize| mapped.counts[index].load(Relaxed);
        Count {
            id: mapped.source.id,
            notice: mapped.source.notice,
            corrected: count(0),
            recoverable: count(1),
            fatal: count(2),
        }
    })
}

impl Mapped {
    /// Takes the source's record, if it has one.
    fn take(&self) -> Option<Severity> {
        // SAFETY: the window has the record's first 4 bytes, which the firmware writes at any time.
        let status = unsafe { (self.at as *const u32).read_volatile() };
        // A record that has moved is not in the window.
        if !is_pending(status) || load(self.pointer) != self.record {
            return None;
        }
        let mut copy = self.copy.try_lock()?;
        for (byte, at) in copy.iter_mut().zip(self.at..) {
            // SAFETY: the window has as many bytes as the copy, which the firmware writes at any time.
            *byte = unsafe { (at as *const u8).read_volatile() };
        }
        let severity = match Block::decode(&copy) {
            Some(block) => {
                let lost = block.sections().filter(|section| {
                    section.severity == Severity::Recoverable && section.page.is_some()
                });
                lost.filter_map(|section| section.page)
                    .for_each(super::lose_page);
                block.severity
            }
            // Its lengths exceed the record's size: only that there was one is known.
            None => Severity::Recoverable,
        };
        if let Some(index) = SEVERITIES.iter().position(|known| *known == severity) {
            self.counts[index].fetch_add(1, Relaxed);
        }
        self.finish();
        Some(severity)
    }

    /// Tells the firmware that the record was read.
    fn finish(&self) {
        // SAFETY: the record is the reader's until it is cleared, and the HEST says that the register is for this.
        unsafe {
            (self.at as *mut u32).write_volatile(0);
            if let (Some(at), Some(register)) = (self.acknowledge, self.source.acknowledge) {
                let value = load(at) & register.preserve | register.write;
                (at as *mut u64).write_volatile(value);
            }
        }
    }
}

fn load(at: u64) -> u64 {
    // SAFETY: every caller passes an address in a window of 8 bytes.
    unsafe { (at as *const u64).read_volatile() }
}

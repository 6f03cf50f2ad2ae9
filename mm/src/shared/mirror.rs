//! The view that a TD's devices have of its shared memory.

use core::fmt;
use core::ops::Range;

use seam::abi::PageSize;
use seam::address::{Gpa, Hpa};

/// The devices' tables, which map what a [`SharedMap`](super::SharedMap) maps. The hypervisor implements it with a VT-d
/// domain. Device addresses are guest-physical addresses without the SHARED bit.
///
/// [`SharedMap`](super::SharedMap) calls it with its lock held, in the order of its changes.
pub trait Mirror: fmt::Debug + Send + Sync {
    /// Maps a page. Devices reach it once this has returned.
    ///
    /// # Errors
    /// [`MirrorError`]; nothing is mapped.
    fn map(&self, gpa: Gpa, page: Page) -> Result<(), MirrorError>;

    /// Unmaps `range`, all of which is mapped; it may begin or end within a page. Once this has succeeded, no device reaches it: all accesses that were
    /// under way have ended.
    ///
    /// # Errors
    /// [`MirrorError::NoMemory`] to split a page: all of the range is mapped as before. [`MirrorError::NoAnswer`]: devices
    /// may still reach the range. Its frames must not get another owner.
    fn unmap(&self, range: Range<u64>) -> Result<(), MirrorError>;
}

/// A page that devices reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its physical address.
    pub hpa: Hpa,
    /// Its size: 4 KiB or 2 MiB.
    pub size: PageSize,
    /// True if devices may not write to it.
    pub is_read_only: bool,
}

/// The reason why the devices' tables do not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorError {
    /// There is no memory for a table. Nothing has changed.
    NoMemory,
    /// A VT-d unit did not answer: devices may go on as before.
    NoAnswer,
}

impl fmt::Display for MirrorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "there is no memory for the devices' tables",
            Self::NoAnswer => "a VT-d unit does not answer",
        })
    }
}

impl core::error::Error for MirrorError {}

//! Errors of operations on a TD's private memory.

use core::fmt;

use seam::abi::PageSize;

use super::kick::NoAnswer;

/// Reason why an operation failed. No page is lost: each is where it came from, or in the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The TD is being terminated: nothing can be mapped or changed any more.
    Terminated,
    /// The TD's measurement is closed: its image can no longer change.
    Finalized,
    /// The TD still has its key, or is releasing it: nothing can be reclaimed yet.
    NotKeyless,
    /// The TD still owns memory.
    NotEmpty,
    /// Another CPU works on the same memory, or on the map as a whole. A retry may succeed at once.
    Busy,
    /// Failed work left it blocked. [`PrivateMap::unblock`](super::PrivateMap::unblock) makes it usable again; removal
    /// continues where that work stopped.
    Blocked,
    /// The address is not aligned, or is outside the TD's addresses.
    BadRange,
    /// Something is mapped there.
    Occupied,
    /// Nothing of that size is mapped there.
    NotMapped,
    /// The parts of a large page are not all mapped, accepted, and in one large frame.
    NotWhole,
    /// The host has no free frame of this size.
    NoFrames(PageSize),
    /// The hypervisor's heap is used up.
    NoHeap,
    /// The TD has this many pages of S-EPT, and may not have more.
    TooManyTables(u64),
    /// The module has shut down and serves no more calls.
    ShutDown,
    /// The module refused the call.
    Seam(seam::error::Error),
    /// A CPU did not leave the guest in time.
    NoAnswer(NoAnswer),
}

impl From<seam::error::Error> for Error {
    fn from(error: seam::error::Error) -> Self {
        Self::Seam(error)
    }
}

impl From<NoAnswer> for Error {
    fn from(error: NoAnswer) -> Self {
        Self::NoAnswer(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Terminated => f.write_str("the TD is being terminated"),
            Self::Finalized => f.write_str("the TD's measurement is closed"),
            Self::NotKeyless => f.write_str("the TD's key has not been released"),
            Self::NotEmpty => f.write_str("the TD still owns memory"),
            Self::Busy => f.write_str("another CPU works on this part of the TD's memory"),
            Self::Blocked => f.write_str("a failed operation left it blocked"),
            Self::BadRange => {
                f.write_str("the address is not aligned or is outside the TD's memory")
            }
            Self::Occupied => f.write_str("something is mapped there already"),
            Self::NotMapped => f.write_str("nothing of that size is mapped there"),
            Self::NotWhole => f.write_str("the parts do not form a large page"),
            Self::NoFrames(size) => {
                write!(f, "no frame of {} KiB is free", size.bytes() >> 10)
            }
            Self::NoHeap => f.write_str("the hypervisor's heap is exhausted"),
            Self::TooManyTables(limit) => write!(
                f,
                "too much of it is in pages of 4 KiB: all {limit} pages that its S-EPT may have are in use; \
                 raise max_4k of the TD"
            ),
            Self::ShutDown => f.write_str("the TDX module has shut down"),
            Self::Seam(error) => error.fmt(f),
            Self::NoAnswer(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Error {}

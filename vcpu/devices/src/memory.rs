//! The guest's shared memory, as a function of the PCI bus accesses it.

use alloc::sync::Arc;
use core::any::Any;
use core::fmt;
use core::sync::atomic::AtomicU64;

/// The words of a page of 4 KiB.
pub type Page = [AtomicU64; 512];

/// A guest's shared memory, for a part of a function's work. No page is unmapped meanwhile; the guest may change the content
/// at any time.
pub trait Memory {
    /// Returns the page around `gpa`, whose SHARED bit is ignored.
    ///
    /// # Errors
    /// [`Unshared`]: the guest does not share this page.
    fn page(&self, gpa: u64) -> Result<&Page, Unshared>;

    /// Calls `work` with the memory of another guest of this host. Returns `false` if that is impossible now: `work` was
    /// not called.
    fn with_other(&self, other: &Other, work: &mut dyn FnMut(&dyn Memory)) -> bool {
        let _ = (other, work);
        false
    }

    /// Lets the functions of another guest look for work soon.
    fn ring(&self, other: &Other) {
        let _ = other;
    }
}

/// Another guest, as the host knows it.
pub type Other = Arc<dyn Any + Send + Sync>;

/// The guest does not share the page at this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unshared(pub u64);

impl fmt::Display for Unshared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} is not in shared memory", self.0)
    }
}

impl core::error::Error for Unshared {}

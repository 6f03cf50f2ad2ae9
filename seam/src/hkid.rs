//! A private HKID as an owned token: the pool or one TD owns it.

use core::fmt;
use core::mem;
use core::sync::atomic::{AtomicU64, Ordering};

/// A private HKID. It can't be copied. TDH.MNG.CREATE moves it from the pool to the TD, and only TDH.MNG.KEY.FREEID
/// returns it. The module accepts it again after that.
#[must_use = "a dropped HKID is lost until the machine restarts"]
#[derive(PartialEq, Eq)]
pub struct Hkid(u16);

impl Hkid {
    /// Creates the token of an HKID. Only the pool may call this, once each time it hands out the HKID; the workspace's
    /// `clippy.toml` forbids it elsewhere.
    pub const fn mint(number: u16) -> Self {
        Self(number)
    }

    /// Returns the HKID's number.
    pub const fn number(&self) -> u16 {
        self.0
    }

    /// Consumes the token: the HKID belongs to the pool again.
    pub fn surrender(self) -> u16 {
        let number = self.0;
        mem::forget(self);
        number
    }
}

impl fmt::Debug for Hkid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HKID {}", self.0)
    }
}

impl Drop for Hkid {
    fn drop(&mut self) {
        LOST_HKIDS.fetch_add(1, Ordering::Relaxed);
    }
}

static LOST_HKIDS: AtomicU64 = AtomicU64::new(0);

/// Returns the number of HKIDs that were dropped instead of given back since boot. Any value but zero is a bug of the
/// host.
pub fn lost_hkids() -> u64 {
    LOST_HKIDS.load(Ordering::Relaxed)
}

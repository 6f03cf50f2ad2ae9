//! A private key's number as something that is owned: by the pool, or by one TD.

use core::fmt;
use core::mem;
use core::sync::atomic::{AtomicU64, Ordering};

/// A private HKID. It can't be copied: TDH.MNG.CREATE takes it from the pool into the TD, and only TDH.MNG.KEY.FREEID
/// gives it back, after which the module accepts it again.
#[must_use = "a dropped HKID is lost until the machine restarts"]
#[derive(PartialEq, Eq)]
pub struct Hkid(u16);

impl Hkid {
    /// Makes the token of an HKID. Only the pool may call this, once for each time that it hands the HKID out; the
    /// workspace's `clippy.toml` forbids it elsewhere.
    pub const fn mint(number: u16) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(&self) -> u16 {
        self.0
    }

    /// Ends the token: the HKID is the pool's again.
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

/// HKIDs that were dropped instead of given back, since the start. Anything but zero is a bug of the host.
pub fn lost_hkids() -> u64 {
    LOST_HKIDS.load(Ordering::Relaxed)
}

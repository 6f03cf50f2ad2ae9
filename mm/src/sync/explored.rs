//! The locks with the interface of `spin`'s and the inside of `shuttle`'s.

use core::ops::{Deref, DerefMut};

pub use shuttle::hint;
pub use shuttle::sync::{MutexGuard, atomic};

use atomic::{AtomicBool, Ordering::SeqCst};

/// As `spin::Mutex`.
#[derive(Debug, Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        let locked = self.0.lock();
        locked.expect("a test that panics with a lock held is over")
    }

    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

/// As `spin::RwLock`: while somebody holds it to upgrade, there are no new readers.
pub struct RwLock<T> {
    inner: shuttle::sync::RwLock<T>,
    upgrading: AtomicBool,
}

impl<T> RwLock<T> {
    pub const fn new(value: T) -> Self {
        Self {
            inner: shuttle::sync::RwLock::new(value),
            upgrading: AtomicBool::new(false),
        }
    }

    pub fn try_read(&self) -> Option<shuttle::sync::RwLockReadGuard<'_, T>> {
        if self.upgrading.load(SeqCst) {
            return None;
        }
        self.inner.try_read().ok()
    }

    pub fn try_upgradeable_read(&self) -> Option<Upgradeable<'_, T>> {
        let taken = self.upgrading.swap(true, SeqCst);
        (!taken).then_some(Upgradeable(self))
    }
}

/// The right to hold the lock alone, once the readers are gone.
pub struct Upgradeable<'a, T>(&'a RwLock<T>);

impl<'a, T> Upgradeable<'a, T> {
    pub fn try_upgrade(self) -> Result<Upgraded<'a, T>, Self> {
        match self.0.inner.try_write() {
            Ok(guard) => Ok(Upgraded {
                guard,
                _upgradeable: self,
            }),
            Err(_) => Err(self),
        }
    }
}

impl<T> Drop for Upgradeable<'_, T> {
    fn drop(&mut self) {
        self.0.upgrading.store(false, SeqCst);
    }
}

/// The lock held alone.
pub struct Upgraded<'a, T> {
    // Dropped first: readers come back when nobody writes any more.
    guard: shuttle::sync::RwLockWriteGuard<'a, T>,
    _upgradeable: Upgradeable<'a, T>,
}

impl<T> Deref for Upgraded<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Upgraded<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

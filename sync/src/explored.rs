//! The locks with the interface of `spin`'s and the inside of `shuttle`'s.

extern crate std;

use core::ops::{Deref, DerefMut};
use std::sync::OnceLock;

pub use shuttle::hint;
pub use shuttle::sync::{MutexGuard, atomic};

use atomic::{AtomicBool, Ordering::SeqCst};

/// As `spin::Mutex`.
#[derive(Debug, Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let locked = self.0.lock();
        locked.expect("a test that panics with a lock held is over")
    }

    /// Takes the lock if nobody holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }

    /// The value, of which nobody else knows.
    pub fn get_mut(&mut self) -> &mut T {
        let value = self.0.get_mut();
        value.expect("a test that panics with a lock held is over")
    }

    /// The value.
    pub fn into_inner(self) -> T {
        let value = self.0.into_inner();
        value.expect("a test that panics with a lock held is over")
    }
}

/// As `spin::Once`.
#[derive(Debug)]
pub struct Once<T> {
    value: OnceLock<T>,
    lock: Mutex<()>,
}

impl<T> Once<T> {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            value: OnceLock::new(),
            lock: Mutex::new(()),
        }
    }

    /// The value, once there is one.
    pub fn get(&self) -> Option<&T> {
        shuttle::thread::yield_now();
        self.value.get()
    }

    /// The value, which `make` makes if there is none.
    pub fn call_once(&self, make: impl FnOnce() -> T) -> &T {
        let _alone = self.lock.lock();
        self.value.get_or_init(make)
    }

    /// The same, if `make` does not fail.
    ///
    /// # Errors
    /// That of `make`; there is no value then.
    pub fn try_call_once<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let _alone = self.lock.lock();
        match self.value.get() {
            Some(value) => Ok(value),
            None => make().map(|value| self.value.get_or_init(|| value)),
        }
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// As `spin::RwLock`: while somebody holds it to upgrade, there are no new readers.
pub struct RwLock<T> {
    inner: shuttle::sync::RwLock<T>,
    upgrading: AtomicBool,
}

impl<T> RwLock<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self {
            inner: shuttle::sync::RwLock::new(value),
            upgrading: AtomicBool::new(false),
        }
    }

    /// Holds it with others, if nobody holds it alone or is about to.
    pub fn try_read(&self) -> Option<shuttle::sync::RwLockReadGuard<'_, T>> {
        if self.upgrading.load(SeqCst) {
            return None;
        }
        self.inner.try_read().ok()
    }

    /// Keeps new readers off, if nobody else does.
    pub fn try_upgradeable_read(&self) -> Option<Upgradeable<'_, T>> {
        let taken = self.upgrading.swap(true, SeqCst);
        (!taken).then_some(Upgradeable(self))
    }
}

/// The right to hold the lock alone, once the readers are gone.
pub struct Upgradeable<'a, T>(&'a RwLock<T>);

impl<'a, T> Upgradeable<'a, T> {
    /// Holds it alone, if the readers are gone.
    ///
    /// # Errors
    /// The right to, when they are not.
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

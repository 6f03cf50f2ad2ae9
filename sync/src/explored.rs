//! Locks with the interface of `spin`, implemented by `shuttle`.

extern crate std;

use core::ops::{Deref, DerefMut};
use std::sync::OnceLock;

pub use shuttle::hint;
pub use shuttle::sync::{MutexGuard, RwLockReadGuard, atomic};

use atomic::{AtomicBool, Ordering::SeqCst};

/// Counterpart of `spin::Mutex`.
#[derive(Debug)]
pub struct Mutex<T: ?Sized>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// Creates a lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    /// Consumes the lock and returns the value.
    pub fn into_inner(self) -> T {
        let value = self.0.into_inner();
        value.expect("a test that panics with a lock held is over")
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the lock, waiting until it is free.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let locked = self.0.lock();
        locked.expect("a test that panics with a lock held is over")
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }

    /// Returns the value without locking: `&mut self` proves exclusive access.
    pub fn get_mut(&mut self) -> &mut T {
        let value = self.0.get_mut();
        value.expect("a test that panics with a lock held is over")
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// Counterpart of `spin::Once`.
#[derive(Debug)]
pub struct Once<T> {
    value: OnceLock<T>,
    lock: Mutex<()>,
}

impl<T> Once<T> {
    /// Creates an empty cell.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            value: OnceLock::new(),
            lock: Mutex::new(()),
        }
    }

    /// Returns the value, if there is one.
    pub fn get(&self) -> Option<&T> {
        shuttle::thread::yield_now();
        self.value.get()
    }

    /// Returns the value. Calls `make` to create it if there is none.
    pub fn call_once(&self, make: impl FnOnce() -> T) -> &T {
        let _alone = self.lock.lock();
        self.value.get_or_init(make)
    }

    /// Like [`Self::call_once`], for a `make` that can fail.
    ///
    /// # Errors
    /// The error of `make`; there is no value then.
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

/// Counterpart of `spin::RwLock`: an upgradeable reader keeps new readers out.
#[derive(Debug)]
pub struct RwLock<T> {
    inner: shuttle::sync::RwLock<T>,
    upgrading: AtomicBool,
}

impl<T> RwLock<T> {
    /// Creates a lock around `value`.
    pub const fn new(value: T) -> Self {
        Self {
            inner: shuttle::sync::RwLock::new(value),
            upgrading: AtomicBool::new(false),
        }
    }

    /// Takes the lock shared, unless there is a writer or an upgradeable reader.
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        if self.upgrading.load(SeqCst) {
            return None;
        }
        self.inner.try_read().ok()
    }

    /// Takes the lock shared, waiting while there is a writer or an upgradeable reader.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        loop {
            match self.try_read() {
                Some(guard) => return guard,
                None => hint::spin_loop(),
            }
        }
    }

    /// Becomes the upgradeable reader, waiting while there is another one or a writer.
    pub fn upgradeable_read(&self) -> Upgradeable<'_, T> {
        loop {
            match self.try_upgradeable_read() {
                Some(guard) => return guard,
                None => hint::spin_loop(),
            }
        }
    }

    /// Becomes the upgradeable reader, which keeps new readers out, unless there is one already.
    pub fn try_upgradeable_read(&self) -> Option<Upgradeable<'_, T>> {
        let taken = self.upgrading.swap(true, SeqCst);
        (!taken).then_some(Upgradeable(self))
    }
}

/// An upgradeable read lock, which can become a write lock once the readers are gone.
pub struct Upgradeable<'a, T>(&'a RwLock<T>);

impl<'a, T> Upgradeable<'a, T> {
    /// Upgrades to a write lock, waiting until the readers are gone.
    #[must_use]
    pub fn upgrade(mut self) -> Upgraded<'a, T> {
        loop {
            match self.try_upgrade() {
                Ok(guard) => return guard,
                Err(same) => self = same,
            }
            hint::spin_loop();
        }
    }

    /// Upgrades to a write lock if the readers are gone.
    ///
    /// # Errors
    /// Returns the upgradeable lock if there still are readers.
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

/// A write lock.
pub struct Upgraded<'a, T> {
    // Dropped first: new readers are admitted once the write lock is released.
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

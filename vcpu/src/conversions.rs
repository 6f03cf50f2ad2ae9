//! The lock around conversions of a TD's memory.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use spin::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::windows::Windows;

/// Held for reading while private memory is mapped or devices work, and for writing while memory is converted, so that no
/// page is both private and shared. Only ever try-locked, because the holder may wait for all other CPUs. It protects what
/// is mapped of the devices' memory as well.
#[derive(Debug, Default)]
pub struct Conversions {
    lock: RwLock<Windows>,
    /// A CPU could not lock it for writing, and has not tried again with success.
    is_wanted: AtomicBool,
}

impl Conversions {
    /// Creates the lock, with the memory of the devices of a TD that has not run.
    pub fn new(windows: Windows) -> Self {
        Self {
            lock: RwLock::new(windows),
            is_wanted: AtomicBool::new(false),
        }
    }

    /// Locks it for reading, if no CPU has it for writing.
    #[inline]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, Windows>> {
        self.lock.try_read()
    }

    /// Locks it for writing, if no CPU has it. Otherwise the caller tries again some time.
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, Windows>> {
        let guard = self.lock.try_write();
        self.is_wanted.store(guard.is_none(), Relaxed);
        guard
    }

    /// Returns whether a CPU waits to lock it for writing. One that reads again and again, and could leave it, does so.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.load(Relaxed)
    }
}

//! Locks and atomics for data shared between CPUs.
//!
//! With the feature `shuttle` they are those of the shuttle scheduler, which explores thread schedules in tests: see
//! `tests/races` of the crates above. Only tests enable the feature.
#![no_std]

extern crate alloc;

pub mod call;
#[cfg(feature = "shuttle")]
mod explored;
pub mod irq;

pub use irq::{IrqGuard, IrqLock, IrqsOff};

#[cfg(feature = "shuttle")]
pub use explored::{Mutex, MutexGuard, Once, RwLock, RwLockReadGuard, atomic, hint};

#[cfg(not(feature = "shuttle"))]
pub use core::{hint, sync::atomic};
#[cfg(not(feature = "shuttle"))]
pub use spin::{Mutex, MutexGuard, Once, RwLock, RwLockReadGuard};

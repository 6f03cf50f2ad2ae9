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
pub use explored::{
    Mutex as FairMutex, Mutex, MutexGuard, Once, RwLock, RwLockReadGuard, atomic, hint,
};

#[cfg(not(feature = "shuttle"))]
pub use core::{hint, sync::atomic};
/// A lock that CPUs get in the order in which they asked: none waits for more than one turn of each other CPU.
#[cfg(not(feature = "shuttle"))]
pub use spin::mutex::TicketMutex as FairMutex;
#[cfg(not(feature = "shuttle"))]
pub use spin::{Mutex, MutexGuard, Once, RwLock, RwLockReadGuard};

//! The locks and atomics of everything that more than one CPU works on, here and in the crates above.
//!
//! With the feature `shuttle` they are those of the scheduler of that name, which runs the threads of a test in orders of
//! its own choosing: see `tests/races`. Nothing but tests enables it.

#[cfg(feature = "shuttle")]
mod explored;

#[cfg(feature = "shuttle")]
pub use explored::{Mutex, MutexGuard, Once, RwLock, atomic, hint};

#[cfg(not(feature = "shuttle"))]
pub use core::{hint, sync::atomic};
#[cfg(not(feature = "shuttle"))]
pub use spin::{Mutex, MutexGuard, Once, RwLock};

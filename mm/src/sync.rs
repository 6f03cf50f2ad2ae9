//! The locks and atomics of everything here that more than one CPU works on.

pub use core::sync::atomic;
pub use spin::{Mutex, MutexGuard, RwLock};

//! The secure EPT: a TD's private memory map, in the pages that the host donated for it.

mod entry;
mod l2;
mod target;
mod walk;

pub use entry::{Entry, LockedSlot, Slot};
pub use l2::L2Entry;
pub use target::Target;
pub use walk::{l2_walk, walk, walk_from};

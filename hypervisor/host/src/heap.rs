//! Work on behalf of guests when the heap may have no room: what a guest causes must not end the host.
//!
//! A running guest's ways allocate only where they can fail. The end or the rebuilding of a TD allocates freely, and
//! begins only if the heap [has room](has_room) for it. [`crate::td::plan`] never promises the last frames to TDs, so
//! that the heap can grow.

use alloc::{string::String, vec::Vec};
use core::fmt::{self, Display, Write};

/// Bytes that suffice for everything that ending or planning a TD allocates besides what is charged to it.
const ROOM: usize = 256 << 10;

/// Returns whether the heap has room for ending or rebuilding a TD.
pub fn has_room() -> bool {
    Vec::<u8>::new().try_reserve_exact(ROOM).is_ok()
}

/// Returns the text of `what`, or as much of its beginning as the heap has room for.
pub fn text(what: impl Display) -> String {
    let mut text = Fallible(String::new());
    // The text ends where there was no room for more.
    let _ = write!(text, "{what}");
    text.0
}

/// A string whose growth can fail.
struct Fallible(String);

impl Write for Fallible {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        self.0.try_reserve(more.len()).map_err(|_| fmt::Error)?;
        self.0.push_str(more);
        Ok(())
    }
}

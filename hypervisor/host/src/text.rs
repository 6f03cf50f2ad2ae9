//! Text for which the heap may have no room: what a guest causes must not end the host.

use alloc::string::String;
use core::fmt::{self, Display, Write};

/// Returns the text of `what`, or as much of its beginning as the heap has room for.
pub fn of(what: impl Display) -> String {
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

//! Why a simulation failed.

use std::fmt;

/// What could not be done, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    what: &'static str,
    why: String,
}

impl Error {
    /// Why `what` could not be done.
    pub fn new(what: &'static str, why: impl fmt::Display) -> Self {
        Self {
            what,
            why: why.to_string(),
        }
    }
}

/// Makes an [`Error`] of whatever was in the way of `what`.
pub fn failed<E: fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |why| Error::new(what, why)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for Error {}

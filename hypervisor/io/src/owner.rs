//! Owners of functions.

use alloc::string::String;
use core::fmt;

/// The owner of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The hypervisor keeps it, for this reason.
    Host(&'static str),
    /// No TD has had it since the machine started, or it was released.
    Nobody,
    /// The TD of that name has it.
    Td(String),
    /// The TD of that name had it. It may hold that TD's data until the operator releases it.
    Former(String),
    /// It is out of use until the machine is switched off, for this reason. It may hold a TD's data, and may still be
    /// at work.
    Retired(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(_) => f.write_str("host"),
            Self::Nobody => f.write_str("none"),
            Self::Td(name) => f.write_str(name),
            Self::Former(name) => write!(f, "formerly {name}"),
            Self::Retired(_) => f.write_str("out of use"),
        }
    }
}

//! Owners of functions.

use alloc::string::String;

/// The owner of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The hypervisor keeps it, for this reason.
    Host(&'static str),
    /// No one has had it since the machine started.
    Nobody,
    /// The TD of that name has it.
    Td(String),
    /// The TD of that name had it. It may hold that TD's data until the operator releases it.
    Former(String),
}

impl Owner {
    /// Returns true if the TD of that name may have the function: nobody else has it or has left data in it.
    #[must_use]
    pub fn admits(&self, td: &str) -> bool {
        match self {
            Self::Host(_) => false,
            Self::Nobody => true,
            Self::Td(name) | Self::Former(name) => name == td,
        }
    }
}

//! The faults of a function.

use core::fmt;

/// Something that is wrong with a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// It answered, and then only ones came.
    Vanished,
    /// The list of capabilities makes no sense at this offset.
    Capabilities(u16),
    /// A base address register, by its place, does not behave like one.
    Bar(u8),
    /// A bridge claims buses that can't be behind it.
    Buses,
    /// Several bridges claim the bus that it is on, or none that leads there.
    Unreachable,
    /// Its virtual functions would have addresses outside their segment.
    VirtualFunctions,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vanished => f.write_str("it stopped answering"),
            Self::Capabilities(at) => {
                write!(f, "its list of capabilities makes no sense at {at:#x}")
            }
            Self::Bar(place) => write!(f, "base address register {place} does not behave like one"),
            Self::Buses => f.write_str("it claims buses that can't be behind it"),
            Self::Unreachable => f.write_str("it is not clear which bridge leads to its bus"),
            Self::VirtualFunctions => {
                f.write_str("its virtual functions would be outside its segment")
            }
        }
    }
}

//! The reasons why a function can't be given to a TD.

use alloc::string::String;
use core::fmt;

use crate::{Address, Defect};

/// A reason why a function can't be given to a TD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The host keeps it, for this reason.
    Host(&'static str),
    /// It does not answer.
    Gone,
    /// Something is wrong with it.
    Defect(Defect),
    /// It hides the drives behind it.
    VolumeManagement,
    /// It can't be isolated from another function, which the host keeps for this reason.
    Group(Address, &'static str),
    /// It has this many virtual functions, which depend on it.
    VirtualFunctions(u16),
    /// There is no way to reset it.
    NoReset,
    /// Its header has this layout, which is not an ordinary function's.
    Header(u8),
    /// It is out of use, for this reason.
    Retired(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(why) => write!(f, "the host keeps it: {why}"),
            Self::Gone => f.write_str("it does not answer"),
            Self::Defect(defect) => write!(f, "{defect}"),
            Self::VolumeManagement => f.write_str(
                "it is Intel VMD, which hides the drives behind it: disable VMD in the firmware's setup",
            ),
            Self::Group(other, why) => write!(
                f,
                "it can't be isolated from {other}, which the host keeps: {why}"
            ),
            Self::VirtualFunctions(count) => write!(
                f,
                "its {count} virtual functions depend on it: give those instead"
            ),
            Self::NoReset => f.write_str("it offers no reset that the host can use"),
            Self::Header(layout) => write!(f, "its header has layout {layout:#x}, which is not a device's"),
            Self::Retired(why) => write!(
                f,
                "it is out of use until the machine is switched off: {why}"
            ),
        }
    }
}

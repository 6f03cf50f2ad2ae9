//! The reasons for which a TD ends.

use alloc::string::String;
use core::fmt;

use mm::shared::MirrorError;
use seam::abi::Status;
use seam::address::{Gpa, Hpa};

use crate::fatal::FatalError;

/// The reason why a TD ended. The end of one vCPU ends its TD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered itself off.
    PowerOff,
    /// The guest requested a reset.
    Reset,
    /// The guest's kernel reported a panic.
    Panicked,
    /// The guest called ReportFatalError.
    Fatal(FatalError),
    /// A triple fault.
    TripleFault {
        /// Index of the vCPU.
        vcpu: u32,
    },
    /// A machine check while the TD ran.
    MachineCheck(Status),
    /// The machine lost the data in a page of the TD.
    PageLost(Hpa),
    /// The module refuses to enter the TD again.
    Lost(Status),
    /// An exit that the host can't handle.
    Unknown(Status),
    /// The guest accessed a private address where it has no memory.
    NoMemory(Gpa),
    /// The guest accessed shared memory through a private address.
    UsedShared(Gpa),
    /// The guest accessed memory that it had not accepted.
    Unaccepted(Gpa),
    /// The guest accessed an unmapped shared address and could not receive #VE for it.
    NothingShared(Gpa),
    /// The shared EPT is misconfigured.
    Misconfigured(Gpa),
    /// Mapping or removing memory failed.
    Memory(mm::private::Error),
    /// Its devices do not follow a change of its shared memory.
    Devices(MirrorError),
    /// One of its devices has had a serious error.
    Device(String),
    /// An unexpected SEAMCALL failure.
    Seam(seam::error::Error),
}

impl End {
    /// Returns whether the guest itself requested the end.
    #[must_use]
    pub const fn is_orderly(&self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("it switched itself off"),
            Self::Reset => f.write_str("it asked for a reset"),
            Self::Panicked => f.write_str("its kernel has panicked"),
            Self::Fatal(error) => error.fmt(f),
            Self::TripleFault { vcpu } => write!(f, "triple fault on vCPU {vcpu}"),
            Self::MachineCheck(status) => write!(f, "machine check in the TD ({status:?})"),
            Self::PageLost(hpa) => write!(f, "the machine lost the data in its page at {hpa:?}"),
            Self::Lost(status) => write!(f, "the module no longer runs it: {status:?}"),
            Self::Unknown(status) => write!(f, "an unknown exit: {status:?}"),
            Self::NoMemory(gpa) => write!(f, "it has no memory at {gpa:?}"),
            Self::UsedShared(gpa) => {
                write!(f, "it accessed shared memory as private at {gpa:?}")
            }
            Self::Unaccepted(gpa) => {
                write!(f, "it accessed memory that it had not accepted at {gpa:?}")
            }
            Self::NothingShared(gpa) => write!(f, "nothing is shared at {gpa:?}"),
            Self::Misconfigured(gpa) => write!(f, "its shared EPT is broken at {gpa:?}"),
            Self::Memory(error) => write!(f, "its memory: {error}"),
            Self::Devices(error) => write!(f, "its devices and its shared memory: {error}"),
            Self::Device(why) => f.write_str(why),
            Self::Seam(error) => error.fmt(f),
        }
    }
}

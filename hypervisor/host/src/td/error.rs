//! Errors of operations on TDs: what is wrong, and what to do.

use alloc::{string::String, vec::Vec};
use core::fmt;

use mm::private;
use seam::abi::PAGE_4K;

use super::{files::NoRoom, life::State, params, vcpu};
use crate::{
    platform::shutdown::SHUT_DOWN,
    tdx::{
        hkids::NoHkid,
        release::{CreateError, NotReleased},
    },
};

/// The reason why an operation on a TD failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The configuration asks for something that the module does not support.
    Unsupported(params::Unsupported),
    /// A file that the configuration names was not loaded.
    NoFile(String),
    /// A file that the configuration names is empty.
    EmptyFile(String),
    /// The TD's memory has no room for what its firmware boots.
    Room(NoRoom),
    /// The image is not one that a TD can be built from.
    Image(tdvf::Malformed),
    /// The list of memory (TD HOB) does not fit into the image.
    Hob(tdvf::HobError),
    /// The memory exceeds the guest-physical address space.
    TooMuchMemory,
    /// There are fewer free pages of 4 KiB than the TD may need.
    NoFrames {
        /// The number of pages that the TD may need.
        needed: u64,
        /// The number of pages that are free and not promised to other TDs.
        free: u64,
    },
    /// No HKID is free.
    NoHkid(NoHkid),
    /// The hypervisor's heap is used up.
    NoHeap,
    /// The TDX module has shut down: no TD can be built, run or terminated any more.
    ShutDown,
    /// The TD's guest has ended for this reason, and can't continue.
    GuestEnded(String),
    /// The TD's termination got stuck for this reason.
    EndStuck(String),
    /// The TD's state does not allow the operation.
    State(State),
    /// Another operation on the TD is in progress.
    Busy,
    /// CPUs did not release the TD's vCPUs in time. Nothing has changed.
    Stuck(Vec<u32>),
    /// CPUs did not answer.
    Silent(Vec<u32>),
    /// TDH.MNG.CREATE failed.
    Create(CreateError),
    /// A SEAMCALL failed.
    Seam(seam::error::Error),
    /// TDH.MNG.INIT refused TD_PARAMS.
    Init(seam::error::Error, Option<params::RefusedCpuid>),
    /// An operation on the TD's memory failed.
    Map(private::Error),
    /// A vCPU could not be used.
    Vcpu(vcpu::Refused),
    /// The runner of vCPUs failed.
    Runner(String),
    /// The HKID could not be released.
    NotReleased(NotReleased),
    /// The module does not give these pages back.
    NotReclaimed(private::Refusal),
    /// Memory can only shrink, and not below the end of the image.
    Size {
        /// The minimum in bytes.
        least: u64,
        /// The maximum in bytes.
        most: u64,
    },
}

impl From<seam::error::Error> for Error {
    fn from(error: seam::error::Error) -> Self {
        Self::Seam(error)
    }
}

impl From<private::Error> for Error {
    fn from(error: private::Error) -> Self {
        match error {
            private::Error::NoHeap => Self::NoHeap,
            error => Self::Map(error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(refused) => refused.fmt(f),
            Self::NoFile(name) => write!(
                f,
                "its file {name:?} was not loaded; \"boot\" says why it could not be read"
            ),
            Self::EmptyFile(which) => f.write_str(which),
            Self::Room(room) => room.fmt(f),
            Self::Image(error) => write!(f, "its image can't be used: {error}"),
            Self::Hob(error) => write!(f, "its image has no usable TD HOB section: {error}"),
            Self::TooMuchMemory => {
                f.write_str("memory: the size exceeds guest-physical addresses of 48 bits")
            }
            Self::NoFrames { needed, free } => write!(
                f,
                "not enough memory: it may need {} MiB, and {} MiB are free and not reserved for other TDs; \
                 terminate a TD, or give this one less memory",
                mib(needed.next_multiple_of(256)),
                mib(*free)
            ),
            Self::NoHkid(none) => none.fmt(f),
            Self::NoHeap => f.write_str("the hypervisor's heap is exhausted; terminate a TD"),
            Self::ShutDown => f.write_str(SHUT_DOWN),
            Self::GuestEnded(why) => write!(f, "{why}, so it can't continue"),
            Self::EndStuck(why) => f.write_str(why),
            Self::State(state) => write!(f, "it is {}", state.in_words()),
            Self::Busy => f.write_str("another operation on it is in progress; try again"),
            Self::Stuck(cpus) => write!(
                f,
                "{} did not release its vCPUs in time; nothing has changed, try again",
                Cpus(cpus)
            ),
            Self::Silent(cpus) => write!(f, "{} did not answer", Cpus(cpus)),
            Self::Create(error) => error.fmt(f),
            Self::Seam(error) => error.fmt(f),
            Self::Init(error, cpuid) => init(error, cpuid.as_ref(), f),
            Self::Map(error) => error.fmt(f),
            Self::Vcpu(refused) => refused.fmt(f),
            Self::Runner(reason) => f.write_str(reason),
            Self::NotReleased(error) => error.fmt(f),
            Self::NotReclaimed(refusal) => write!(
                f,
                "the TDX module did not return some of its pages, the last one of {refusal}; \"td retry\" resumes \
                 the termination"
            ),
            Self::Size { least, most } => write!(
                f,
                "its memory can only shrink: choose {} to {} MiB",
                least >> 20,
                most >> 20
            ),
        }
    }
}

impl core::error::Error for Error {}

/// Returns the sentence about what can be done with a TD of this name whose guest has ended.
#[must_use]
pub fn after_guest(name: &str) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        write!(
            f,
            "\"td reset {name}\" restarts it, \"td terminate {name}\" terminates it"
        )
    })
}

fn mib(pages: u64) -> u64 {
    (pages * PAGE_4K) >> 20
}

/// Writes the error, with the CPUID leaf that the module refused.
fn init(
    error: &seam::error::Error,
    cpuid: Option<&params::RefusedCpuid>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "{error}")?;
    match cpuid {
        Some(refused) => write!(f, " ({refused})"),
        None => Ok(()),
    }
}

struct Cpus<'a>(&'a [u32]);

impl fmt::Display for Cpus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "CPU" } else { "CPUs" })?;
        for (i, cpu) in self.0.iter().enumerate() {
            write!(f, "{} {cpu}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

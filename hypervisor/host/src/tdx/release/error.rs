//! Why a TD could not be made, or its HKID not be taken back.

use core::fmt;

use sync::call::NoAnswer;

use super::super::hkids::NoHkid;

/// Why TDH.MNG.CREATE was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// There is no HKID.
    NoHkid(NoHkid),
    /// Other work on HKIDs takes too long.
    Turn,
    /// The module refused.
    Seam(seam::error::Error),
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHkid(none) => none.fmt(f),
            Self::Turn => Why::Turn.fmt(f),
            Self::Seam(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for CreateError {}

/// How a release ended that did not bring the HKID back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReleased {
    /// The TD is as it was; vCPUs that were flushed get associated again when they are entered.
    Unchanged(Why),
    /// The TD is blocked for good, and its HKID and memory are in quarantine. Another release goes on from here.
    Stuck(Why),
    /// Somebody else is at it.
    UnderWay,
}

impl fmt::Display for NotReleased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchanged(why) => write!(f, "the TD is as it was: {why}"),
            Self::Stuck(why) => write!(
                f,
                "the TD's HKID and memory are in quarantine: {why}; \"td retry\" goes on from here"
            ),
            Self::UnderWay => f.write_str("the TD's HKID is being released already"),
        }
    }
}

impl core::error::Error for NotReleased {}

/// What was in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// CPUs with which vCPUs are associated did not answer.
    Vcpus(NoAnswer),
    /// TDH.VP.FLUSH failed on this CPU.
    Flush {
        /// The CPU.
        cpu: u32,
        /// How.
        error: seam::error::Error,
    },
    /// The TD's map, or TDH.MNG.VPFLUSHDONE or TDH.MNG.KEY.FREEID.
    Map(mm::private::Error),
    /// Other work on HKIDs takes too long.
    Turn,
    /// No CPU of this package answered.
    Silent {
        /// The package.
        package: u32,
        /// Who was asked.
        cpus: NoAnswer,
    },
    /// TDH.PHYMEM.CACHE.WB failed.
    WriteBack {
        /// On this package.
        package: u32,
        /// How.
        error: seam::error::Error,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpus(silent) => write!(f, "vCPUs can't be flushed: {silent}"),
            Self::Flush { cpu, error } => write!(f, "CPU {cpu}: {error}"),
            Self::Map(error) => error.fmt(f),
            Self::Turn => f.write_str("other work on HKIDs takes too long; try again"),
            Self::Silent { package, cpus } => write!(
                f,
                "the caches of package {package} can't be written back: {cpus}"
            ),
            Self::WriteBack { package, error } => {
                write!(
                    f,
                    "the caches of package {package} can't be written back: {error}"
                )
            }
        }
    }
}

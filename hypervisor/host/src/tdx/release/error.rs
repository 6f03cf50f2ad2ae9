//! The reasons why a TD could not be created, or its HKID not released.

use core::fmt;

use sync::call::NoAnswer;

use super::super::hkids::NoHkid;

/// The reason why TDH.MNG.CREATE failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// No HKID is free.
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

/// Outcome of a release that did not free the HKID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReleased {
    /// The TD is unchanged. vCPUs that were flushed are associated again when they are entered.
    Unchanged(Why),
    /// The TD is blocked for good, and its HKID and memory are in quarantine. Another release continues from here.
    Stuck(Why),
    /// Another release of the TD is in progress.
    UnderWay,
}

impl fmt::Display for NotReleased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchanged(why) => write!(f, "the TD is unchanged: {why}"),
            Self::Stuck(why) => write!(
                f,
                "the TD's HKID and memory are in quarantine: {why}; \"td retry\" resumes the termination"
            ),
            Self::UnderWay => f.write_str("the TD's HKID is being released already"),
        }
    }
}

impl core::error::Error for NotReleased {}

/// The cause of a failed release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// CPUs with which vCPUs are associated did not answer.
    Vcpus(NoAnswer),
    /// TDH.VP.FLUSH failed on this CPU.
    Flush {
        /// The CPU.
        cpu: u32,
        /// The error.
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
        /// The CPUs that were tried.
        cpus: NoAnswer,
    },
    /// TDH.PHYMEM.CACHE.WB failed.
    WriteBack {
        /// The package.
        package: u32,
        /// The error.
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

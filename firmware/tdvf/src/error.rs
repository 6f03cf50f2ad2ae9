//! What can be wrong with a TDVF image, in words.

use core::fmt;

use super::{MAX_ADDED, MAX_SECTIONS, locate::TAIL};

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It is shorter than the tail that every TDVF image has.
    TooShort,
    /// Neither the GUID table nor the offset at the end leads to a 'TDVF' descriptor.
    NoMetadata,
    /// The GUID table's length leads out of the file or into the middle of an entry.
    BrokenTable,
    /// The descriptor's version is not 1.
    Version(u32),
    /// The descriptor's length does not fit its number of sections, or leads out of the file.
    Length,
    /// There is no section from which a TD could start (BFV).
    NoFirmware,
    /// One section, by index.
    Section(usize, SectionError),
    /// Two sections, by index, have memory in common.
    Overlap(usize, usize),
    /// It has so many sections, more than firmware ever had.
    TooManySections(u32),
    /// There are two places for the one hand-off block.
    ManyHobs,
    /// More guest memory is added than can sensibly be measured.
    TooLarge,
}

/// What is wrong with a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionError {
    /// Its type is not one that the design guide defines.
    UnknownType(u32),
    /// It has attributes that are reserved.
    ReservedAttributes(u32),
    /// Its address or size is not a multiple of 4 KiB, or its size is zero.
    Unaligned,
    /// It is not in private guest memory.
    OutOfRange,
    /// Its data lies outside the file.
    DataOutsideFile,
    /// It has more data than memory.
    MoreDataThanMemory,
    /// It has to have data and has none.
    NoData,
    /// It has data, and must not.
    UnexpectedData,
    /// It is measured, but the host writes it, or the guest accepts it empty.
    Unmeasurable,
    /// It is memory to accept and has no PAGE.AUG attribute, or the reverse.
    WrongAug,
}

/// Why an image can't take a hand-off block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HobError {
    /// It has no TD_HOB section.
    NoSection,
    /// The list has more bytes than the section.
    TooLarge {
        /// Bytes of the list.
        list: u64,
        /// Bytes of the section.
        room: u64,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => write!(f, "the file is shorter than {TAIL} bytes"),
            Self::NoMetadata => {
                f.write_str("it has no TDX metadata ('TDVF' descriptor): it was not built for TDX")
            }
            Self::BrokenTable => f.write_str("the GUID table at its end is broken"),
            Self::Version(version) => write!(f, "its TDX metadata has version {version}, not 1"),
            Self::Length => f.write_str(
                "its TDX metadata has a length that does not fit its sections or the file",
            ),
            Self::NoFirmware => f.write_str("its TDX metadata lists no boot firmware volume"),
            Self::Section(index, error) => write!(f, "section {index} of its TDX metadata {error}"),
            Self::Overlap(a, b) => write!(
                f,
                "sections {a} and {b} of its TDX metadata overlap in guest memory"
            ),
            Self::TooManySections(count) => write!(
                f,
                "its TDX metadata lists {count} sections; {MAX_SECTIONS} are the most that are taken"
            ),
            Self::ManyHobs => f.write_str("its TDX metadata lists more than one TD_HOB section"),
            Self::TooLarge => write!(
                f,
                "its TDX metadata adds more than {} GiB before the TD runs",
                MAX_ADDED >> 30
            ),
        }
    }
}

impl core::error::Error for Malformed {}

impl fmt::Display for SectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(number) => write!(f, "has the unknown type {number}"),
            Self::ReservedAttributes(bits) => write!(f, "has reserved attributes ({bits:#x})"),
            Self::Unaligned => f.write_str("does not consist of whole 4 KiB pages"),
            Self::OutOfRange => f.write_str("lies outside private guest memory"),
            Self::DataOutsideFile => f.write_str("has data outside the file"),
            Self::MoreDataThanMemory => f.write_str("has more data than memory"),
            Self::NoData => f.write_str("has no data, although its type demands it"),
            Self::UnexpectedData => f.write_str("has data, although its type forbids it"),
            Self::Unmeasurable => {
                f.write_str("is measured, although the image does not hold its content")
            }
            Self::WrongAug => f.write_str("has a PAGE.AUG attribute that does not fit its type"),
        }
    }
}

impl core::error::Error for SectionError {}

impl fmt::Display for HobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSection => f.write_str("the image has no TD_HOB section"),
            Self::TooLarge { list, room } => write!(
                f,
                "the image has room for a HOB list of {room} bytes, and it would have {list}"
            ),
        }
    }
}

impl core::error::Error for HobError {}

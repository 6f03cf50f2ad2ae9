//! Errors in TDVF images, with messages.

use core::fmt;

use super::{MAX_ADDED, MAX_SECTIONS, locate::TAIL};

/// An error in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The file is shorter than the tail that every TDVF image has.
    TooShort,
    /// Neither the GUID table nor the offset at the end leads to a 'TDVF' descriptor.
    NoMetadata,
    /// A length in the GUID table leads out of the file or into the middle of an entry.
    BrokenTable,
    /// The descriptor's version is not 1.
    Version(u32),
    /// The descriptor's length does not match its number of sections, or exceeds the file.
    Length,
    /// There is no boot firmware volume (BFV), from which a TD could start.
    NoFirmware,
    /// The section with this index is invalid.
    Section(usize, SectionError),
    /// The sections with these indices overlap in guest memory.
    Overlap(usize, usize),
    /// There are this many sections, more than any known firmware has.
    TooManySections(u32),
    /// There is more than one section for the hand-off block.
    ManyHobs,
    /// More guest memory is added than can reasonably be measured.
    TooLarge,
}

/// An error in a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionError {
    /// The design guide does not define its type.
    UnknownType(u32),
    /// It has reserved attributes.
    ReservedAttributes(u32),
    /// Its address or size is not a multiple of 4 KiB, or its size is zero.
    Unaligned,
    /// It lies outside private guest memory.
    OutOfRange,
    /// Its data lies outside the file.
    DataOutsideFile,
    /// Its data is larger than its memory.
    MoreDataThanMemory,
    /// Its type requires data, and it has none.
    NoData,
    /// Its type forbids data, and it has some.
    UnexpectedData,
    /// It is measured, although the host writes it or the guest accepts it empty.
    Unmeasurable,
    /// It is memory to accept without the PAGE.AUG attribute, or the reverse.
    WrongAug,
}

/// Reason why an image cannot take a hand-off block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HobError {
    /// The image has no TD_HOB section.
    NoSection,
    /// The list is larger than the section.
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

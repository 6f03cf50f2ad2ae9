//! One section of an image, and the requirements of its type.

use core::ops::Range;

use seam::abi::PAGE_4K;

use super::SectionError;
use super::locate::SECTION_BYTES;

/// First shared GPA of a TD with 48-bit GPAs.
const SHARED: u64 = 1 << 47;
const ATTRIBUTE_MR_EXTEND: u32 = 1 << 0;
const ATTRIBUTE_PAGE_AUG: u32 = 1 << 1;

/// A range of guest memory that exists before the TD runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// Its type.
    pub kind: Kind,
    /// First GPA, 4 KiB aligned.
    pub gpa: u64,
    /// Size in bytes, a multiple of 4 KiB.
    pub bytes: u64,
    /// Content; zeros follow.
    pub data: &'a [u8],
    /// True if the section is extended into MRTD.
    pub measured: bool,
    /// True if the section is added by TDH.MEM.PAGE.AUG, for the guest to accept. It is not part of MRTD then.
    pub augmented: bool,
}

/// The type of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Boot firmware volume: code.
    Bfv = 0,
    /// Configuration firmware volume: variables.
    Cfv = 1,
    /// The hand-off block, written by the host.
    TdHob = 2,
    /// Stack, heap, mailbox.
    TempMem = 3,
    /// Memory that the guest accepts.
    PermMem = 4,
    /// A kernel contained in the image.
    Payload = 5,
    /// Parameters of the kernel, written by the host.
    PayloadParam = 6,
}

impl<'a> Section<'a> {
    pub(super) fn parse(entry: &[u8; SECTION_BYTES], file: &'a [u8]) -> Result<Self, SectionError> {
        let u32_at = |at: usize| {
            u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let (offset, raw) = (u32_at(0) as usize, u32_at(4) as usize);
        let (gpa, bytes, kind, attributes) =
            (u64_at(8), u64_at(16), Kind::of(u32_at(24))?, u32_at(28));

        if attributes & !(ATTRIBUTE_MR_EXTEND | ATTRIBUTE_PAGE_AUG) != 0 {
            return Err(SectionError::ReservedAttributes(attributes));
        }
        if !gpa.is_multiple_of(PAGE_4K) || !bytes.is_multiple_of(PAGE_4K) || bytes == 0 {
            return Err(SectionError::Unaligned);
        }
        if gpa.checked_add(bytes).is_none_or(|end| end > SHARED) {
            return Err(SectionError::OutOfRange);
        }
        let end = offset
            .checked_add(raw)
            .ok_or(SectionError::DataOutsideFile)?;
        let data = file.get(offset..end).ok_or(SectionError::DataOutsideFile)?;
        if raw as u64 > bytes {
            return Err(SectionError::MoreDataThanMemory);
        }
        let section = Self {
            kind,
            gpa,
            bytes,
            data,
            measured: attributes & ATTRIBUTE_MR_EXTEND != 0,
            augmented: attributes & ATTRIBUTE_PAGE_AUG != 0,
        };
        section.check_kind().map(|()| section)
    }

    /// Checks the requirements of the section's type.
    fn check_kind(&self) -> Result<(), SectionError> {
        let empty = self.data.is_empty();
        match self.kind {
            Kind::Bfv | Kind::Cfv if empty => Err(SectionError::NoData),
            Kind::TdHob | Kind::TempMem | Kind::PermMem if !empty => {
                Err(SectionError::UnexpectedData)
            }
            _ if self.augmented != (self.kind == Kind::PermMem) => Err(SectionError::WrongAug),
            Kind::TdHob | Kind::PermMem if self.measured => Err(SectionError::Unmeasurable),
            Kind::Payload | Kind::PayloadParam if self.measured && empty => {
                Err(SectionError::Unmeasurable)
            }
            _ => Ok(()),
        }
    }

    /// Returns the section's range of GPAs.
    pub fn range(&self) -> Range<u64> {
        self.gpa..self.end()
    }

    pub(super) fn end(&self) -> u64 {
        self.gpa + self.bytes
    }

    /// Returns the content of the page at `offset`, a multiple of 4 KiB; zeros follow.
    pub(super) fn data_at(&self, offset: u64) -> &'a [u8] {
        let length = self.data.len();
        let at = usize::try_from(offset).map_or(length, |at| at.min(length));
        &self.data[at..length.min(at + PAGE_4K as usize)]
    }
}

impl Kind {
    fn of(number: u32) -> Result<Self, SectionError> {
        Ok(match number {
            0 => Self::Bfv,
            1 => Self::Cfv,
            2 => Self::TdHob,
            3 => Self::TempMem,
            4 => Self::PermMem,
            5 => Self::Payload,
            6 => Self::PayloadParam,
            _ => return Err(SectionError::UnknownType(number)),
        })
    }
}

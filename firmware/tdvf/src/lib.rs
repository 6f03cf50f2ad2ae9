//! TDVF images: firmware with metadata that describes how to build a TD from it.
//!
//! The 'TDVF' metadata lists sections of guest memory, with their content and whether they are measured. Images are
//! untrusted: every field is checked, and an image from which no TD can be built is rejected.
//!
//! MRTD depends on which pages the host adds, in which order, and which of them it extends into the measurement.
//! [`TdImage::pages`] defines that order, both for building a TD and for predicting its MRTD.
//!
//! Source: Intel TDX Virtual Firmware Design Guide, TDVF_DESCRIPTOR and TDVF_SECTION; td-shim specification 0.5.1, part I.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod error;
mod locate;
mod pages;
mod section;
#[cfg(test)]
mod tests;
mod write;

use arrayvec::ArrayVec;

pub use error::{HobError, Malformed, SectionError};
pub use pages::{CHUNK, ImagePage, chunks};
pub use section::{Kind, Section};
pub use write::{Entry, TAIL_BYTES, metadata_bytes, write};

use locate::{HEADER_BYTES, SECTION_BYTES, VERSION, u32_at};

/// Maximum guest memory added before the TD runs, in bytes: far above any firmware, and still measured within seconds.
const MAX_ADDED: u64 = 4 << 30;
/// Maximum number of sections in an image: OVMF has 7, td-shim 10.
const MAX_SECTIONS: usize = 32;

/// A TD's image: the content of its memory before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdImage<'a> {
    sections: ArrayVec<Section<'a>, MAX_SECTIONS>,
}

impl<'a> TdImage<'a> {
    /// Parses the metadata of the image in `file`.
    ///
    /// # Errors
    /// [`Malformed`] if no TD can be built from the image.
    pub fn parse(file: &'a [u8]) -> Result<Self, Malformed> {
        let descriptor = locate::descriptor(file)?;
        let field = |at| u32_at(descriptor, at).ok_or(Malformed::Length);
        let (length, version, count) = (field(4)?, field(8)?, field(12)?);
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let expected = (count as usize)
            .checked_mul(SECTION_BYTES)
            .and_then(|bytes| bytes.checked_add(HEADER_BYTES));
        if expected != Some(length as usize) {
            return Err(Malformed::Length);
        }
        let entries = descriptor
            .get(HEADER_BYTES..length as usize)
            .ok_or(Malformed::Length)?;
        let mut sections = ArrayVec::new();
        for (index, entry) in entries.as_chunks::<SECTION_BYTES>().0.iter().enumerate() {
            let section =
                Section::parse(entry, file).map_err(|error| Malformed::Section(index, error))?;
            sections
                .try_push(section)
                .map_err(|_| Malformed::TooManySections(count))?;
        }
        check_together(&sections)?;
        Ok(Self { sections })
    }

    /// Returns the sections in metadata order.
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// Returns the section for the hand-off block, which the host writes, if the image has one.
    pub fn hob(&self) -> Option<&Section<'a>> {
        self.sections
            .iter()
            .find(|section| section.kind == Kind::TdHob)
    }

    /// Returns the image with `list` as its hand-off block.
    ///
    /// # Errors
    /// [`HobError`] if the image has no room for it.
    pub fn with_hob(mut self, list: &'a [u8]) -> Result<Self, HobError> {
        let section = self
            .sections
            .iter_mut()
            .find(|section| section.kind == Kind::TdHob)
            .ok_or(HobError::NoSection)?;
        if list.len() as u64 > section.bytes {
            return Err(HobError::TooLarge {
                list: list.len() as u64,
                room: section.bytes,
            });
        }
        section.data = list;
        Ok(self)
    }
}

/// Checks the rules that hold between sections.
fn check_together(sections: &[Section<'_>]) -> Result<(), Malformed> {
    let count = |kind| {
        sections
            .iter()
            .filter(|section| section.kind == kind)
            .count()
    };
    if count(Kind::Bfv) == 0 {
        return Err(Malformed::NoFirmware);
    }
    if count(Kind::TdHob) > 1 {
        return Err(Malformed::ManyHobs);
    }
    for (b, section) in sections.iter().enumerate() {
        let overlaps = |other: &Section<'_>| section.gpa < other.end() && other.gpa < section.end();
        if let Some(a) = sections[..b].iter().position(overlaps) {
            return Err(Malformed::Overlap(a, b));
        }
    }
    let added: u64 = sections
        .iter()
        .filter(|section| !section.augmented)
        .map(|section| section.bytes)
        .sum();
    if added > MAX_ADDED {
        Err(Malformed::TooLarge)
    } else {
        Ok(())
    }
}

//! The order in which an image becomes memory of a TD.
//!
//! Section by section as the image's metadata lists them, page by page upwards; each page is added by TDH.MEM.PAGE.ADD
//! and, if its section is measured, at once extended by 16 TDH.MR.EXTEND of 256 bytes. KVM does the same since it supports
//! TDX (`KVM_TDX_INIT_MEM_REGION` in Linux 6.16), and QEMU hands it the sections in that order.

use seam::abi::PAGE_4K;
use seam::address::Gpa;

use super::TdImage;

/// Bytes that one TDH.MR.EXTEND measures.
pub const CHUNK: u64 = 256;

/// One page for TDH.MEM.PAGE.ADD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImagePage<'a> {
    /// Where the guest has it, 4 KiB aligned.
    pub gpa: Gpa,
    /// What it holds, at most 4 KiB; zeros follow.
    pub data: &'a [u8],
    /// The [`chunks`] of the page are extended into MRTD before the next page is added.
    pub measured: bool,
}

impl ImagePage<'_> {
    /// The whole page as the guest will find it.
    pub fn content(&self) -> [u8; PAGE_4K as usize] {
        let mut page = [0; PAGE_4K as usize];
        page[..self.data.len()].copy_from_slice(self.data);
        page
    }
}

impl<'a> TdImage<'a> {
    /// Every page to add before the TD is finalized, in the order that MRTD is made by.
    pub fn pages(&self) -> impl Iterator<Item = ImagePage<'a>> + use<'_, 'a> {
        self.sections
            .iter()
            .filter(|section| !section.augmented)
            .flat_map(|section| {
                let pages = (0..section.bytes).step_by(PAGE_4K as usize);
                pages.map(|offset| ImagePage {
                    gpa: Gpa(section.gpa + offset),
                    data: section.data_at(offset),
                    measured: section.measured,
                })
            })
    }
}

/// The addresses that TDH.MR.EXTEND measures of the page at `gpa`, in order.
pub fn chunks(gpa: Gpa) -> impl Iterator<Item = Gpa> {
    (gpa.0..gpa.0 + PAGE_4K).step_by(CHUNK as usize).map(Gpa)
}

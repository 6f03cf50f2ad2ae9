//! The order in which an image becomes memory of a TD.
//!
//! Sections are added in metadata order, and their pages in ascending order. Each page is added by TDH.MEM.PAGE.ADD
//! and, if its section is measured, extended at once by 16 TDH.MR.EXTEND of 256 bytes. KVM has done the same since it
//! supports TDX (`KVM_TDX_INIT_MEM_REGION` in Linux 6.16), and QEMU passes it the sections in that order.

use seam::abi::PAGE_4K;
use seam::address::Gpa;

use super::TdImage;

/// Bytes that one TDH.MR.EXTEND measures.
pub const CHUNK: u64 = 256;

/// A page for TDH.MEM.PAGE.ADD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImagePage<'a> {
    /// Guest-physical address, 4 KiB aligned.
    pub gpa: Gpa,
    /// Content, at most 4 KiB; zeros follow.
    pub data: &'a [u8],
    /// True if the [`chunks`] of the page are extended into MRTD before the next page is added.
    pub measured: bool,
}

impl ImagePage<'_> {
    /// Returns the whole page as the guest finds it.
    pub fn content(&self) -> [u8; PAGE_4K as usize] {
        let mut page = [0; PAGE_4K as usize];
        page[..self.data.len()].copy_from_slice(self.data);
        page
    }
}

impl<'a> TdImage<'a> {
    /// Returns every page to add before the TD is finalized, in the order that determines MRTD.
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

/// Returns the addresses at which TDH.MR.EXTEND measures the page at `gpa`, in order.
pub fn chunks(gpa: Gpa) -> impl Iterator<Item = Gpa> {
    (gpa.0..gpa.0 + PAGE_4K).step_by(CHUNK as usize).map(Gpa)
}

//! PE images: the digest by which firmware measures them, and their sections.
//!
//! Source: Microsoft, Windows Authenticode Portable Executable Signature Format, "Calculating the PE Image Hash".

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use object::pe::{IMAGE_DIRECTORY_ENTRY_SECURITY, ImageNtHeaders64};
use object::read::pe::{ImageNtHeaders, ImageOptionalHeader, PeFile};
use object::{LittleEndian as LE, Object};
use seam::abi::Measurement;
use sha2::{Digest, Sha384};

/// Offset of the checksum in the optional header.
const CHECKSUM: usize = 64;
/// Offset of the table of directories in the optional header, and bytes of an entry of it.
const DIRECTORIES: usize = 112;
const DIRECTORY: usize = 8;

/// A PE image for 64 bits.
pub struct Image<'a> {
    bytes: &'a [u8],
    file: PeFile<'a, ImageNtHeaders64>,
}

impl<'a> Image<'a> {
    /// Parses an image.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let file = PeFile::parse(bytes).context("it is no PE image for 64 bits")?;
        Ok(Self { bytes, file })
    }

    /// Returns the content of a section, without padding.
    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        let section = self.file.section_by_name(name)?;
        let header = section.pe_section();
        let start = header.pointer_to_raw_data.get(LE) as usize;
        let bytes = header
            .virtual_size
            .get(LE)
            .min(header.size_of_raw_data.get(LE));
        self.bytes.get(start..start + bytes as usize)
    }

    /// Returns the digest of everything but the checksum and the signatures.
    pub fn digest(&self) -> Result<Measurement> {
        let optional = self.file.dos_header().nt_headers_offset() as usize + 24;
        let header = self.file.nt_headers().optional_header();
        let headers_end = header.size_of_headers() as usize;
        // The directory's entry is left out whether there are signatures or not.
        let has_entry = header.number_of_rva_and_sizes() as usize > IMAGE_DIRECTORY_ENTRY_SECURITY;
        let signatures = self.file.data_directory(IMAGE_DIRECTORY_ENTRY_SECURITY);
        let signatures_bytes = signatures.map_or(0, |entry| entry.size.get(LE) as usize);
        let entry = optional + DIRECTORIES + IMAGE_DIRECTORY_ENTRY_SECURITY * DIRECTORY;
        let checksum = optional + CHECKSUM;
        let mut parts = match has_entry {
            true => vec![
                0..checksum,
                checksum + 4..entry,
                entry + DIRECTORY..headers_end,
            ],
            false => vec![0..checksum, checksum + 4..headers_end],
        };
        let mut sections: Vec<Range<usize>> = self.file.sections().map(place).collect();
        sections.retain(|section| !section.is_empty());
        sections.sort_by_key(|section| section.start);
        let summed = headers_end + sections.iter().map(Range::len).sum::<usize>();
        parts.extend(sections);
        let end = self.bytes.len().checked_sub(signatures_bytes);
        let end = end.context("its signatures are larger than the file")?;
        if end > summed {
            parts.push(summed..end);
        }
        let mut digest = Sha384::new();
        for part in parts {
            let part = self.bytes.get(part);
            digest.update(part.context("a part of it is behind the end of the file")?);
        }
        Ok(digest.finalize().into())
    }

    /// Checks that the image is one that firmware starts.
    pub fn check_is_application(&self) -> Result<()> {
        let subsystem = self.file.nt_headers().optional_header().subsystem();
        ensure!(
            subsystem == object::pe::IMAGE_SUBSYSTEM_EFI_APPLICATION,
            "it is no UEFI application"
        );
        Ok(())
    }
}

fn place(section: object::read::pe::PeSection<'_, '_, ImageNtHeaders64>) -> Range<usize> {
    let header = section.pe_section();
    let start = header.pointer_to_raw_data.get(LE) as usize;
    start..start + header.size_of_raw_data.get(LE) as usize
}

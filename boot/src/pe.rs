//! The sections of a loaded PE32+ image: locations and permissions.
//!
//! Source: Microsoft PE Format, sections "COFF File Header" and "Section Table".

/// One section, page-aligned as the loader placed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name, padded with zeros.
    pub name: [u8; 8],
    /// Offset from the image's base in bytes.
    pub start: u64,
    /// Size of the content in bytes.
    pub len: u64,
    /// Size in memory in bytes, rounded up to whole pages.
    pub size: u64,
    /// True if the section is writable.
    pub write: bool,
    /// True if the section is executable.
    pub execute: bool,
}

const EXECUTE: u32 = 0x2000_0000;
const WRITE: u32 = 0x8000_0000;

/// Returns the sections that the headers at the start of `image` describe, or `None` if the headers are not those of a
/// PE32+ image or refer to bytes outside `image`.
#[must_use]
pub fn sections(image: &[u8]) -> Option<impl Iterator<Item = Section> + '_> {
    let u16_at = |o: usize| Some(u16::from_le_bytes(image.get(o..o + 2)?.try_into().ok()?));
    let pe = u32_at(image, 0x3C)? as usize;
    if image.get(..2)? != b"MZ" || image.get(pe..pe.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let count = usize::from(u16_at(pe + 6)?);
    let table = pe + 24 + usize::from(u16_at(pe + 20)?);
    let rows = image.get(table..table + count * 40)?;
    Some(rows.chunks_exact(40).map(|row| {
        let field = |o| u32_at(row, o).unwrap_or(0);
        Section {
            name: core::array::from_fn(|i| row[i]),
            start: u64::from(field(12)),
            len: u64::from(field(8)),
            size: u64::from(field(8)).next_multiple_of(4096),
            write: field(36) & WRITE != 0,
            execute: field(36) & EXECUTE != 0,
        }
    }))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0u8; 0x200];
        image[..2].copy_from_slice(b"MZ");
        image[0x3C] = 0x40;
        image[0x40..0x44].copy_from_slice(b"PE\0\0");
        image[0x46] = 2;
        image[0x54] = 0x10;
        image[0x68..0x6D].copy_from_slice(b".text");
        for (row, size, start, flags) in [
            (0x68, 0x1234u32, 0x1000u32, 0x6000_0020u32),
            (0x90, 0x10, 0x3000, 0xC000_0040),
        ] {
            image[row + 8..row + 12].copy_from_slice(&size.to_le_bytes());
            image[row + 12..row + 16].copy_from_slice(&start.to_le_bytes());
            image[row + 36..row + 40].copy_from_slice(&flags.to_le_bytes());
        }
        image
    }

    #[test]
    fn each_section_has_its_own_permissions() {
        let image = image();
        let found: Vec<_> = sections(&image).unwrap().collect();
        assert_eq!(
            found,
            [
                Section {
                    name: *b".text\0\0\0",
                    start: 0x1000,
                    len: 0x1234,
                    size: 0x2000,
                    write: false,
                    execute: true
                },
                Section {
                    name: [0; 8],
                    start: 0x3000,
                    len: 0x10,
                    size: 0x1000,
                    write: true,
                    execute: false
                },
            ]
        );
    }

    #[test]
    fn what_is_not_a_pe_image_has_no_sections() {
        assert!(sections(b"MZ").is_none());
        assert!(sections(&[0; 4096]).is_none());
        let mut cut = image();
        cut.truncate(0x80);
        assert!(sections(&cut).is_none());
        let mut far = image();
        far[0x3C..0x40].copy_from_slice(&[0xFF; 4]);
        assert!(sections(&far).is_none());
    }
}

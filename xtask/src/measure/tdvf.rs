//! TDVF images: firmware that says how a TD is built from it.
//!
//! Metadata ('TDVF') lists sections of guest memory: what they hold, and whether they are measured. It is found through an
//! entry of the GUID table that ends 32 bytes before the image's end (OVMF), or through an offset stored there (td-shim).
//! The image comes from anywhere, so every field is checked; nothing that can't be built is taken.
//!
//! Source: Intel TDX Virtual Firmware Design Guide, TDVF_DESCRIPTOR and TDVF_SECTION; td-shim specification 0.5.1, part I.

use std::borrow::Cow;
use std::fmt;

/// Bytes of a page that TDH.MEM.PAGE.ADD adds.
pub const PAGE: u64 = 4096;
/// Guest memory that is added before the TD runs, at most: far above any firmware, and measured in seconds.
const MAX_ADDED: u64 = 4 << 30;
/// GPAs from here on are shared in a TD with 48-bit GPAs.
const SHARED: u64 = 1 << 47;

/// GUID of the table's own entry, 96b582de-1fb2-45f7-baea-a366c55a082d, as it lies in the file.
const TABLE_GUID: [u8; 16] = [
    0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d,
];
/// GUID of the entry that tells where the metadata is, e47a6535-984a-4798-865e-4685a7bf8ec2, as it lies in the file.
const METADATA_GUID: [u8; 16] = [
    0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2,
];
/// Where the GUID table ends, or td-shim's offset begins, counted from the image's end.
const TAIL: usize = 32;
const SIGNATURE: &[u8] = b"TDVF";
const HEADER_BYTES: usize = 16;
const SECTION_BYTES: usize = 32;
const ATTRIBUTE_MR_EXTEND: u32 = 1 << 0;
const ATTRIBUTE_PAGE_AUG: u32 = 1 << 1;

/// A TD's image: what its memory holds before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdImage<'a> {
    /// In the order of the metadata, which is the order in which they are added.
    pub sections: Vec<Section<'a>>,
}

/// Guest memory that exists before the TD runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// What it is for.
    pub kind: Kind,
    /// The GPA where it starts, 4 KiB aligned.
    pub gpa: u64,
    /// Its size, a multiple of 4 KiB.
    pub bytes: u64,
    /// What it holds; zeros follow.
    pub data: &'a [u8],
    /// It is extended into MRTD.
    pub measured: bool,
    /// It is added by TDH.MEM.PAGE.AUG, for the guest to accept, and not part of MRTD.
    pub augmented: bool,
}

/// What a section is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Boot firmware volume: code.
    Bfv,
    /// Configuration firmware volume: variables.
    Cfv,
    /// The hand-off block, which the host writes.
    TdHob,
    /// Stack, heap, mailbox.
    TempMem,
    /// Memory that the guest accepts.
    PermMem,
    /// A kernel in the image.
    Payload,
    /// Parameters of the kernel, which the host writes.
    PayloadParam,
}

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

impl<'a> TdImage<'a> {
    /// Reads the metadata of the image in `file`.
    ///
    /// # Errors
    /// What is wrong with it, if it is not an image from which a TD can be built.
    pub fn parse(file: &'a [u8]) -> Result<Self, Malformed> {
        let descriptor = descriptor(file)?;
        let field = |at| u32_at(descriptor, at).ok_or(Malformed::Length);
        let (length, version, count) = (field(4)?, field(8)?, field(12)?);
        if version != 1 {
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
        let sections = entries
            .as_chunks::<SECTION_BYTES>()
            .0
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                Section::parse(entry, file).map_err(|error| Malformed::Section(index, error))
            })
            .collect::<Result<Vec<_>, _>>()?;
        check_together(&sections)?;
        Ok(Self { sections })
    }
}

/// What holds between sections.
fn check_together(sections: &[Section<'_>]) -> Result<(), Malformed> {
    if !sections.iter().any(|section| section.kind == Kind::Bfv) {
        return Err(Malformed::NoFirmware);
    }
    let mut by_gpa: Vec<usize> = (0..sections.len()).collect();
    by_gpa.sort_by_key(|index| sections[*index].gpa);
    if let Some(pair) = by_gpa
        .windows(2)
        .find(|pair| sections[pair[0]].end() > sections[pair[1]].gpa)
    {
        return Err(Malformed::Overlap(
            pair[0].min(pair[1]),
            pair[0].max(pair[1]),
        ));
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

impl<'a> Section<'a> {
    fn parse(entry: &[u8; SECTION_BYTES], file: &'a [u8]) -> Result<Self, SectionError> {
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
        if !gpa.is_multiple_of(PAGE) || !bytes.is_multiple_of(PAGE) || bytes == 0 {
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

    /// What its type demands.
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

    fn end(&self) -> u64 {
        self.gpa + self.bytes
    }

    /// The page at `offset`, which is a multiple of 4 KiB, as the guest will find it.
    pub fn page(&self, offset: u64) -> Cow<'a, [u8]> {
        let at = (offset as usize).min(self.data.len());
        let end = (at + PAGE as usize).min(self.data.len());
        if end - at == PAGE as usize {
            return Cow::Borrowed(&self.data[at..end]);
        }
        let mut page = self.data[at..end].to_vec();
        page.resize(PAGE as usize, 0);
        Cow::Owned(page)
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

/// The file from the 'TDVF' descriptor on.
fn descriptor(file: &[u8]) -> Result<&[u8], Malformed> {
    let tail = file.len().checked_sub(TAIL).ok_or(Malformed::TooShort)?;
    let at = match table_entry(&file[..tail], &METADATA_GUID)? {
        // OVMF counts from the end of the image.
        Some(entry) => u32_at(entry, 0).and_then(|back| file.len().checked_sub(back as usize)),
        // td-shim counts from the start.
        None => u32_at(file, tail).map(|at| at as usize),
    };
    at.and_then(|at| file.get(at..))
        .filter(|found| found.starts_with(SIGNATURE))
        .ok_or(Malformed::NoMetadata)
}

/// The data of the entry `guid` in the GUID table that ends where `file` ends, if there are table and entry.
///
/// An entry is its data, its length in two bytes, and its GUID; the length counts all three. The last entry is the table
/// itself, and its length is that of the table.
fn table_entry<'a>(file: &'a [u8], guid: &[u8; 16]) -> Result<Option<&'a [u8]>, Malformed> {
    let Some((rest, &TABLE_GUID)) = file.split_last_chunk::<16>() else {
        return Ok(None);
    };
    let (rest, table_bytes) = rest.split_last_chunk::<2>().ok_or(Malformed::BrokenTable)?;
    let entries_bytes = usize::from(u16::from_le_bytes(*table_bytes))
        .checked_sub(18)
        .ok_or(Malformed::BrokenTable)?;
    let start = rest
        .len()
        .checked_sub(entries_bytes)
        .ok_or(Malformed::BrokenTable)?;
    let mut entries = &rest[start..];
    while !entries.is_empty() {
        let (before, name) = entries
            .split_last_chunk::<16>()
            .ok_or(Malformed::BrokenTable)?;
        let (before, length) = before
            .split_last_chunk::<2>()
            .ok_or(Malformed::BrokenTable)?;
        let data_bytes = usize::from(u16::from_le_bytes(*length))
            .checked_sub(18)
            .ok_or(Malformed::BrokenTable)?;
        let start = before
            .len()
            .checked_sub(data_bytes)
            .ok_or(Malformed::BrokenTable)?;
        if name == guid {
            return Ok(Some(&before[start..]));
        }
        entries = &before[..start];
    }
    Ok(None)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
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
            Self::TooLarge => write!(
                f,
                "its TDX metadata adds more than {} GiB before the TD runs",
                MAX_ADDED >> 30
            ),
        }
    }
}

impl std::error::Error for Malformed {}

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

/// Makes images for tests.
#[cfg(test)]
pub mod testing {
    use super::*;
    use std::ops::Range;

    /// A section as the metadata describes it.
    #[derive(Clone)]
    pub struct Entry {
        pub data: Range<u32>,
        pub gpa: u64,
        pub bytes: u64,
        pub kind: u32,
        pub attributes: u32,
    }

    /// `firmware`, followed by metadata that lists `entries`, a GUID table as OVMF has it, and the tail.
    pub fn image(firmware: &[u8], entries: &[Entry]) -> Vec<u8> {
        let mut file = firmware.to_vec();
        file.extend(metadata(entries));
        let mut table = b"other data".to_vec();
        table.extend(28u16.to_le_bytes());
        table.extend([0x11; 16]);
        let back =
            (HEADER_BYTES + SECTION_BYTES * entries.len() + table.len() + 22 + 18 + TAIL) as u32;
        table.extend(back.to_le_bytes());
        table.extend(22u16.to_le_bytes());
        table.extend(METADATA_GUID);
        table.extend((table.len() as u16 + 18).to_le_bytes());
        table.extend(TABLE_GUID);
        file.extend(table);
        file.extend([0x90; TAIL]);
        file
    }

    /// A 'TDVF' descriptor.
    pub fn metadata(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = b"TDVF".to_vec();
        bytes.extend(((HEADER_BYTES + SECTION_BYTES * entries.len()) as u32).to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend((entries.len() as u32).to_le_bytes());
        for entry in entries {
            bytes.extend(entry.data.start.to_le_bytes());
            bytes.extend((entry.data.end - entry.data.start).to_le_bytes());
            bytes.extend(entry.gpa.to_le_bytes());
            bytes.extend(entry.bytes.to_le_bytes());
            bytes.extend(entry.kind.to_le_bytes());
            bytes.extend(entry.attributes.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use proptest::prelude::*;

    fn bfv() -> Entry {
        Entry {
            data: 0..0x1000,
            gpa: 0xffff_f000,
            bytes: 0x1000,
            kind: 0,
            attributes: 1,
        }
    }

    fn temp() -> Entry {
        Entry {
            data: 0..0,
            gpa: 0x80_0000,
            bytes: 0x2000,
            kind: 3,
            attributes: 0,
        }
    }

    fn parsed(entries: &[Entry]) -> Result<Vec<Kind>, Malformed> {
        let file = image(&[0x55; 0x1000], entries);
        TdImage::parse(&file)
            .map(|image| image.sections.iter().map(|section| section.kind).collect())
    }

    fn second(change: impl FnOnce(&mut Entry)) -> Malformed {
        let mut entry = temp();
        change(&mut entry);
        parsed(&[bfv(), entry]).expect_err("malformed")
    }

    #[test]
    fn metadata_is_found_as_ovmf_stores_it() {
        assert_eq!(parsed(&[bfv(), temp()]), Ok(vec![Kind::Bfv, Kind::TempMem]));
    }

    #[test]
    fn metadata_is_found_as_td_shim_stores_it() {
        let mut file = vec![0; 0x1000];
        file.extend(metadata(&[bfv(), temp()]));
        file.extend(0x1000u32.to_le_bytes());
        file.extend([0; TAIL - 4]);
        assert_eq!(TdImage::parse(&file).unwrap().sections.len(), 2);
    }

    #[test]
    fn memory_beyond_the_data_is_zero() {
        let file = image(
            &[0x55; 0x1800],
            &[Entry {
                data: 0..0x1800,
                bytes: 0x3000,
                gpa: 0x1000,
                ..bfv()
            }],
        );
        let image = TdImage::parse(&file).unwrap();
        let pages: Vec<u8> = [0, 0x1000, 0x2000]
            .iter()
            .flat_map(|at| image.sections[0].page(*at).into_owned())
            .collect();
        assert!(
            pages[..0x1800].iter().all(|byte| *byte == 0x55)
                && pages[0x1800..].iter().all(|byte| *byte == 0)
        );
        assert_eq!(pages.len(), 0x3000);
    }

    #[test]
    fn what_cannot_be_built_is_refused_with_the_reason() {
        use SectionError::*;
        let told = |error| Malformed::Section(1, error);
        assert_eq!(second(|e| e.kind = 7), told(UnknownType(7)));
        assert_eq!(second(|e| e.attributes = 4), told(ReservedAttributes(4)));
        assert_eq!(second(|e| e.gpa += 1), told(Unaligned));
        assert_eq!(second(|e| e.bytes = 0), told(Unaligned));
        assert_eq!(second(|e| e.bytes = 1 << 47), told(OutOfRange));
        assert_eq!(second(|e| e.gpa = !0xfff), told(OutOfRange));
        assert_eq!(
            second(|e| e.data = 0x1000..0x10_0000),
            told(DataOutsideFile)
        );
        assert_eq!(second(|e| e.data = 0..16), told(UnexpectedData));
        assert_eq!(
            second(|e| (e.kind, e.data, e.bytes) = (1, 0..0x1001, 0x1000)),
            told(MoreDataThanMemory)
        );
        assert_eq!(second(|e| e.kind = 1), told(NoData));
        assert_eq!(second(|e| e.attributes = 2), told(WrongAug));
        assert_eq!(second(|e| e.kind = 4), told(WrongAug));
        assert_eq!(
            second(|e| (e.kind, e.attributes) = (2, 1)),
            told(Unmeasurable)
        );
        assert_eq!(
            second(|e| (e.kind, e.attributes) = (5, 1)),
            told(Unmeasurable)
        );
        assert_eq!(second(|e| e.gpa = 0xffff_e000), Malformed::Overlap(0, 1));
        assert_eq!(second(|e| e.bytes = 5 << 30), Malformed::Overlap(0, 1));
        assert_eq!(
            second(|e| (e.gpa, e.bytes) = (8 << 30, 4 << 30)),
            Malformed::TooLarge
        );
        assert_eq!(parsed(&[temp()]), Err(Malformed::NoFirmware));
        assert_eq!(parsed(&[]), Err(Malformed::NoFirmware));
    }

    #[test]
    fn a_file_that_is_no_image_is_refused_with_the_reason() {
        assert_eq!(TdImage::parse(&[]), Err(Malformed::TooShort));
        assert_eq!(TdImage::parse(&[0x90; 4096]), Err(Malformed::NoMetadata));
        let good = image(&[0; 0x1000], &[bfv()]);
        let with = |at: usize, byte: u8| {
            let mut file = good.clone();
            file[at] = byte;
            TdImage::parse(&file).expect_err("malformed")
        };
        assert_eq!(with(0x1000, b'X'), Malformed::NoMetadata);
        assert_eq!(with(0x1004, 1), Malformed::Length);
        assert_eq!(with(0x1008, 2), Malformed::Version(2));
        assert_eq!(with(0x100f, 0xff), Malformed::Length);
        assert_eq!(with(good.len() - TAIL - 17, 0xff), Malformed::BrokenTable);
        assert_eq!(with(good.len() - TAIL - 18, 3), Malformed::BrokenTable);
        assert!(with(0x1004, 1).to_string().contains("length"));
    }

    proptest! {
        /// Whatever stands where, the answer is an image or a sentence.
        #[test]
        fn no_file_makes_the_parser_fail(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let mut file = image(&[0; 64], &[Entry { data: 0..64, ..bfv() }, temp()]);
            for (at, byte) in changes {
                let at = at.index(file.len());
                file[at] = byte;
            }
            if let Err(error) = TdImage::parse(&file) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}

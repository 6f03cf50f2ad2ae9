//! The firmware's error records: a generic error status block with CPER sections.
//!
//! Firmware wrote them, so no length is trusted.
//!
//! Source: ACPI Specification 6.5, section 18.3.2.7.1 (Generic Error Data); UEFI Specification 2.10, appendix N.2.5.

use core::fmt;

/// The severity of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Data is lost, and the machine can continue.
    Recoverable,
    /// The machine can't continue.
    Fatal,
    /// Hardware corrected the error.
    Corrected,
    /// No error, only information.
    None,
}

impl Severity {
    const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Recoverable,
            2 => Self::Corrected,
            3 => Self::None,
            // An unknown severity is treated as the worst.
            _ => Self::Fatal,
        }
    }

    /// Returns the severity's name for tools.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Recoverable => "recoverable",
            Self::Fatal => "fatal",
            Self::Corrected => "corrected",
            Self::None => "information",
        }
    }
}

/// The kind of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Platform memory.
    Memory,
    /// A processor.
    Processor,
    /// A PCI Express device.
    Pcie,
    /// Any other.
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Memory => "memory",
            Self::Processor => "processor",
            Self::Pcie => "PCIe",
            Self::Other => "other",
        })
    }
}

/// One section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// The kind.
    pub kind: Kind,
    /// The section's own severity.
    pub severity: Severity,
    /// The physical address of the page with the error, if the section names it.
    pub page: Option<u64>,
}

/// An error status block.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The severity of the worst section.
    pub severity: Severity,
    sections: &'a [u8],
    count: u32,
}

/// Size in bytes of the block's header.
pub const HEADER: usize = 20;
const SECTION: usize = 64;
/// A section from revision 3 on has a time stamp.
const SECTION_3: usize = 72;

const MEMORY: [u8; 16] = guid(0xA5BC_1114, 0x6F64, 0x4EDE, 0xB863_3E83_ED7C_83B1);
const MEMORY_2: [u8; 16] = guid(0x61EC_04FC, 0x48E6, 0xD813, 0x25C9_8DAA_4475_0B12);
const PROCESSOR: [u8; 16] = guid(0x9876_CCAD, 0x47B4, 0x4BDB, 0xB65E_16F1_93C4_F3DB);
const PROCESSOR_X86: [u8; 16] = guid(0xDC3E_A0B0, 0xA144, 0x4797, 0xB95B_53FA_242B_6E1D);
const PCIE: [u8; 16] = guid(0xD995_E954, 0xBBC1, 0x430F, 0xAD91_B44D_CB3C_6F35);

/// Lays out a GUID as EFI does: the first three fields are little-endian.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (
        a.to_le_bytes(),
        b.to_le_bytes(),
        c.to_le_bytes(),
        d.to_be_bytes(),
    );
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6],
        d[7],
    ]
}

/// Returns true if the block's first bytes say that it holds an error.
#[must_use]
pub fn is_pending(status: u32) -> bool {
    status & 0xF != 0
}

impl<'a> Block<'a> {
    /// Decodes a block. Returns `None` if it holds no error, or its lengths exceed `bytes`.
    #[must_use]
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let status = word(bytes, 0)?;
        if !is_pending(status) {
            return None;
        }
        let data = word(bytes, 12)? as usize;
        Some(Self {
            severity: Severity::from_number(word(bytes, 16)?),
            sections: bytes.get(HEADER..)?.get(..data)?,
            count: status >> 4 & 0x3FF,
        })
    }

    /// Returns the sections. A section that exceeds the block ends the list.
    pub fn sections(&self) -> impl Iterator<Item = Section> + 'a {
        let mut rest = self.sections;
        let mut left = self.count;
        core::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let revision = u16::from_le_bytes(rest.get(20..22)?.try_into().ok()?);
            let header = if revision >= 0x300 {
                SECTION_3
            } else {
                SECTION
            };
            let bytes = word(rest, 24)? as usize;
            let body = rest.get(header..)?.get(..bytes)?;
            let section = Section {
                kind: kind(rest.get(..16)?),
                severity: Severity::from_number(word(rest, 16)?),
                page: page(rest.get(..16)?, body),
            };
            rest = rest.get(header + bytes..)?;
            Some(section)
        })
    }
}

fn kind(guid: &[u8]) -> Kind {
    match guid {
        g if g == MEMORY || g == MEMORY_2 => Kind::Memory,
        g if g == PROCESSOR || g == PROCESSOR_X86 => Kind::Processor,
        g if g == PCIE => Kind::Pcie,
        _ => Kind::Other,
    }
}

/// Returns the page that a memory section names.
fn page(guid: &[u8], body: &[u8]) -> Option<u64> {
    const PHYSICAL_ADDRESS: u64 = 1 << 1;
    let valid = long(body, 0)?;
    let is_memory = kind(guid) == Kind::Memory;
    (is_memory && valid & PHYSICAL_ADDRESS != 0)
        .then(|| long(body, 16))
        .flatten()
        .map(|address| address & !0xFFF)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

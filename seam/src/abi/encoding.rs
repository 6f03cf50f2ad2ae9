//! Register encodings of operands: guest addresses with a level, physical addresses with flags, S-EPT entry details.

/// Bytes of a 4 KiB page.
pub const PAGE_4K: u64 = 1 << 12;
/// Bytes of a 2 MiB page.
pub const PAGE_2M: u64 = 1 << 21;
/// Bytes of a 1 GiB page.
pub const PAGE_1G: u64 = 1 << 30;

/// Number of address bits: physical and guest-physical addresses are below 2^52.
pub const ADDRESS_BITS: u32 = 52;
/// Mask of the page address, bits 51:12.
pub const PAGE_MASK: u64 = (1 << ADDRESS_BITS) - PAGE_4K;
/// "No page", for operands that take an optional physical address.
pub const NULL_PA: u64 = u64::MAX;

/// The size of a page, in PAMT terms.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB.
    Size4K = 0,
    /// 2 MiB.
    Size2M = 1,
    /// 1 GiB.
    Size1G = 2,
}

impl PageSize {
    /// All sizes, smallest first.
    pub const ALL: [Self; 3] = [Self::Size4K, Self::Size2M, Self::Size1G];

    /// Returns the page size for this level or size code.
    pub const fn from_level(level: u8) -> Option<Self> {
        match level {
            0 => Some(Self::Size4K),
            1 => Some(Self::Size2M),
            2 => Some(Self::Size1G),
            _ => None,
        }
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << (12 + 9 * self as u32)
    }

    /// Returns the number of 4 KiB pages, the unit of a TD's child count.
    pub const fn pages(self) -> u64 {
        1 << (9 * self as u32)
    }
}

/// A guest-physical address with the level of the S-EPT entry that maps it. Level 0 is an entry of a page table (4
/// KiB), 3 of a PML4, 4 of a PML5. Bits 2:0 level, 11:3 zero, 51:12 address, 63:52 zero.
///
/// Source: TDX Module ABI 1.5, "EPT mapping information operand".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GpaLevel(pub u64);

impl GpaLevel {
    /// Combines an aligned address and a level.
    pub const fn new(gpa: u64, level: u8) -> Self {
        Self(gpa | level as u64)
    }

    /// Returns the guest-physical address, bits 51:12.
    pub const fn gpa(self) -> u64 {
        self.0 & PAGE_MASK
    }

    /// Returns the level, 0 to 7 (only 0 to 4 are defined).
    pub const fn level(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// Returns whether all reserved bits are zero.
    pub const fn is_well_formed(self) -> bool {
        self.0 & !(PAGE_MASK | 7) == 0
    }

    /// Returns whether the level exists and the address is aligned to the size that an entry of that level maps.
    pub const fn is_aligned(self) -> bool {
        self.level() <= MAX_LEVEL && self.gpa() & (level_bytes(self.level()) - 1) == 0
    }
}

/// The highest S-EPT level, that of the entries of a PML5.
pub const MAX_LEVEL: u8 = 4;

/// Returns the number of bytes that an S-EPT entry of `level`, 0 to [`MAX_LEVEL`], maps.
pub const fn level_bytes(level: u8) -> u64 {
    1 << (12 + 9 * level as u32)
}

/// The state of an S-EPT entry, as TDH.MEM.SEPT.RD and failing leafs report it in RDX bits 15:8.
///
/// Source: TDX Module ABI 1.5, "Secure EPT entry state".
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SeptState {
    /// Nothing is mapped.
    Free = 0x00,
    /// A page that was removed while the TD is being imported.
    Removed = 0x05,
    /// A page table.
    NonLeafMapped = 0x84,
    /// A page table with a blocked range.
    NonLeafBlocked = 0x81,
    /// A mapped page.
    Mapped = 0x04,
    /// A blocked page.
    Blocked = 0x01,
    /// A page blocked for writing.
    BlockedW = 0x08,
    /// An exported page, blocked for writing.
    ExportedBlockedW = 0x09,
    /// An exported page, modified since its export.
    ExportedDirty = 0x0b,
    /// An exported page, modified since its export and blocked for writing.
    ExportedDirtyBlockedW = 0x0c,
    /// A page that the guest has not accepted yet.
    Pending = 0x02,
    /// A pending page, blocked.
    PendingBlocked = 0x03,
    /// A pending page, blocked for writing.
    PendingBlockedW = 0x10,
    /// A pending page, exported and blocked for writing.
    PendingExportedBlockedW = 0x11,
    /// A pending page, exported and modified since its export.
    PendingExportedDirty = 0x13,
    /// A pending page, exported, modified since its export and blocked for writing.
    PendingExportedDirtyBlockedW = 0x14,
}

/// The type of a page in the PAMT, as TDH.PHYMEM.PAGE.RDMD reports it in RCX.
///
/// Source: TDX Module ABI 1.5, "Physical page types".
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageType {
    /// Not directly assigned: owned by the host.
    Nda = 0,
    /// Part of a reserved area of its TDMR.
    Rsvd = 1,
    /// A TD's private page.
    Reg = 3,
    /// The root page of a TD.
    Tdr = 4,
    /// A page of a TDCS or TDVPS.
    Tdcx = 5,
    /// The root page of a vCPU.
    Tdvpr = 6,
    /// A page of a secure EPT.
    Ept = 8,
    /// A page of a dynamic PAMT, or a 2 MiB page whose smaller pages have one.
    Pamt = 15,
}

impl PageType {
    /// Returns the type with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Nda),
            1 => Some(Self::Rsvd),
            3 => Some(Self::Reg),
            4 => Some(Self::Tdr),
            5 => Some(Self::Tdcx),
            6 => Some(Self::Tdvpr),
            8 => Some(Self::Ept),
            15 => Some(Self::Pamt),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_aligned_to_its_level() {
        assert!(GpaLevel::new(0x20_0000, 1).is_aligned());
        assert!(!GpaLevel::new(0x1000, 1).is_aligned());
        assert!(GpaLevel::new(1 << 39, 3).is_aligned());
        assert!(!GpaLevel(0x1008).is_well_formed());
        assert!(!GpaLevel(7).is_aligned());
    }

    #[test]
    fn a_child_count_is_in_4k_pages() {
        assert_eq!(PageSize::ALL.map(PageSize::pages), [1, 512, 262_144]);
        assert_eq!(
            PageSize::ALL.map(PageSize::bytes),
            [PAGE_4K, PAGE_2M, PAGE_1G]
        );
    }
}

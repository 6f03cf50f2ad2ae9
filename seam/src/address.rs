//! Addresses, levels and KeyID positions: the operands of SEAMCALLs, each with its own type.

use core::fmt;

use crate::abi::PageSize;

/// A host-physical address without KeyID bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hpa(pub u64);

/// The SHARED bit of a TD with 48-bit guest-physical addresses. Private memory is below it.
///
/// Source: TDX Module ABI 1.5, CONFIG_FLAGS.GPAW.
pub const SHARED: u64 = 1 << 47;

/// A guest-physical address. A private address has no SHARED bit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl fmt::Debug for Hpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HPA {:#x}", self.0)
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPA {:#x}", self.0)
    }
}

/// The level of an S-EPT entry: the kind of table that contains it.
///
/// Source: TDX Module ABI 1.5, "EPT mapping information operand".
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// An entry of a page table, which maps 4 KiB.
    Pt = 0,
    /// An entry of a page directory: 2 MiB.
    Pd = 1,
    /// An entry of a page-directory-pointer table: 1 GiB.
    Pdpt = 2,
    /// An entry of a PML4: 512 GiB.
    Pml4 = 3,
    /// An entry of a PML5, in a TD with five levels: 256 TiB.
    Pml5 = 4,
}

impl Level {
    /// Returns the level with this number, 0 to 4.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Pt),
            1 => Some(Self::Pd),
            2 => Some(Self::Pdpt),
            3 => Some(Self::Pml4),
            4 => Some(Self::Pml5),
            _ => None,
        }
    }
}

impl From<PageSize> for Level {
    fn from(size: PageSize) -> Self {
        match size {
            PageSize::Size4K => Self::Pt,
            PageSize::Size2M => Self::Pd,
            PageSize::Size1G => Self::Pdpt,
        }
    }
}

/// The position of the KeyID in a physical address, determined by IA32_TME_ACTIVATE and MAXPHYADDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyIdPosition {
    lowest_bit: u32,
}

impl KeyIdPosition {
    /// Places the KeyID in the top `keyid_bits` of `max_pa` physical-address bits. Returns `None` if no CPU can have
    /// this layout: at most 52 address bits, of which at most 15 are KeyID bits.
    pub const fn new(max_pa: u32, keyid_bits: u32) -> Option<Self> {
        if max_pa <= 52 && keyid_bits <= 15 && max_pa >= 32 + keyid_bits {
            Some(Self {
                lowest_bit: max_pa - keyid_bits,
            })
        } else {
            None
        }
    }

    /// Returns the address of `hpa` with KeyID `number`.
    pub const fn keyed(self, hpa: Hpa, number: u16) -> u64 {
        hpa.0 | (number as u64) << self.lowest_bit
    }

    /// Returns the bits of an address that hold the KeyID or lie above it.
    pub const fn mask(self) -> u64 {
        u64::MAX << self.lowest_bit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyid_is_at_the_top_of_the_address() {
        let position = KeyIdPosition::new(52, 6).unwrap();
        assert_eq!(position.keyed(Hpa(0x1000), 0x21), 0x21 << 46 | 0x1000);
        assert_eq!(position.keyed(Hpa(0x1000), 0x21) & !position.mask(), 0x1000);
        assert_eq!(KeyIdPosition::new(53, 6), None);
        assert_eq!(KeyIdPosition::new(36, 6), None);
    }

    #[test]
    fn a_page_is_mapped_by_the_level_of_its_size() {
        for size in PageSize::ALL {
            let level = Level::from(size);
            assert_eq!(crate::abi::level_bytes(level as u8), size.bytes());
            assert_eq!(Level::from_number(level as u8), Some(level));
        }
    }
}

//! The CPUID leaves that the module knows: the values that it requires of the CPU and those that it fixes for a TD.
//!
//! Source: TDX module 1.5.01, CPUID lookup and configuration tables.

/// EAX, EBX, ECX, EDX.
pub type Registers = [u32; 4];

/// One leaf or sub-leaf.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The leaf.
    pub leaf: u32,
    /// The sub-leaf; `None` when the leaf has none.
    pub sub_leaf: Option<u32>,
    /// True if a TD that executes it gets #VE.
    pub faulting: bool,
    /// Bits that TDH.SYS.INIT checks.
    pub check_mask: Registers,
    /// The required value of those bits.
    pub check_value: Registers,
    /// Bits that must be the same on every logical processor.
    pub same: Registers,
    /// Bits that a TD reads as 1.
    pub fixed1: Registers,
    /// Bits that a TD reads as 0, or that the module computes anew each time.
    pub fixed0: Registers,
}

impl Row {
    /// Returns leaf and sub-leaf in one number, the format of status outputs and metadata. The sub-leaf of a leaf
    /// without sub-leafs is all ones.
    pub const fn id(&self) -> u64 {
        let sub_leaf = match self.sub_leaf {
            Some(sub_leaf) => sub_leaf,
            None => u32::MAX,
        };
        self.leaf as u64 | (sub_leaf as u64) << 32
    }

    const fn faulting(mut self) -> Self {
        self.faulting = true;
        self
    }

    const fn checked(mut self, mask: Registers, value: Registers) -> Self {
        (self.check_mask, self.check_value) = (mask, value);
        self
    }

    const fn same(mut self, same: Registers) -> Self {
        self.same = same;
        self
    }

    const fn fixed1(mut self, fixed1: Registers) -> Self {
        self.fixed1 = fixed1;
        self
    }

    const fn fixed0(mut self, fixed0: Registers) -> Self {
        self.fixed0 = fixed0;
        self
    }
}

const fn row(leaf: u32, sub_leaf: Option<u32>) -> Row {
    Row {
        leaf,
        sub_leaf,
        faulting: false,
        check_mask: [0; 4],
        check_value: [0; 4],
        same: [0; 4],
        fixed1: [0; 4],
        fixed0: [0; 4],
    }
}

const ALL: u32 = u32::MAX;

/// Number of rows of the table.
pub const NUM_ROWS: usize = 64;

/// The table, in the order of the CPUID_VALUES metadata field. Leaf 5 is last because it depends on leaf 1.
#[rustfmt::skip]
pub const ROWS: [Row; NUM_ROWS] = [
    row(0x1, None).checked([0, 0xFF00, 0x47FA_A217, 0x1FA9_FBFF], [0, 0x800, 0x47FA_A217, 0x1FA9_FBFF]).same([0xF000_C000, 0xFFFF, 0xF7FF_FF9F, ALL]).fixed1([0, 0, 0x8000_0000, 0x200]).fixed0([0xF000_C000, 0xFF00_00FF, 0x0801_0060, 0x4012_0400]),
    row(0x4, Some(0)).checked([0, 0xFFF, 0, 0], [0, 0x3F, 0, 0]).same([ALL; 4]).fixed0([0x3C00, 0, 0, 0x4]),
    row(0x4, Some(1)).checked([0, 0xFFF, 0, 0], [0, 0x3F, 0, 0]).same([ALL; 4]).fixed0([0x3C00, 0, 0, 0x4]),
    row(0x4, Some(2)).checked([0, 0xFFF, 0, 0], [0, 0x3F, 0, 0]).same([ALL; 4]).fixed0([0x3C00, 0, 0, 0x4]),
    row(0x4, Some(3)).checked([0xE0, 0xFFF, 0, 0x1], [0x60, 0x3F, 0, 0]).same([ALL; 4]).fixed0([0x3C00, 0, 0, 0xFFFF_FFF8]),
    row(0x7, Some(0)).checked([ALL, 0x2194_24C3, 0x9900_0000, 0xFC08_2600], [0x2, 0x2194_24C3, 0x9900_0000, 0xFC08_0400]).same([ALL, 0xFFFF_FFFB, 0xBFC1_FF6F, 0xFFEB_FFFF]).fixed0([0, 0x0040_4006, 0x643E_8010, 0x0022_98C3]),
    row(0x7, Some(1)).same([ALL; 4]).fixed0([0xFFFF_E2CF, ALL, ALL, ALL]),
    row(0xA, None).checked([0xFF00, 0, 0xFFFF_FF80, 0x8000], [0x800, 0, 0, 0x8000]).same([ALL; 4]).fixed0([0, 0, 0, 0xFFFF_6000]),
    row(0x1C, None).same([ALL; 4]),
    row(0x8000_0008, None).checked([0xFF, 0x200, 0, 0], [0x34, 0x200, 0, 0]).same([ALL; 4]).fixed0([0xFFFF_0000, 0xFFFF_FDFF, ALL, ALL]),
    row(0, None).checked([0, ALL, ALL, ALL], [0, 0x756E_6547, 0x6C65_746E, 0x4965_6E69]).same([ALL; 4]).fixed1([0x23, 0, 0, 0]).fixed0([0xFFFF_FFDC, 0, 0, 0]),
    row(0x3, None).fixed0([ALL; 4]),
    row(0x4, Some(4)).checked([0x1F, 0, 0, 0], [0, 0, 0, 0]).same([ALL; 4]).fixed0([ALL; 4]),
    row(0x6, None).faulting().checked([0x0080_0000, 0, 0, 0], [0, 0, 0, 0]).same([0x0080_0000, 0, 0, 0]),
    row(0x7, Some(2)).checked([0, 0, 0, 0x17], [0, 0, 0, 0x17]).same([ALL; 4]).fixed0([ALL, ALL, ALL, 0xFFFF_FFC0]),
    row(0x8, None).fixed0([ALL; 4]),
    row(0xD, Some(0)).checked([0x3, 0, 0, 0], [0x3, 0, 0, 0]).same([ALL, 0, ALL, ALL]).fixed0([0xFFF9_FD18, ALL, 0, ALL]),
    row(0xD, Some(1)).checked([0xF, 0, 0x1800, 0], [0xF, 0, 0x1800, 0]).same([ALL, 0, ALL, ALL]).fixed0([0xFFFF_FFE0, ALL, 0xFFFF_26FF, ALL]),
    row(0xD, Some(2)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(3)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(4)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(5)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(6)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(7)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(8)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(9)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(10)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(11)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(12)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(13)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(14)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(15)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(16)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(17)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xD, Some(18)).same([ALL; 4]).fixed0([0, 0, 0, ALL]),
    row(0xE, None).fixed0([ALL; 4]),
    row(0x11, None).fixed0([ALL; 4]),
    row(0x12, None).fixed0([ALL; 4]),
    row(0x13, None).fixed0([ALL; 4]),
    row(0x14, Some(0)).checked([ALL, 0, 0, 0], [0x1, 0, 0, 0]).same([ALL; 4]).fixed0([0, 0xFFFF_FE00, 0x7FFF_FFF0, ALL]),
    row(0x14, Some(1)).same([ALL; 4]).fixed0([0xFFF8, 0, ALL, ALL]),
    row(0x15, None).same([ALL; 4]).fixed1([0x1, 0, 0x017D_7840, 0]).fixed0([0xFFFF_FFFE, 0, 0xFE82_87BF, ALL]),
    row(0x19, None).same([ALL, 0xFFFF_FFFE, ALL, ALL]).fixed0([0xFFFF_FFF8, 0xFFFF_FFEB, 0xFFFF_FFFD, ALL]),
    row(0x1D, Some(0)).same([ALL; 4]),
    row(0x1D, Some(1)).same([ALL; 4]),
    row(0x1E, None).same([ALL; 4]),
    row(0x1F, Some(0)).faulting().same([ALL, ALL, ALL, 0]),
    row(0x1F, Some(1)).faulting().same([ALL, ALL, ALL, 0]),
    row(0x1F, Some(2)).faulting().same([ALL, ALL, ALL, 0]),
    row(0x1F, Some(3)).faulting().same([ALL, ALL, ALL, 0]),
    row(0x1F, Some(4)).faulting().same([ALL, ALL, ALL, 0]),
    row(0x1F, Some(5)).faulting().checked([0, 0, 0xFF00, 0], [0, 0, 0, 0]).same([ALL, ALL, ALL, 0]),
    row(0x20, None).fixed0([ALL; 4]),
    row(0x21, Some(0)).fixed1([0, 0x6574_6E49, 0x2020_2020, 0x5844_546C]).fixed0([ALL, 0x9A8B_91B6, 0xDFDF_DFDF, 0xA7BB_AB93]),
    row(0x8000_0000, None).same([ALL; 4]).fixed1([0x8000_0008, 0, 0, 0]).fixed0([0x7FFF_FFF7, ALL, ALL, ALL]),
    row(0x8000_0001, None).checked([0, 0, 0x121, 0x2C10_0800], [0, 0, 0x121, 0x2C10_0800]).same([ALL; 4]).fixed0([ALL, ALL, 0xFFFF_FEDE, 0xD3EF_FFFF]),
    row(0x8000_0006, None).faulting().checked([0, 0, 0xFF, 0], [0, 0, 0x40, 0]).same([0, 0, 0xFF, 0]),
    row(0x8000_0007, None).checked([0, 0, 0, 0x100], [0, 0, 0, 0x100]).same([0, 0, 0, 0x100]).fixed0([ALL, ALL, ALL, 0xFFFF_FEFF]),
    row(0x22, None).fixed0([ALL; 4]),
    row(0x23, Some(0)).same([ALL; 4]).fixed0([0xFFFF_FFF0, 0, ALL, ALL]),
    row(0x23, Some(1)).checked([0xFFFF_FF00, 0xFFFF_FFF0, 0, 0], [0, 0, 0, 0]).same([ALL; 4]).fixed0([0, 0, ALL, ALL]),
    row(0x23, Some(2)).same([ALL; 4]).fixed0([ALL; 4]),
    row(0x23, Some(3)).same([ALL; 4]).fixed0([0, ALL, ALL, ALL]),
    row(0x5, None).same([ALL; 4]).fixed0([0xFFFF_0000, 0xFFFF_0000, 0xFFFF_FFFC, 0]),
];

/// Bits of a row that TD_PARAMS.CPUID_CONFIG configures.
#[derive(Clone, Copy, Debug)]
pub struct Configurable {
    /// The row's index in [`ROWS`].
    pub row: usize,
    /// Bits that a TD reads as configured.
    pub direct: Registers,
    /// Bits that a TD reads as the CPU has them if configured as 1, else as 0.
    pub allowed: Registers,
}

/// Number of entries of TD_PARAMS.CPUID_CONFIG.
pub const NUM_CONFIGURABLE: usize = 12;

/// The configurable rows, in the order of TD_PARAMS.CPUID_CONFIG.
#[rustfmt::skip]
pub const CONFIGURABLE: [Configurable; NUM_CONFIGURABLE] = [
    Configurable { row: 0, direct: [0x0FFF_3FFF, 0x00FF_0000, 0, 0], allowed: [0, 0, 0x3104_4D88, 0xB844_0000] },
    Configurable { row: 1, direct: [0xFFFF_C3FF, 0xFFFF_F000, ALL, 0xFFFF_FFFB], allowed: [0; 4] },
    Configurable { row: 2, direct: [0xFFFF_C3FF, 0xFFFF_F000, ALL, 0xFFFF_FFFB], allowed: [0; 4] },
    Configurable { row: 3, direct: [0xFFFF_C3FF, 0xFFFF_F000, ALL, 0xFFFF_FFFB], allowed: [0; 4] },
    Configurable { row: 4, direct: [0xFFFF_C3FF, 0xFFFF_F000, ALL, 0x7], allowed: [0; 4] },
    Configurable { row: 5, direct: [0; 4], allowed: [0, 0xDC2B_9B18, 0x0241_7F65, 0x0005_411C] },
    Configurable { row: 6, direct: [0; 4], allowed: [0x1D30, 0, 0, 0] },
    Configurable { row: 7, direct: [0; 4], allowed: [0; 4] },
    Configurable { row: 8, direct: [0; 4], allowed: [0xFF, 0, 0, 0] },
    Configurable { row: 9, direct: [0; 4], allowed: [0, 0x200, 0, 0] },
    Configurable { row: 14, direct: [0; 4], allowed: [0, 0, 0, 0x28] },
    Configurable { row: 59, direct: [0; 4], allowed: [0xF, 0, 0, 0] },
];

/// Bits that a TD reads as 0 unless it has certain XFAM components.
#[derive(Clone, Copy, Debug)]
pub struct XfamBits {
    /// The leaf.
    pub leaf: u32,
    /// The sub-leaf.
    pub sub_leaf: Option<u32>,
    /// The XFAM bits, all of which must be set.
    pub xfam: u64,
    /// The CPUID bits.
    pub bits: Registers,
}

const fn needs(leaf: u32, sub_leaf: Option<u32>, xfam: u64, bits: Registers) -> XfamBits {
    XfamBits {
        leaf,
        sub_leaf,
        xfam,
        bits,
    }
}

/// CPUID bits that depend on XFAM components.
pub const XFAM_BITS: [XfamBits; 23] = [
    needs(1, None, 1 << 2, [0, 0, 0x3000_1000, 0]),
    needs(7, Some(0), 1 << 2, [0, 0x20, 0x600, 0]),
    needs(7, Some(0), 0xE0, [0, 0xDC23_0000, 0x5842, 0x0080_010C]),
    needs(7, Some(0), 1 << 8, [0, 0x0200_0000, 0, 0]),
    needs(7, Some(0), 1 << 9, [0, 0, 0x8, 0]),
    needs(7, Some(0), 0x1800, [0, 0, 0x80, 0x0010_0000]),
    needs(7, Some(0), 1 << 14, [0, 0, 0, 0x20]),
    needs(7, Some(0), 1 << 15, [0, 0, 0, 0x0008_0000]),
    needs(7, Some(0), 0x6_0000, [0, 0, 0, 0x0340_0000]),
    needs(7, Some(1), 0xE0, [0x30, 0, 0, 0]),
    needs(0xD, Some(0), 1 << 2, [0x4, 0, 0, 0]),
    needs(0xD, Some(0), 0xE0, [0xE0, 0, 0, 0]),
    needs(0xD, Some(0), 1 << 9, [0x200, 0, 0, 0]),
    needs(0xD, Some(0), 0x6_0000, [0x6_0000, 0, 0, 0]),
    needs(0xD, Some(1), 1 << 8, [0, 0, 0x100, 0]),
    needs(0xD, Some(1), 0x1800, [0, 0, 0x1800, 0]),
    needs(0xD, Some(1), 1 << 14, [0, 0, 0x4000, 0]),
    needs(0xD, Some(1), 1 << 15, [0, 0, 0x8000, 0]),
    needs(0x14, Some(0), 1 << 8, [ALL; 4]),
    needs(0x14, Some(1), 1 << 8, [ALL; 4]),
    needs(0x1C, None, 1 << 15, [ALL; 4]),
    needs(0x1D, Some(0), 0x6_0000, [ALL; 4]),
    needs(0x1D, Some(1), 0x6_0000, [ALL; 4]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bit_is_fixed_and_configurable() {
        for entry in &CONFIGURABLE {
            for (register, (direct, allowed)) in entry.direct.iter().zip(entry.allowed).enumerate()
            {
                let row = &ROWS[entry.row];
                assert_eq!(direct & allowed, 0);
                assert_eq!(
                    (direct | allowed) & (row.fixed1[register]),
                    0,
                    "{:x}",
                    row.leaf
                );
            }
        }
    }

    #[test]
    fn each_leaf_occurs_once() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!(
                ROWS[..index].iter().all(|other| other.id() != row.id()),
                "{:x}",
                row.leaf
            );
        }
    }
}

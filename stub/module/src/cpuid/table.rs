//! The CPUID leaves that the module knows: the values that it requires of the CPU and those that it fixes for a TD.
//!
//! Source: TDX module 1.5.01 and 1.5.16, CPUID lookup and configuration tables.

use crate::{Change, Release};

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

/// The tables of a release.
#[derive(Debug)]
pub struct Table {
    /// The rows, in the order of the CPUID_VALUES metadata field. Leaf 5 depends on leaf 1, which precedes it.
    pub rows: &'static [Row],
    /// The configurable rows, in the order of TD_PARAMS.CPUID_CONFIG.
    pub configurable: &'static [Configurable],
    /// The bits that depend on XFAM components.
    pub xfam_bits: &'static [XfamBits],
}

impl Table {
    /// Returns the tables of a release.
    pub const fn of(release: Release) -> &'static Self {
        if release.does(Change::MORE_CPUID) {
            &REVISED
        } else {
            &FIRST
        }
    }

    /// Returns the row of a leaf and sub-leaf, or `None` if there is none.
    pub fn find(&self, leaf: u32, sub_leaf: u32) -> Option<usize> {
        self.rows
            .iter()
            .position(|row| row.leaf == leaf && row.sub_leaf.is_none_or(|known| known == sub_leaf))
    }

    /// Returns the entry of TD_PARAMS.CPUID_CONFIG that configures a row.
    pub fn configures(&self, row: usize) -> Option<usize> {
        self.configurable.iter().position(|entry| entry.row == row)
    }
}

static FIRST: Table = Table {
    rows: &FIRST_ROWS,
    configurable: &FIRST_CONFIGURABLE,
    xfam_bits: &FIRST_XFAM_BITS,
};

static REVISED: Table = Table {
    rows: &REVISED_ROWS,
    configurable: &REVISED_CONFIGURABLE,
    xfam_bits: &REVISED_XFAM_BITS,
};

/// Maximum number of rows of a table.
pub const NUM_ROWS: usize = FIRST_ROWS.len() + ADDED_ROWS.len();

static REVISED_ROWS: [Row; NUM_ROWS] =
    extended(&FIRST_ROWS, &CHANGED_ROWS, &ADDED_ROWS, FIRST_ROWS[0]);

static REVISED_CONFIGURABLE: [Configurable; NUM_CONFIGURABLE] = extended(
    &FIRST_CONFIGURABLE,
    &CHANGED_CONFIGURABLE,
    &ADDED_CONFIGURABLE,
    FIRST_CONFIGURABLE[0],
);

/// Returns `first` with some elements changed, and others added.
const fn extended<T: Copy, const N: usize>(
    first: &[T],
    changed: &[(usize, T)],
    added: &[T],
    filler: T,
) -> [T; N] {
    let mut all = [filler; N];
    let mut i = 0;
    while i < first.len() {
        all[i] = first[i];
        i += 1;
    }
    while i < first.len() + added.len() {
        all[i] = added[i - first.len()];
        i += 1;
    }
    i = 0;
    while i < changed.len() {
        all[changed[i].0] = changed[i].1;
        i += 1;
    }
    all
}

/// The rows of release 1.5.01. Leaf 5 is last because it depends on leaf 1.
#[rustfmt::skip]
const FIRST_ROWS: [Row; 64] = [
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

/// The rows that later releases changed, by their position.
#[rustfmt::skip]
const CHANGED_ROWS: [(usize, Row); 16] = [
    (1, row(0x4, Some(0)).checked([0, 0xFFF, 0, 0], [0, 0x3F, 0, 0]).same([ALL; 4]).fixed0([0x3C00, 0, 0, 0xFFFF_FFF8])),
    (2, row(0x4, Some(1)).checked([0, 0xFFF, 0, 0], [0, 0x3F, 0, 0]).same([ALL; 4]).fixed0([0x3C00, 0, 0, 0xFFFF_FFF8])),
    (3, row(0x4, Some(2)).checked([0, 0xFFF, 0, 0], [0, 0x3F, 0, 0]).same([ALL; 4]).fixed0([0x3C00, 0, 0, 0xFFFF_FFF8])),
    (5, row(0x7, Some(0)).checked([ALL, 0x2194_24C3, 0x9900_0000, 0xFC08_2600], [2, 0x2194_24C3, 0x9900_0000, 0xFC08_0400]).same([ALL, 0xFFFF_FFFB, 0xBFC1_7F6F, 0xFFEB_FFFF]).fixed0([0, 0x40_4006, 0x643E_8010, 0x22_98C3])),
    (6, row(0x7, Some(1)).same([ALL; 4]).fixed0([0xFB77_E20F, ALL, ALL, 0xFFFD_BBCF])),
    (9, row(0x80000008, None).checked([0, 0x200, 0, 0], [0, 0x200, 0, 0]).same([ALL; 4]).fixed0([0, 0xFFFF_FDFF, ALL, ALL])),
    (13, row(0x6, None).checked([0x80_0000, 0, 0, 0], [0, 0, 0, 0]).same([0x80_0000, 0, 0, 0]).fixed1([4, 0, 0, 0]).fixed0([0xFFFF_FFFB, ALL, ALL, ALL])),
    (42, row(0x19, None).same([ALL, 0xFFFF_FFFE, ALL, ALL]).fixed0([ALL; 4])),
    (46, row(0x1F, Some(0)).same([ALL, ALL, ALL, 0]).fixed0([0xFFFF_FFE0, 0xFFFF_0000, 0xFFFF_0000, ALL])),
    (47, row(0x1F, Some(1)).same([ALL, ALL, ALL, 0]).fixed0([0xFFFF_FFE0, 0xFFFF_0000, 0xFFFF_0000, ALL])),
    (48, row(0x1F, Some(2)).same([ALL, ALL, ALL, 0]).fixed0([0xFFFF_FFE0, 0xFFFF_0000, 0xFFFF_0000, ALL])),
    (49, row(0x1F, Some(3)).same([ALL, ALL, ALL, 0]).fixed0([0xFFFF_FFE0, 0xFFFF_0000, 0xFFFF_0000, ALL])),
    (50, row(0x1F, Some(4)).same([ALL, ALL, ALL, 0]).fixed0([0xFFFF_FFE0, 0xFFFF_0000, 0xFFFF_0000, ALL])),
    (51, row(0x1F, Some(5)).checked([0, 0, 0xFF00, 0], [0, 0, 0, 0]).same([ALL, ALL, ALL, 0]).fixed0([0xFFFF_FFE0, 0xFFFF_0000, 0xFFFF_0000, ALL])),
    (56, row(0x80000006, None).checked([0, 0, 0xFF, 0], [0, 0, 0x40, 0]).same([0, 0, 0xFF, 0]).fixed1([0, 0, 0x7040, 0]).fixed0([ALL, ALL, 0x8FBF, ALL])),
    (60, row(0x23, Some(1)).checked([0xFFFF_FF00, 0xFFFF_FF80, 0, 0], [0, 0, 0, 0]).same([ALL; 4]).fixed0([0, 0, ALL, ALL])),
];

/// The rows that later releases added. The values that 0xB and 0x1F have in a TD are computed at its creation.
#[rustfmt::skip]
const ADDED_ROWS: [Row; 15] = [
    row(0xB, Some(0)).fixed0([0xFFFF_FFE0, 0xFFFF_0000, 0xFFFF_0000, ALL]),
    row(0xB, Some(1)).fixed0([0xFFFF_FFE0, 0xFFFF_0000, 0xFFFF_0000, ALL]),
    row(0xB, Some(2)).fixed0([ALL, ALL, 0xFFFF_FF00, ALL]),
    row(0x1A, None).same([ALL; 4]).fixed0([0, ALL, ALL, ALL]),
    row(0x18, Some(0)),
    row(0x18, Some(1)),
    row(0x18, Some(2)),
    row(0x18, Some(3)),
    row(0x2, None).fixed1([0xFE_FF01, 0, 0, 0]).fixed0([0xFF01_00FE, ALL, ALL, ALL]),
    row(0x18, Some(4)),
    row(0x18, Some(5)),
    row(0x18, Some(6)),
    row(0x18, Some(7)),
    row(0x18, Some(8)),
    row(0x80000002, None).fixed1([0x6574_6E49, 0x5820_4454, 0x6C20_2020, 0]).fixed0([0x9A8B_91B6, 0xA7DF_BBAB, 0x93DF_DFDF, ALL]),
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

/// Maximum number of entries of TD_PARAMS.CPUID_CONFIG.
pub const NUM_CONFIGURABLE: usize = FIRST_CONFIGURABLE.len() + ADDED_CONFIGURABLE.len();

/// The configurable rows of release 1.5.01.
#[rustfmt::skip]
const FIRST_CONFIGURABLE: [Configurable; 12] = [
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

const fn configurable(row: usize, direct: Registers, allowed: Registers) -> Configurable {
    Configurable {
        row,
        direct,
        allowed,
    }
}

/// A level of the topology in leaf 0x1F: shift, number of processors, level's number and type.
const TOPOLOGY_LEVEL: Registers = [0x1F, 0xFFFF, 0xFFFF, 0];
/// A level of the address translation caches in leaf 0x18: the processors that share it.
const TRANSLATION_CACHE: Registers = [0, 0, 0, 0x3FF_C000];

/// The configurable rows that later releases changed, by their position.
#[rustfmt::skip]
const CHANGED_CONFIGURABLE: [(usize, Configurable); 7] = [
    (0, configurable(0, [0x0FFF_3FFF, 0x00FF_0000, 0, 0], [0, 0, 0x3104_4D88, 0xB844_5080])),
    (1, configurable(1, [0xFFFF_C3FF, 0xFFFF_F000, ALL, 0x7], [0; 4])),
    (2, configurable(2, [0xFFFF_C3FF, 0xFFFF_F000, ALL, 0x7], [0; 4])),
    (3, configurable(3, [0xFFFF_C3FF, 0xFFFF_F000, ALL, 0x7], [0; 4])),
    (5, configurable(5, [0; 4], [0, 0xDC2B_9B18, 0x0241_7F65, 0x4005_411C])),
    (6, configurable(6, [0; 4], [0x0488_1DB0, 0, 0, 0x2_4430])),
    (9, configurable(9, [0xFF, 0, 0, 0], [0, 0x200, 0, 0])),
];

/// The configurable rows that later releases added.
#[rustfmt::skip]
const ADDED_CONFIGURABLE: [Configurable; 16] = [
    configurable(46, TOPOLOGY_LEVEL, [0; 4]),
    configurable(47, TOPOLOGY_LEVEL, [0; 4]),
    configurable(48, TOPOLOGY_LEVEL, [0; 4]),
    configurable(49, TOPOLOGY_LEVEL, [0; 4]),
    configurable(50, TOPOLOGY_LEVEL, [0; 4]),
    configurable(51, TOPOLOGY_LEVEL, [0; 4]),
    configurable(42, [0; 4], [0; 4]),
    configurable(68, TRANSLATION_CACHE, [0; 4]),
    configurable(69, TRANSLATION_CACHE, [0; 4]),
    configurable(70, TRANSLATION_CACHE, [0; 4]),
    configurable(71, TRANSLATION_CACHE, [0; 4]),
    configurable(73, TRANSLATION_CACHE, [0; 4]),
    configurable(74, TRANSLATION_CACHE, [0; 4]),
    configurable(75, TRANSLATION_CACHE, [0; 4]),
    configurable(76, TRANSLATION_CACHE, [0; 4]),
    configurable(77, TRANSLATION_CACHE, [0; 4]),
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

/// CPUID bits that depend on XFAM components, in release 1.5.01.
const FIRST_XFAM_BITS: [XfamBits; 23] = [
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

static REVISED_XFAM_BITS: [XfamBits; 24] = extended(
    &FIRST_XFAM_BITS,
    &[(9, needs(7, Some(1), 0xE0, [0x20, 0, 0, 0]))],
    &[needs(7, Some(1), 1 << 2, [0x80_0010, 0, 0, 0x430])],
    FIRST_XFAM_BITS[0],
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bit_is_fixed_and_configurable() {
        for table in [&FIRST, &REVISED] {
            for entry in table.configurable {
                let row = &table.rows[entry.row];
                for register in 0..4 {
                    let (direct, allowed) = (entry.direct[register], entry.allowed[register]);
                    assert_eq!(direct & allowed, 0);
                    let bits = (direct | allowed) & row.fixed1[register];
                    assert_eq!(bits, 0, "{:x}", row.leaf);
                }
            }
        }
    }

    #[test]
    fn each_leaf_occurs_once() {
        for table in [&FIRST, &REVISED] {
            for (index, row) in table.rows.iter().enumerate() {
                let others = &table.rows[..index];
                assert!(
                    others.iter().all(|other| other.id() != row.id()),
                    "{:x}",
                    row.leaf
                );
            }
        }
    }
}

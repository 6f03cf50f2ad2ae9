//! The features of a unit, and its faults.

use std::ops::RangeInclusive;

/// A unit to be modelled.
#[derive(Clone, Debug)]
pub struct UnitShape {
    /// Physical address of its registers.
    pub base: u64,
    /// Its PCI segment.
    pub segment: u16,
    /// The requester ids whose requests it gets; the first unit that has one gets it.
    pub sources: RangeInclusive<u16>,
    /// ECAP.C: it snoops caches.
    pub is_coherent: bool,
    /// CAP.RWBF: it buffers stores.
    pub buffers: bool,
    /// CAP.CM: it caches absent entries.
    pub caches_absent: bool,
    /// CAP.SAGAW: the numbers of levels that it walks.
    pub levels: RangeInclusive<u32>,
    /// CAP.SLLPS: the highest level with leaves, 1 to 3.
    pub highest_leaf: u32,
    /// CAP.MGAW: the width of device addresses.
    pub address_bits: u32,
    /// CAP.PSI with CAP.MAMV.
    pub page_selective: Option<u32>,
    /// CAP.ND: domain ids in bits.
    pub domain_bits: u32,
    /// CAP.NFR.
    pub fault_records: u32,
    /// ECAP.IR.
    pub remaps_interrupts: bool,
    /// ECAP.EIM.
    pub has_extended_mode: bool,
    /// CAP.PI.
    pub posts: bool,
    /// ECAP.QI.
    pub has_queue: bool,
    /// The features that the firmware has left on.
    pub firmware: Firmware,
    /// The requests that it does not answer.
    pub silence: Silence,
}

/// The features that the firmware has left on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Firmware {
    /// Translation, with tables in which the functions of most devices reach everything.
    pub translates: bool,
    /// The root table's mode is the scalable one.
    pub is_scalable: bool,
    /// The invalidation queue.
    pub has_queue: bool,
    /// Interrupt remapping.
    pub remaps: bool,
    /// Compatibility-format interrupts pass.
    pub passes_compatibility: bool,
    /// The protected memory regions, which contain all memory.
    pub protects: bool,
}

/// The requests that a unit does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Silence {
    /// It answers everything.
    #[default]
    None,
    /// Its registers read as ones.
    Absent,
    /// It ignores changes of this bit of GCMD.
    Command(u32),
    /// It does not execute its queue.
    Queue,
    /// It does not give up its protected memory regions.
    ProtectedRegions,
}

impl UnitShape {
    /// Returns a unit with everything that a server's has.
    #[must_use]
    pub fn new(base: u64) -> Self {
        Self {
            base,
            segment: 0,
            sources: 0..=u16::MAX,
            is_coherent: true,
            buffers: false,
            caches_absent: false,
            levels: 4..=5,
            highest_leaf: 3,
            address_bits: 57,
            page_selective: Some(9),
            domain_bits: 16,
            fault_records: 8,
            remaps_interrupts: true,
            has_extended_mode: true,
            posts: true,
            has_queue: true,
            firmware: Firmware::default(),
            silence: Silence::default(),
        }
    }

    /// Returns a unit as QEMU 7.2 models one.
    #[must_use]
    pub fn like_qemu(base: u64) -> Self {
        Self {
            is_coherent: false,
            levels: 3..=4,
            address_bits: 48,
            page_selective: Some(18),
            fault_records: 1,
            posts: false,
            ..Self::new(base)
        }
    }

    pub(crate) fn capability(&self) -> u64 {
        let levels = self
            .levels
            .clone()
            .fold(0u64, |bits, level| bits | 1 << (level - 2));
        let leaves = match self.highest_leaf {
            1 => 0u64,
            2 => 1,
            _ => 3,
        };
        let psi = self
            .page_selective
            .map_or(0, |order| 1 << 39 | u64::from(order) << 48);
        u64::from((self.domain_bits - 4) / 2)
            | u64::from(self.buffers) << 4
            | 1 << 5
            | u64::from(self.caches_absent) << 7
            | levels << 8
            | u64::from(self.address_bits - 1) << 16
            | (FAULT_RECORDS_AT / 16) << 24
            | leaves << 34
            | psi
            | u64::from(self.fault_records - 1) << 40
            | 3 << 54
            | u64::from(self.posts) << 59
    }

    pub(crate) fn extended(&self) -> u64 {
        u64::from(self.is_coherent)
            | u64::from(self.has_queue) << 1
            | u64::from(self.remaps_interrupts) << 3
            | u64::from(self.has_extended_mode) << 4
            | 0xF0 << 8
    }
}

/// Offset of the first fault record. It is behind the first page, as on servers.
pub(crate) const FAULT_RECORDS_AT: u64 = 0x1100;

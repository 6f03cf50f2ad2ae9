//! The registers of a unit.
//!
//! Source: VT-d specification, chapter 11 (Register Descriptions).

use bitflags::bitflags;

/// VER_REG.
pub const VERSION: u32 = 0x00;
/// CAP_REG.
pub const CAPABILITY: u32 = 0x08;
/// ECAP_REG.
pub const EXTENDED_CAPABILITY: u32 = 0x10;
/// GCMD_REG.
pub const COMMAND: u32 = 0x18;
/// GSTS_REG.
pub const STATUS: u32 = 0x1C;
/// RTADDR_REG.
pub const ROOT_TABLE: u32 = 0x20;
/// FSTS_REG.
pub const FAULT_STATUS: u32 = 0x34;
/// FECTL_REG.
pub const FAULT_CONTROL: u32 = 0x38;
/// FEDATA_REG.
pub const FAULT_DATA: u32 = 0x3C;
/// FEADDR_REG.
pub const FAULT_ADDRESS: u32 = 0x40;
/// FEUADDR_REG.
pub const FAULT_UPPER_ADDRESS: u32 = 0x44;
/// PMEN_REG.
pub const PROTECTED_MEMORY: u32 = 0x64;
/// IQH_REG.
pub const QUEUE_HEAD: u32 = 0x80;
/// IQT_REG.
pub const QUEUE_TAIL: u32 = 0x88;
/// IQA_REG.
pub const QUEUE_ADDRESS: u32 = 0x90;
/// IRTA_REG.
pub const INTERRUPT_TABLE: u32 = 0xB8;

/// Bytes of registers that every unit has.
pub const BYTES: u64 = 4096;

/// RTADDR_REG.TTM: not zero in a mode other than legacy.
pub const ROOT_TABLE_MODE: u64 = 3 << 10;
/// IRTA_REG.EIME.
pub const EXTENDED_INTERRUPT_MODE: u64 = 1 << 11;
/// FECTL_REG.IM.
pub const FAULT_MASK: u32 = 1 << 31;
/// PMEN_REG.EPM.
pub const PROTECT: u32 = 1 << 31;
/// PMEN_REG.PRS.
pub const PROTECTED: u32 = 1;

bitflags! {
    /// GCMD_REG and GSTS_REG, whose bits have the same places.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Command: u32 {
        /// TE, TES: DMA is translated.
        const TRANSLATE = 1 << 31;
        /// SRTP, RTPS: take the root table.
        const ROOT_TABLE = 1 << 30;
        /// WBF, WBFS: flush the write buffer.
        const WRITE_BUFFER = 1 << 27;
        /// QIE, QIES: queued invalidation is on.
        const QUEUE = 1 << 26;
        /// IRE, IRES: interrupts are remapped.
        const REMAP = 1 << 25;
        /// SIRTP, IRTPS: take the interrupt table.
        const INTERRUPT_TABLE = 1 << 24;
        /// CFI, CFIS: interrupts in compatibility format pass.
        const COMPATIBILITY = 1 << 23;
    }
}

impl Command {
    /// The bits that hold a state. The others are commands, which software must not repeat.
    pub const STATE: Self = Self::TRANSLATE
        .union(Self::QUEUE)
        .union(Self::REMAP)
        .union(Self::COMPATIBILITY);
}

bitflags! {
    /// FSTS_REG.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FaultStatus: u32 {
        /// PFO: a fault was lost.
        const OVERFLOW = 1 << 0;
        /// PPF: a fault record waits.
        const PENDING = 1 << 1;
        /// IQE: the unit can't fetch or decode a descriptor.
        const QUEUE_ERROR = 1 << 4;
        /// ICE: a device completed an invalidation that was not asked for.
        const COMPLETION_ERROR = 1 << 5;
        /// ITE: a device did not complete an invalidation.
        const TIMEOUT_ERROR = 1 << 6;
    }
}

impl FaultStatus {
    /// The errors of the invalidation queue.
    pub const QUEUE_ERRORS: Self = Self::QUEUE_ERROR
        .union(Self::COMPLETION_ERROR)
        .union(Self::TIMEOUT_ERROR);
}

/// CAP_REG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability(pub u64);

impl Capability {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    const fn field(self, low: u32, bits: u32) -> u64 {
        self.0 >> low & ((1 << bits) - 1)
    }

    /// ND: returns the number of domain ids.
    #[must_use]
    pub const fn domains(self) -> u32 {
        1 << (4 + 2 * self.field(0, 3))
    }

    /// RWBF: stores to tables are seen only after a flush of the write buffer.
    #[must_use]
    pub const fn needs_write_buffer_flush(self) -> bool {
        self.bit(4)
    }

    /// PLMR or PHMR: the unit has protected memory regions.
    #[must_use]
    pub const fn has_protected_regions(self) -> bool {
        self.field(5, 2) != 0
    }

    /// CM: the unit caches entries that are not present.
    #[must_use]
    pub const fn caches_absent(self) -> bool {
        self.bit(7)
    }

    /// SAGAW: returns true if the unit walks tables of so many levels, 3 to 5.
    #[must_use]
    pub const fn walks(self, levels: u32) -> bool {
        matches!(levels, 3..=5) && self.field(8, 5) >> (levels - 2) & 1 != 0
    }

    /// MGAW: returns the number of bits of the device addresses that the unit translates.
    #[must_use]
    pub const fn address_bits(self) -> u32 {
        self.field(16, 6) as u32 + 1
    }

    /// SLLPS: returns true if an entry at this level, 2 or 3, can be a leaf.
    #[must_use]
    pub const fn has_leaf(self, level: u32) -> bool {
        match level {
            1 => true,
            2 | 3 => self.bit(32 + level),
            _ => false,
        }
    }

    /// FRO: returns the offset of the first fault record.
    #[must_use]
    pub const fn fault_records_at(self) -> u32 {
        self.field(24, 10) as u32 * 16
    }

    /// NFR: returns the number of fault records.
    #[must_use]
    pub const fn fault_records(self) -> u32 {
        self.field(40, 8) as u32 + 1
    }

    /// PSI and MAMV: returns the highest number of pages, as a power of two, that one descriptor drops; `None` if it
    /// can't drop single pages.
    #[must_use]
    pub const fn page_selective(self) -> Option<u32> {
        if self.bit(39) {
            Some(self.field(48, 6) as u32)
        } else {
            None
        }
    }

    /// DWD: an invalidation can wait for writes.
    #[must_use]
    pub const fn drains_writes(self) -> bool {
        self.bit(54)
    }

    /// DRD: an invalidation can wait for reads.
    #[must_use]
    pub const fn drains_reads(self) -> bool {
        self.bit(55)
    }

    /// PI: interrupts can be posted.
    #[must_use]
    pub const fn posts(self) -> bool {
        self.bit(59)
    }
}

/// ECAP_REG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extended(pub u64);

impl Extended {
    /// C: the unit snoops caches when it reads tables.
    #[must_use]
    pub const fn is_coherent(self) -> bool {
        self.0 & 1 != 0
    }

    /// QI: the unit has queued invalidation.
    #[must_use]
    pub const fn has_queue(self) -> bool {
        self.0 >> 1 & 1 != 0
    }

    /// IR: the unit remaps interrupts.
    #[must_use]
    pub const fn remaps_interrupts(self) -> bool {
        self.0 >> 3 & 1 != 0
    }

    /// EIM: destinations of interrupts have 32 bits.
    #[must_use]
    pub const fn has_extended_mode(self) -> bool {
        self.0 >> 4 & 1 != 0
    }

    /// IRO: returns the offset of the IOTLB registers.
    #[must_use]
    pub const fn iotlb_at(self) -> u32 {
        (self.0 >> 8 & 0x3FF) as u32 * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_s_capabilities_are_read() {
        // QEMU 7.2 with intremap=on,caching-mode=on,x-buggy-eim=on,aw-bits=48.
        let capability = Capability(0x00D2_008C_222F_0686);
        assert_eq!(capability.domains(), 1 << 16);
        assert!(capability.walks(3) && capability.walks(4) && !capability.walks(5));
        assert_eq!(capability.address_bits(), 48);
        assert!(capability.has_leaf(2) && capability.has_leaf(3) && !capability.has_leaf(4));
        assert_eq!(capability.fault_records(), 1);
        assert_eq!(capability.fault_records_at(), 0x220);
        assert_eq!(capability.page_selective(), Some(18));
        assert!(capability.caches_absent() && !capability.needs_write_buffer_flush());
        assert!(capability.drains_reads() && capability.drains_writes());
        assert!(!capability.posts());
        let extended = Extended(0xF0_0F5A);
        assert!(!extended.is_coherent() && extended.has_queue());
        assert!(extended.remaps_interrupts() && extended.has_extended_mode());
        assert_eq!(extended.iotlb_at(), 0xF0);
    }
}

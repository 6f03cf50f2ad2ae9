//! Configuration of a host machine: processors, packages, memory, KeyIDs, and the registers derived from them.

use std::collections::BTreeMap;
use std::vec::Vec;

use crate::{Release, sapphire_rapids};

/// The platform of a test or a simulation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The release of Intel's module that the emulated one behaves as.
    pub release: Release,
    /// The package of each logical processor; its length is the number of logical processors.
    pub lp_to_package: Vec<u32>,
    /// Convertible memory regions: base and size in bytes, sorted.
    pub cmrs: Vec<(u64, u64)>,
    /// Bits of a physical address, KeyID bits included.
    pub max_pa: u32,
    /// KeyID bits at the top of the physical address.
    pub keyid_bits: u32,
    /// Shared (MKTME) KeyIDs; private HKIDs start at this number plus one.
    pub num_mktme_keyids: u32,
    /// Private (TDX) HKIDs.
    pub num_tdx_keyids: u32,
    /// Base and size in bytes of the SEAM range.
    pub seamrr: (u64, u64),
    /// Cache sub-blocks per package, the unit of TDH.PHYMEM.CACHE.WB.
    pub wbinvd_sub_blocks: u32,
    /// Family, model and stepping: CPUID leaf 1, EAX.
    pub cpuid_fms: u32,
    /// The seed of the generator behind RDRAND and RDSEED.
    pub rng_seed: u64,
    /// True if TDs' time-stamp counters are scaled. All TDX servers scale them; QEMU's TCG does not.
    pub scales_tsc: bool,
    /// CPUID leaf 0x15, if it differs from the simulated processor's: denominator, numerator, and the crystal's Hz.
    pub tsc_leaf: Option<[u32; 3]>,
    /// True if the machine records the pages that the module told it to guard
    /// ([`HostMachine::guarded`](super::HostMachine::guarded)). It does not need the record to guard them.
    pub books_guards: bool,
    /// CPUID values that differ from the simulated processor's: (leaf, sub-leaf) to EAX, EBX, ECX, EDX.
    pub cpuids: BTreeMap<(u32, u32), [u32; 4]>,
    /// MSR values that differ from the simulated processor's.
    pub msrs: BTreeMap<u32, u64>,
    /// MSR values that differ on one logical processor: (logical processor, address) to value.
    pub lp_msrs: BTreeMap<(u32, u32), u64>,
}

impl Default for Config {
    /// Returns a machine with four logical processors in two packages, 2 GiB of convertible memory at 4 GiB, private
    /// HKIDs 32 to 63.
    fn default() -> Self {
        Self {
            release: Release::default(),
            lp_to_package: [0, 0, 1, 1].into(),
            cmrs: [(4 << 30, 2 << 30)].into(),
            max_pa: 52,
            keyid_bits: 6,
            num_mktme_keyids: 31,
            num_tdx_keyids: 32,
            seamrr: (0x20_0000_0000, 128 << 20),
            wbinvd_sub_blocks: 4,
            cpuid_fms: 0x806f8,
            rng_seed: 0x1234,
            scales_tsc: true,
            tsc_leaf: None,
            books_guards: false,
            cpuids: BTreeMap::new(),
            msrs: BTreeMap::new(),
            lp_msrs: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Returns the x2APIC id of a logical processor: package in bits 31:7, index in the package below.
    pub fn x2apic_id(&self, lp: u32) -> u32 {
        let Some(package) = self.lp_to_package.get(lp as usize) else {
            return lp;
        };
        let index = self.lp_to_package[..lp as usize]
            .iter()
            .filter(|other| *other == package)
            .count();
        package << 7 | index as u32
    }

    /// Returns the key that authenticates TDREPORTs. It is the same for every machine with the same seed.
    pub(super) fn report_key(&self) -> [u8; 32] {
        let mut key = *b"report key of a simulated machin";
        key[..8].copy_from_slice(&self.rng_seed.to_le_bytes());
        key
    }

    pub(super) fn cpuid(&self, lp: u32, leaf: u32, sub_leaf: u32) -> [u32; 4] {
        if let Some(registers) = self.cpuids.get(&(leaf, sub_leaf)) {
            return *registers;
        }
        let mut registers = sapphire_rapids::cpuid(leaf, sub_leaf);
        match leaf {
            1 => {
                registers[0] = self.cpuid_fms;
                registers[1] = registers[1] & 0x00ff_ffff | self.x2apic_id(lp) << 24;
            }
            0xb | 0x1f => registers[3] = self.x2apic_id(lp),
            0x15 => {
                if let Some(clock) = self.tsc_leaf {
                    registers[..3].copy_from_slice(&clock);
                }
            }
            0x8000_0008 => registers[0] = registers[0] & !0xff | self.max_pa & 0xff,
            _ => (),
        }
        registers
    }

    pub(super) fn rdmsr(&self, lp: u32, msr: u32) -> u64 {
        if let Some(value) = self.lp_msrs.get(&(lp, msr)).or_else(|| self.msrs.get(&msr)) {
            return *value;
        }
        let keyid_bits = u64::from(self.keyid_bits);
        match msr {
            // IA32_MKTME_KEYID_PARTITIONING.
            0x87 => u64::from(self.num_tdx_keyids) << 32 | u64::from(self.num_mktme_keyids),
            // IA32_WBINVDP and IA32_WBNOINVDP: the number of sub-blocks.
            0x98 | 0x99 => u64::from(self.wbinvd_sub_blocks),
            // IA32_TME_CAPABILITY: AES-XTS-128, with integrity, AES-XTS-256; bypass; KeyID bits and number of keys.
            0x981 => ((1 << keyid_bits) - 1) << 36 | keyid_bits << 32 | 0x8000_0007,
            // IA32_TME_ACTIVATE: locked, enabled, KeyID bits, TDX KeyID bits, both algorithms.
            0x982 => 3 << 48 | keyid_bits.saturating_sub(1) << 36 | keyid_bits << 32 | 3,
            // IA32_SEAMRR_PHYS_BASE: configured. IA32_SEAMRR_PHYS_MASK: locked and enabled.
            0x1400 => self.seamrr.0 | 1 << 3,
            0x1401 => ((1 << 52) - self.seamrr.1) | 0xc00,
            _ => sapphire_rapids::msr(msr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_platform_is_the_recorded_one() {
        let config = Config::default();
        assert_eq!(config.rdmsr(0, 0x87), 0x20_0000_001f);
        assert_eq!(config.rdmsr(0, 0x981), 0x3f6_8000_0007);
        assert_eq!(config.rdmsr(0, 0x982), 0x3_0056_0000_0003);
        assert_eq!(config.rdmsr(0, 0x1400), 0x20_0000_0008);
        assert_eq!(config.rdmsr(0, 0x1401), 0xf_ffff_f800_0c00);
        assert_eq!(config.cpuid(0, 0x8000_0008, 0)[0], 0x3934);
        assert_eq!(config.cpuid(0, 0x8000_0001, 3)[3], 0x2c10_0800);
    }

    #[test]
    fn x2apic_ids_count_within_the_package() {
        let config = Config {
            lp_to_package: [0, 1, 0, 1].into(),
            ..Config::default()
        };
        assert_eq!(
            [0, 1, 2, 3].map(|lp| config.x2apic_id(lp)),
            [0, 128, 1, 129]
        );
        assert_eq!(config.cpuid(3, 0x1f, 0)[3], 129);
    }

    #[test]
    fn the_most_particular_msr_value_wins() {
        let config = Config {
            msrs: [(0xfe, 1)].into(),
            lp_msrs: [((2, 0xfe), 2)].into(),
            ..Config::default()
        };
        assert_eq!((config.rdmsr(0, 0xfe), config.rdmsr(2, 0xfe)), (1, 2));
    }
}

//! The CPU that TDs run on, sampled once.

use super::fms::Fms;
use super::{EAX, EBX, ECX, EDX, NUM_ROWS, Registers, Table};

/// XFAM bits that XCR0 controls.
const USER_COMPONENTS: u64 = 0x6_02FF;
/// XFAM bits that IA32_XSS controls.
const SUPERVISOR_COMPONENTS: u64 = 0x1_FD00;
/// XFAM bits that the module supports.
const KNOWN_COMPONENTS: u64 = 0x6_DBE7;

/// Sub-leafs of CPUID(4) that the module samples.
pub const NUM_CACHES: usize = 4;
/// Sub-leafs of CPUID(1FH) that a TD has.
pub const NUM_LEVELS: usize = 6;

/// A component of extended state, in the compacted XSAVE format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Component {
    /// Size in bytes.
    pub size: u32,
    /// Offset in the standard format, for a component that XCR0 controls.
    pub offset: u32,
    /// True if it starts at a multiple of 64 bytes in the compacted format.
    pub aligned: bool,
}

/// Properties of the CPU that TDs run on.
#[derive(Clone, Debug)]
pub struct Native {
    /// The CPUID tables of the module's release.
    pub table: &'static Table,
    /// CPUID by row of the table, with fixed bits as a TD reads them.
    pub values: [Registers; NUM_ROWS],
    /// CPUID(4) of the caches, as the CPU reports it.
    pub caches: [Registers; NUM_CACHES],
    /// CPUID(1FH), as the CPU reports it.
    pub topology: [Registers; NUM_LEVELS],
    /// Family, model and lowest stepping of all packages, in the format of CPUID(1).EAX. Configurations are checked
    /// against it.
    pub fms: u32,
    /// The value that a TD on these packages reads: the same, or the model of the CPU that TDs can execute on.
    pub told_fms: u32,
    /// The highest extended leaf.
    pub last_extended_leaf: u32,
    /// Bits of a physical address.
    pub max_pa: u32,
    /// XFAM bits available in XCR0.
    pub xcr0: u64,
    /// XFAM bits available in IA32_XSS.
    pub xss: u64,
    /// Components that can fault through XFD.
    pub xfd: u64,
    /// Extended-state components by XFAM bit.
    pub components: [Component; 19],
    /// TSC frequency in Hz.
    pub tsc_hz: u64,
    /// MSRs.
    pub msrs: Msrs,
}

/// MSRs that describe the CPU. The VMX ones have the format of capability MSRs (low half: bits that must be 1; high
/// half: bits that may be 1).
#[derive(Clone, Copy, Debug, Default)]
pub struct Msrs {
    pub tsc_adjust: u64,
    pub misc_enable: u64,
    pub arch_capabilities: u64,
    pub perf_capabilities: u64,
    pub cr0_fixed0: u64,
    pub cr0_fixed1: u64,
    pub cr4_fixed0: u64,
    pub cr4_fixed1: u64,
    pub proc_based2: u64,
    pub ept_vpid_cap: u64,
    pub pin_based: u64,
    pub proc_based: u64,
    pub exit: u64,
    pub entry: u64,
}

impl Msrs {
    fn sample(rdmsr: impl Fn(u32) -> u64) -> Self {
        Self {
            tsc_adjust: rdmsr(0x3B),
            misc_enable: rdmsr(0x1A0),
            arch_capabilities: rdmsr(0x10A),
            perf_capabilities: rdmsr(0x345),
            cr0_fixed0: rdmsr(0x486),
            cr0_fixed1: rdmsr(0x487),
            cr4_fixed0: rdmsr(0x488),
            cr4_fixed1: rdmsr(0x489),
            proc_based2: rdmsr(0x48B),
            ept_vpid_cap: rdmsr(0x48C),
            pin_based: rdmsr(0x48D),
            proc_based: rdmsr(0x48E),
            exit: rdmsr(0x48F),
            entry: rdmsr(0x490),
        }
    }

    /// Returns whether the CPU supports five-level EPT.
    pub const fn has_five_level_ept(&self) -> bool {
        self.ept_vpid_cap >> 7 & 1 != 0
    }

    /// Returns whether a control may have this value in the bits of `mask`, according to its capability MSR.
    pub const fn allows(capability: u64, value: u64, mask: u64) -> bool {
        let (required, allowed) = (capability & 0xFFFF_FFFF, capability >> 32);
        mask & (!value & required | value & !allowed) == 0
    }
}

impl Native {
    /// Samples the CPU through `cpuid`, which takes leaf and sub-leaf, and `rdmsr`. `fms` is that of the packages. It
    /// replaces CPUID(1).EAX, unless that is another model.
    pub fn sample(
        cpuid: impl Fn(u32, u32) -> Registers,
        rdmsr: impl Fn(u32) -> u64,
        fms: u32,
        table: &'static Table,
    ) -> Self {
        let raw = |leaf, sub_leaf| cpuid(leaf, sub_leaf);
        let here = raw(1, 0)[EAX];
        let told_fms = if Fms(here).same_model(Fms(fms)) {
            fms
        } else {
            here
        };
        let mut values = [[0; 4]; NUM_ROWS];
        for (cell, row) in values.iter_mut().zip(table.rows) {
            let mut value = raw(row.leaf, row.sub_leaf.unwrap_or(0));
            if row.leaf == 1 {
                value[EAX] = told_fms;
            }
            *cell = core::array::from_fn(|i| value[i] & !row.fixed0[i] | row.fixed1[i]);
        }
        let state = raw(0xD, 1);
        let mut components = [Component::default(); 19];
        let mut xfd = 0;
        for (bit, component) in components.iter_mut().enumerate().skip(2) {
            let [size, offset, flags, _] = raw(0xD, bit as u32);
            *component = Component {
                size,
                offset,
                aligned: flags & 2 != 0,
            };
            if state[EAX] & 1 << 4 != 0 && flags & 4 != 0 {
                xfd |= 1 << bit;
            }
        }
        let tsc = raw(0x15, 0);
        Self {
            table,
            values,
            caches: core::array::from_fn(|cache| raw(4, cache as u32)),
            topology: core::array::from_fn(|level| raw(0x1F, level as u32)),
            fms,
            told_fms,
            last_extended_leaf: raw(0x8000_0000, 0)[EAX],
            max_pa: raw(0x8000_0008, 0)[EAX] & 0xFF,
            xcr0: u64::from(raw(0xD, 0)[EAX]) & USER_COMPONENTS,
            xss: u64::from(state[ECX]) & SUPERVISOR_COMPONENTS,
            xfd,
            components,
            tsc_hz: u64::from(tsc[ECX]) * u64::from(tsc[EBX]) / u64::from(tsc[EAX]).max(1),
            msrs: Msrs::sample(rdmsr),
        }
    }

    /// Returns whether the CPU has DDPD_U in IA32_SPEC_CTRL.
    pub fn has_ddpd(&self) -> bool {
        self.table
            .find(7, 2)
            .is_some_and(|row| self.values[row][EDX] >> 3 & 1 != 0)
    }

    /// Returns the secondary control for user wait and pause, if the CPU has WAITPKG.
    pub fn user_wait_pause(&self) -> u64 {
        const USER_WAIT_PAUSE: u64 = 1 << 26;
        let waitpkg = self
            .table
            .find(7, 0)
            .is_some_and(|row| self.values[row][ECX] >> 5 & 1 != 0);
        if waitpkg { USER_WAIT_PAUSE } else { 0 }
    }

    /// Returns the XFAM bits that a TD may have (XFAM_FIXED0).
    pub const fn xfam_allowed(&self) -> u64 {
        KNOWN_COMPONENTS & (self.xcr0 | self.xss)
    }

    /// Returns whether a TD may have this XFAM: only allowed bits, all mandatory bits, and no half of a pair.
    pub fn accepts_xfam(&self, xfam: u64) -> bool {
        let has = |bit: u32| xfam >> bit & 1 != 0;
        xfam & !self.xfam_allowed() == 0
            && xfam & Self::XFAM_REQUIRED == Self::XFAM_REQUIRED
            && (!has(5) || has(2))
            && has(5) == has(6)
            && has(5) == has(7)
            && has(11) == has(12)
            && has(17) == has(18)
    }

    /// XFAM bits that every TD has (XFAM_FIXED1): x87 and SSE.
    pub const XFAM_REQUIRED: u64 = 3;

    /// Returns the offset of each component of `xfam` in the compacted XSAVE format, and the total size.
    pub fn xbuff(&self, xfam: u64) -> ([u32; 19], u32) {
        let mut offsets = [0; 19];
        let mut end = 576;
        for (bit, component) in self.components.iter().enumerate().skip(2) {
            if xfam >> bit & 1 == 0 {
                continue;
            }
            if component.aligned {
                end = u32::next_multiple_of(end, 64);
            }
            offsets[bit] = end;
            end += component.size;
        }
        (offsets, end)
    }

    /// Returns the bytes of a standard-format XSAVE area for the components of `xcr0`.
    pub fn standard_size(&self, xcr0: u64) -> u32 {
        (self.components.iter().enumerate())
            .filter(|(bit, _)| (xcr0 & USER_COMPONENTS & !3) >> bit & 1 != 0)
            .map(|(_, component)| component.offset + component.size)
            .fold(576, u32::max)
    }
}

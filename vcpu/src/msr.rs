//! The MSRs that a guest reaches through the host: what the module passes on by #VE.
//!
//! Source: TDX Module 1.5.01, MSR virtualization (an MSR in none of its rows raises #VE); Linux arch/x86/kvm/vmx/tdx.c,
//! tdx_has_emulated_msr, for those that guests expect to be there.

use crate::apic::{Apic, Invalid, Request};
use crate::clock::Clock;

/// Addresses.
mod address {
    pub const APIC_BASE: u32 = 0x1B;
    pub const FEATURE_CONTROL: u32 = 0x3A;
    pub const UCODE_REV: u32 = 0x8B;
    pub const PLATFORM_INFO: u32 = 0xCE;
    pub const MTRR_CAP: u32 = 0xFE;
    pub const MISC_FEATURES_ENABLES: u32 = 0x140;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17A;
    pub const MISC_ENABLE: u32 = 0x1A0;
    pub const POWER_CTL: u32 = 0x1FC;
    pub const MTRR_VARIABLE: u32 = 0x200;
    pub const MTRR_VARIABLE_LAST: u32 = MTRR_VARIABLE + 2 * super::VARIABLE as u32 - 1;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const MTRR_FIX16K: u32 = 0x258;
    pub const MTRR_FIX16K_LAST: u32 = 0x259;
    pub const MTRR_FIX4K: u32 = 0x268;
    pub const MTRR_FIX4K_LAST: u32 = 0x26F;
    pub const MTRR_DEF_TYPE: u32 = 0x2FF;
}

/// Variable ranges.
const VARIABLE: usize = 8;
/// MTRRCAP: 8 variable ranges, the fixed ones, write-combining.
const MTRR_CAP: u64 = 1 << 10 | 1 << 8 | VARIABLE as u64;
/// MTRR_DEF_TYPE after a reset: the MTRRs are off. An operating system that finds them on wants to program them, with CR0.CD
/// set, which a TD can't do.
const MTRR_DEF_TYPE: u64 = 0;
const MTRR_DEF_TYPE_BITS: u64 = 3 << 10 | 0xFF;
/// APIC_BASE: the page, enabled, x2APIC mode; the bootstrap processor has one bit more.
const APIC_BASE: u64 = 0xFEE0_0000 | 1 << 11 | 1 << 10;
const BOOTSTRAP: u64 = 1 << 8;
/// FEATURE_CONTROL: locked, and nothing enabled.
const LOCKED: u64 = 1;

/// The registers of one vCPU.
#[derive(Clone, Debug)]
pub struct Msrs {
    /// Its local APIC.
    pub apic: Apic,
    bootstrap: bool,
    variable: [u64; 2 * VARIABLE],
    fixed: [u64; 11],
    default_type: u64,
}

impl Msrs {
    /// After a reset, of the vCPU with this x2APIC id.
    #[must_use]
    pub const fn new(apic_id: u32, bootstrap: bool) -> Self {
        Self {
            apic: Apic::new(apic_id),
            bootstrap,
            variable: [0; 2 * VARIABLE],
            fixed: [0; 11],
            default_type: MTRR_DEF_TYPE,
        }
    }

    /// RDMSR when the guest's counter is `now`.
    ///
    /// # Errors
    /// [`Invalid`] for one that the guest does not have.
    pub fn read(&self, msr: u32, now: u64, clock: Clock) -> Result<u64, Invalid> {
        if Apic::has(msr) {
            return self.apic.read(msr, now, clock);
        }
        Ok(match msr {
            address::APIC_BASE => APIC_BASE | if self.bootstrap { BOOTSTRAP } else { 0 },
            address::FEATURE_CONTROL => LOCKED,
            address::MTRR_CAP => MTRR_CAP,
            address::MTRR_DEF_TYPE => self.default_type,
            address::UCODE_REV
            | address::PLATFORM_INFO
            | address::MISC_FEATURES_ENABLES
            | address::MCG_CAP
            | address::MCG_STATUS
            | address::POWER_CTL => 0,
            address::MTRR_VARIABLE..=address::MTRR_VARIABLE_LAST => {
                self.variable[(msr - address::MTRR_VARIABLE) as usize]
            }
            _ => self.fixed[fixed(msr).ok_or(Invalid)?],
        })
    }

    /// WRMSR when the guest's counter is `now`.
    ///
    /// # Errors
    /// [`Invalid`] for one that the guest does not have or may not set like that; nothing has changed.
    pub fn write(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
        clock: Clock,
    ) -> Result<Request, Invalid> {
        if Apic::has(msr) {
            return self.apic.write(msr, value, now, clock);
        }
        match msr {
            // A TD's memory is write-back whatever these say; firmware wants to find what it wrote.
            address::MTRR_DEF_TYPE if value & !MTRR_DEF_TYPE_BITS == 0 => self.default_type = value,
            address::MTRR_VARIABLE..=address::MTRR_VARIABLE_LAST => {
                self.variable[(msr - address::MTRR_VARIABLE) as usize] = value;
            }
            // The module answers reads, and only writes come here: what they would change is not there to change.
            address::MISC_ENABLE => {}
            address::UCODE_REV
            | address::MISC_FEATURES_ENABLES
            | address::MCG_STATUS
            | address::POWER_CTL
                if value == 0 => {}
            _ => self.fixed[fixed(msr).ok_or(Invalid)?] = value,
        }
        Ok(Request::None)
    }
}

/// The number of a fixed-range MTRR.
const fn fixed(msr: u32) -> Option<usize> {
    Some(match msr {
        address::MTRR_FIX64K => 0,
        address::MTRR_FIX16K..=address::MTRR_FIX16K_LAST => {
            1 + (msr - address::MTRR_FIX16K) as usize
        }
        address::MTRR_FIX4K..=address::MTRR_FIX4K_LAST => 3 + (msr - address::MTRR_FIX4K) as usize,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock::new(1 << 48, 0, 40);

    #[test]
    fn the_bootstrap_processor_is_one_and_the_apic_is_in_x2apic_mode() {
        let base = |bootstrap| Msrs::new(0, bootstrap).read(0x1B, 0, CLOCK);
        assert_eq!(base(true), Ok(0xFEE0_0D00));
        assert_eq!(base(false), Ok(0xFEE0_0C00));
        assert_eq!(
            Msrs::new(0, true).write(0x1B, 0xFEE0_0900, 0, CLOCK),
            Err(Invalid)
        );
    }

    #[test]
    fn mtrrs_are_found_as_they_were_left() {
        let mut msrs = Msrs::new(0, true);
        for (value, msr) in (1_u64..).zip(
            (0x200..=0x20F)
                .chain([0x250, 0x258, 0x259])
                .chain(0x268..=0x26F),
        ) {
            assert_eq!(msrs.write(msr, value, 0, CLOCK), Ok(Request::None));
            assert_eq!(msrs.read(msr, 0, CLOCK), Ok(value));
        }
        assert_eq!(msrs.read(0x200, 0, CLOCK), Ok(1), "none is another's");
        assert_eq!(msrs.write(0x2FF, 1 << 12, 0, CLOCK), Err(Invalid));
        assert_eq!(msrs.read(0x2FF, 0, CLOCK), Ok(0), "off, as after a reset");
        assert_eq!(msrs.write(0x2FF, 0xC06, 0, CLOCK), Ok(Request::None));
        assert_eq!(msrs.read(0x2FF, 0, CLOCK), Ok(0xC06));
    }

    proptest::proptest! {
        #[test]
        fn an_msr_that_can_be_written_is_one_that_exists(msr in 0_u32..0x1000, value: u64) {
            let mut msrs = Msrs::new(5, false);
            let written = msrs.write(msr, value, 1000, CLOCK);
            // What the module answers itself; and the two that a guest can only write.
            if written.is_ok() && msr != 0x1A0 {
                assert!(msrs.read(msr, 1000, CLOCK).is_ok(), "{msr:#x}");
            }
        }
    }
}

//! A TD's time-stamp counter, which the module derives from the CPU's.

/// The guest TSC as a function of the host TSC: `host * multiplier / 2^48 + offset`.
///
/// Source: TDX Module ABI 1.5, TDCS fields TSC_MULTIPLIER, TSC_OFFSET, TSC_FREQUENCY; Intel SDM volume 3C, section 26.3
/// (TSC scaling).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    multiplier: u64,
    offset: u64,
    hz: u64,
}

/// Number of fraction bits of the multiplier.
const FRACTION: u32 = 48;
/// Unit of TSC_FREQUENCY in Hz, and frequency of a TD's APIC timer. CPUID leaf 0x15 calls it the crystal clock.
pub const CRYSTAL_HZ: u64 = 25_000_000;

impl Clock {
    /// Creates the clock from the TDCS fields of those names. `frequency` is in units of 25 MHz.
    #[must_use]
    pub const fn new(multiplier: u64, offset: u64, frequency: u64) -> Self {
        Self {
            // The field may be zero if the module does not scale the TSC.
            multiplier: if multiplier == 0 {
                1 << FRACTION
            } else {
                multiplier
            },
            offset,
            hz: frequency * CRYSTAL_HZ,
        }
    }

    /// Returns the guest TSC value at host TSC value `tsc`.
    #[must_use]
    pub const fn guest(self, tsc: u64) -> u64 {
        let scaled = (tsc as u128 * self.multiplier as u128) >> FRACTION;
        (scaled as u64).wrapping_add(self.offset)
    }

    /// Returns the host TSC value at guest TSC value `tsc`, or `u64::MAX` if it is never reached.
    #[must_use]
    pub fn host(self, tsc: u64) -> u64 {
        let scaled = tsc.wrapping_sub(self.offset);
        // The guest TSC starts at 0, so the offset is negative. An earlier value lies in the past.
        if scaled > u64::MAX / 2 {
            return if tsc > u64::MAX / 2 { u64::MAX } else { 0 };
        }
        let host = (u128::from(scaled) << FRACTION).div_ceil(u128::from(self.multiplier));
        u64::try_from(host).unwrap_or(u64::MAX)
    }

    /// Converts crystal ticks to guest TSC ticks.
    #[must_use]
    pub const fn ticks(self, crystal: u64) -> u64 {
        (crystal as u128 * self.hz as u128 / CRYSTAL_HZ as u128) as u64
    }

    /// Converts guest TSC ticks to crystal ticks.
    #[must_use]
    pub fn crystal(self, ticks: u64) -> u64 {
        (u128::from(ticks) * u128::from(CRYSTAL_HZ) / u128::from(self.hz.max(1))) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_started_late_counts_from_zero() {
        let start = 5_000_000_000_u64;
        let clock = Clock::new(1 << 48, 0_u64.wrapping_sub(start), 40);
        assert_eq!(clock.guest(start), 0);
        assert_eq!(clock.guest(start + 7), 7);
        assert_eq!(clock.host(7), start + 7);
        assert_eq!(clock.ticks(25), 1000);
        assert_eq!(clock.crystal(1000), 25);
    }

    #[test]
    fn a_deadline_is_met_and_not_met_early() {
        for multiplier in [1 << 47, 3 << 47, (1 << 48) + 12_345] {
            let clock = Clock::new(multiplier, 0_u64.wrapping_sub(1_000_000), 40);
            for deadline in [10, 999, 123_456_789, 1 << 60] {
                let host = clock.host(deadline);
                assert!(clock.guest(host) >= deadline, "{multiplier:#x} {deadline}");
                assert!(
                    clock.guest(host - 2) < deadline,
                    "{multiplier:#x} {deadline}"
                );
            }
        }
        assert_eq!(Clock::new(0, 0, 40).host(u64::MAX), u64::MAX);
    }
}

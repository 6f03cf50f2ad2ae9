//! The clocks of CPUID 0x15: the time-stamp counter's frequency as a ratio to the crystal's frequency.

/// The frequency of the local APIC timer under QEMU, in Hz. OVMF relies on it, so it is the crystal's frequency here.
pub const CRYSTAL_HZ: u32 = 1_000_000_000;

/// The clocks as CPUID reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The frequency of the time-stamp counter in Hz.
    pub tsc_hz: u64,
    /// The frequency of the crystal, at which the local APIC timer counts, in Hz.
    pub crystal_hz: u32,
    /// Ticks of the time-stamp counter per `denominator` ticks of the crystal.
    pub numerator: u32,
    /// See `numerator`.
    pub denominator: u32,
}

impl Clock {
    /// Returns the real clocks, from the measured frequency of the time-stamp counter.
    #[must_use]
    pub fn of(measured_hz: u64) -> Self {
        let (numerator, denominator) = ratio(measured_hz, max_numerator(CRYSTAL_HZ));
        Self {
            tsc_hz: measured_hz,
            crystal_hz: CRYSTAL_HZ,
            numerator,
            denominator,
        }
    }

    /// Returns the clocks of a machine that reports `claimed_hz` for its time-stamp counter, while the counter runs at
    /// `measured_hz`. The ratio of the two clocks is fixed, so the crystal's frequency follows: a second of this
    /// machine is longer or shorter than a second of real time. Returns `None` if the crystal's frequency does not fit
    /// 32 bits then.
    #[must_use]
    pub fn claiming(claimed_hz: u64, measured_hz: u64) -> Option<Self> {
        let crystal = u128::from(CRYSTAL_HZ) * u128::from(claimed_hz) / u128::from(measured_hz);
        let about = u32::try_from(crystal).ok()?;
        let (numerator, denominator) = ratio(measured_hz, max_numerator(about));
        let (n, d) = (u128::from(numerator), u128::from(denominator));
        let crystal = (u128::from(claimed_hz) * d + n / 2).checked_div(n)?;
        Some(Self {
            tsc_hz: claimed_hz,
            crystal_hz: u32::try_from(crystal).ok()?,
            numerator,
            denominator,
        })
    }
}

/// Returns the largest usable numerator: Linux multiplies it by the crystal's frequency in kHz, in 32 bits.
fn max_numerator(crystal_hz: u32) -> u64 {
    u64::from(u32::MAX / (crystal_hz / 1000 + 1))
}

/// Returns the numerator and denominator whose ratio, times [`CRYSTAL_HZ`], is closest to `tsc_hz`: the last convergent
/// of its continued fraction whose numerator is small enough. A frequency without one, above 4 THz, becomes the largest
/// frequency that can be expressed.
fn ratio(tsc_hz: u64, max_numerator: u64) -> (u32, u32) {
    let (mut n, mut d) = (tsc_hz, u64::from(CRYSTAL_HZ));
    let (mut last, mut best) = ((0u64, 1u64), (1u64, 0u64));
    while d != 0 {
        let whole = n / d;
        let next = (
            whole.saturating_mul(best.0).saturating_add(last.0),
            whole.saturating_mul(best.1).saturating_add(last.1),
        );
        if next.0 > max_numerator {
            break;
        }
        (last, best) = (best, next);
        (n, d) = (d, n % d);
    }
    match best {
        (_, 0) => (max_numerator as u32, 1),
        (numerator, denominator) => (numerator as u32, denominator as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURED: [u64; 8] = [
        999_999_999,
        2_000_000_000,
        2_445_368_681,
        2_445_510_595,
        2_596_170_000,
        3_141_592_653,
        4_294_000_000,
        5_700_000_001,
    ];

    /// Returns the frequency that software computes from it.
    fn told(clock: Clock) -> u64 {
        u64::from(clock.crystal_hz) * u64::from(clock.numerator) / u64::from(clock.denominator)
    }

    #[test]
    fn the_ratio_is_exact_to_a_few_parts_in_a_million() {
        for tsc_hz in MEASURED {
            let clock = Clock::of(tsc_hz);
            assert_eq!(clock.crystal_hz, CRYSTAL_HZ);
            let told = told(clock);
            assert!(
                told.abs_diff(tsc_hz) <= tsc_hz / 500_000,
                "{tsc_hz}: {told}"
            );
        }
    }

    #[test]
    fn a_claimed_frequency_is_reported_with_the_measured_ratio() {
        for measured in MEASURED {
            for claimed in [1_000_000_007, 1_999_987_000, 2_596_170_000] {
                let clock = Clock::claiming(claimed, measured).unwrap();
                let told = told(clock);
                assert!(told.abs_diff(claimed) <= 10, "{measured}: {told}");
                // Ticks of the counter in a billion ticks of the timer.
                let ticks =
                    1_000_000_000 * u64::from(clock.numerator) / u64::from(clock.denominator);
                assert!(
                    ticks.abs_diff(measured) <= measured / 200_000,
                    "{measured} {claimed}: {ticks}"
                );
            }
        }
        assert_eq!(Clock::claiming(10_000_000_000, 1_000_000_000), None);
    }

    #[test]
    fn linux_can_multiply_the_clock_in_32_bits() {
        let claims = MEASURED.map(|hz| Clock::claiming(2_596_170_000, hz).unwrap());
        for clock in MEASURED.map(Clock::of).into_iter().chain(claims) {
            let khz = clock.crystal_hz / 1000;
            assert!(khz.checked_mul(clock.numerator).is_some(), "{clock:?}");
        }
    }
}

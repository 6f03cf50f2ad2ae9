//! The clocks of CPUID 0x15: the time-stamp counter's frequency as a ratio to the crystal's.

/// What the local APIC timer counts at under QEMU, in Hz. OVMF relies on it, so it is the crystal's frequency here.
pub const CRYSTAL_HZ: u32 = 1_000_000_000;

/// The largest numerator that may be used: Linux multiplies it with the crystal's frequency in kHz, in 32 bits.
const MAX_NUMERATOR: u64 = u32::MAX as u64 / (CRYSTAL_HZ / 1000) as u64;

/// Numerator and denominator whose ratio, times [`CRYSTAL_HZ`], is closest to `tsc_hz`: the last convergent of its
/// continued fraction whose numerator is small enough. A frequency that has none, above 4 THz, becomes the largest that
/// can be told.
#[must_use]
pub fn ratio(tsc_hz: u64) -> (u32, u32) {
    let (mut n, mut d) = (tsc_hz, u64::from(CRYSTAL_HZ));
    let (mut last, mut best) = ((0u64, 1u64), (1u64, 0u64));
    while d != 0 {
        let whole = n / d;
        let next = (
            whole.saturating_mul(best.0).saturating_add(last.0),
            whole.saturating_mul(best.1).saturating_add(last.1),
        );
        if next.0 > MAX_NUMERATOR {
            break;
        }
        (last, best) = (best, next);
        (n, d) = (d, n % d);
    }
    match best {
        (_, 0) => (MAX_NUMERATOR as u32, 1),
        (numerator, denominator) => (numerator as u32, denominator as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_exact_to_a_few_parts_in_a_million() {
        for tsc_hz in [
            999_999_999,
            2_000_000_000,
            2_445_368_681,
            2_445_510_595,
            3_141_592_653,
            4_294_000_000,
        ] {
            let (numerator, denominator) = ratio(tsc_hz);
            assert!(u64::from(numerator) <= MAX_NUMERATOR);
            let told = u64::from(CRYSTAL_HZ) * u64::from(numerator) / u64::from(denominator);
            assert!(
                told.abs_diff(tsc_hz) <= tsc_hz / 500_000,
                "{tsc_hz}: {told}"
            );
        }
    }

    #[test]
    fn linux_can_multiply_it_in_32_bits() {
        let (numerator, _) = ratio(2_445_368_681);
        assert!((CRYSTAL_HZ / 1000).checked_mul(numerator).is_some());
    }
}

//! The clock: the time-stamp counter, its frequency, and deadlines.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The counter's frequency in Hz; a round guess until [`set_hz`] knows better.
static HZ: AtomicU64 = AtomicU64::new(1_000_000_000);
/// The counter at the first line.
static START: AtomicU64 = AtomicU64::new(0);

/// The time-stamp counter.
#[must_use]
pub fn tsc() -> u64 {
    #[expect(unsafe_code, reason = "RDTSC is an intrinsic that is always there")]
    // SAFETY: every 64-bit CPU has RDTSC, and nothing here disables it.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
}

/// Makes `tsc` the moment from which microseconds are counted.
pub fn start_at(tsc: u64) {
    START.store(tsc, Relaxed);
}

/// Sets the counter's frequency in Hz.
pub fn set_hz(hz: u64) {
    HZ.store(hz.max(1), Relaxed);
}

/// The counter's frequency in Hz.
#[must_use]
pub fn hz() -> u64 {
    HZ.load(Relaxed)
}

/// Microseconds since the first line.
#[must_use]
pub fn us() -> u64 {
    to_us(tsc().saturating_sub(START.load(Relaxed)))
}

/// Counter ticks in microseconds.
#[must_use]
pub fn to_us(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(hz())) as u64
}

/// A moment after which nobody waits any longer.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(u64);

impl Deadline {
    /// `us` microseconds from now.
    #[must_use]
    pub fn after_us(us: u64) -> Self {
        let ticks = u128::from(us) * u128::from(hz()) / 1_000_000;
        Self(tsc().saturating_add(ticks as u64))
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        tsc() >= self.0
    }
}

/// Waits until `done` or for `us` microseconds; returns whether it is done.
pub fn wait_us(us: u64, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Deadline::after_us(us);
    loop {
        if done() {
            return true;
        }
        if deadline.passed() {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// The frequency that CPUID leaf 0x15 (`leaf15`) or, without a crystal, leaf 0x16 (`leaf16`) states, in Hz.
///
/// Source: Intel SDM volume 3B, section 18.7.3.
#[must_use]
pub fn hz_from_cpuid(leaf15: [u32; 4], leaf16: [u32; 4]) -> Option<u64> {
    let [denominator, numerator, crystal, _] = leaf15.map(u64::from);
    if denominator != 0 && numerator != 0 && crystal != 0 {
        return Some(crystal * numerator / denominator);
    }
    match u64::from(leaf16[0] & 0xFFFF) {
        0 => None,
        mhz => Some(mhz * 1_000_000),
    }
}

/// Frequency of the ACPI power-management timer in Hz (ACPI Specification 6.5, section 4.8.2.1).
pub const PM_TIMER_HZ: u64 = 3_579_545;

/// The counter's frequency from `ticks` of it during `pm_ticks` of the power-management timer.
#[must_use]
pub fn hz_from_pm_timer(ticks: u64, pm_ticks: u64) -> u64 {
    (u128::from(ticks) * u128::from(PM_TIMER_HZ) / u128::from(pm_ticks.max(1))) as u64
}

/// Whether the power-management timer may have come round during `ticks` of the counter. One of 24 bits does so in 4.6 seconds, and
/// no counter is slower than 500 MHz.
#[must_use]
pub fn pm_timer_may_wrap(ticks: u64) -> bool {
    ticks > 2_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_that_was_held_up_for_seconds_counts_nothing() {
        assert!(!pm_timer_may_wrap(5_000_000_000 / 100));
        assert!(!pm_timer_may_wrap(500_000_000 * 4));
        assert!(pm_timer_may_wrap(500_000_000 * 4 + 1));
    }

    #[test]
    fn the_crystal_and_its_ratio_come_first() {
        assert_eq!(
            hz_from_cpuid([2, 160, 25_000_000, 0], [1900, 0, 0, 0]),
            Some(2_000_000_000)
        );
        assert_eq!(
            hz_from_cpuid([2, 160, 0, 0], [1900, 0, 0, 0]),
            Some(1_900_000_000)
        );
        assert_eq!(hz_from_cpuid([0; 4], [0; 4]), None);
    }

    #[test]
    fn the_pm_timer_gives_the_ratio() {
        assert_eq!(hz_from_pm_timer(20_000_000, 35_795), 2_000_025_143);
    }

    #[test]
    fn waiting_ends_when_done_or_when_the_time_is_over() {
        assert!(wait_us(1_000_000, || true));
        let mut asked = 0;
        assert!(!wait_us(1, || {
            asked += 1;
            false
        }));
        assert!(asked > 0);
    }
}

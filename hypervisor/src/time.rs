//! The clock: the time-stamp counter, its frequency, and deadlines.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The counter's frequency in Hz; a rough guess until [`set_hz`] is called.
static HZ: AtomicU64 = AtomicU64::new(1_000_000_000);
/// The counter's value at the first line.
static START: AtomicU64 = AtomicU64::new(0);

/// Reads the time-stamp counter.
#[must_use]
pub fn tsc() -> u64 {
    #[expect(unsafe_code, reason = "RDTSC is an intrinsic that is always there")]
    // SAFETY: every 64-bit CPU has RDTSC, and nothing here disables it.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
}

/// Makes `tsc` the origin of [`us`].
pub fn start_at(tsc: u64) {
    START.store(tsc, Relaxed);
}

/// Returns the origin of [`us`].
#[must_use]
pub fn start() -> u64 {
    START.load(Relaxed)
}

/// Sets the counter's frequency in Hz.
pub fn set_hz(hz: u64) {
    HZ.store(hz.max(1), Relaxed);
}

/// Returns the counter's frequency in Hz.
#[must_use]
pub fn hz() -> u64 {
    HZ.load(Relaxed)
}

/// Returns the microseconds since the first line.
#[must_use]
pub fn us() -> u64 {
    us_at(tsc())
}

/// Returns the microseconds from the first line to the time-stamp counter's value `tsc`.
#[must_use]
pub fn us_at(tsc: u64) -> u64 {
    to_us(tsc.saturating_sub(START.load(Relaxed)))
}

/// Converts counter ticks to microseconds.
#[must_use]
pub fn to_us(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(hz())) as u64
}

/// The end of a bounded wait.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(u64);

impl Deadline {
    /// Returns the deadline `us` microseconds from now.
    #[must_use]
    pub fn after_us(us: u64) -> Self {
        let ticks = u128::from(us) * u128::from(hz()) / 1_000_000;
        Self(tsc().saturating_add(ticks as u64))
    }

    /// Returns true once the deadline has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        tsc() >= self.0
    }

    /// Returns the deadline as a value of the time-stamp counter.
    #[must_use]
    pub const fn tsc(self) -> u64 {
        self.0
    }
}

/// Waits until `done` returns true, for at most `us` microseconds. Returns the last result of `done`.
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

/// Returns the frequency in Hz that CPUID leaf 0x15 (`leaf15`) or, without a crystal, leaf 0x16 (`leaf16`) states.
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

/// Returns the counter's frequency, given `ticks` of it during `pm_ticks` of the power-management timer.
#[must_use]
pub fn hz_from_pm_timer(ticks: u64, pm_ticks: u64) -> u64 {
    (u128::from(ticks) * u128::from(PM_TIMER_HZ) / u128::from(pm_ticks.max(1))) as u64
}

/// Returns true if the power-management timer may have wrapped during `ticks` of the counter. A timer of 24 bits wraps
/// in 4.6 seconds, and no counter is slower than 500 MHz.
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

//! The machine's real-time clock. It is read at boot and again from time to time; times in between follow from the
//! time-stamp counter, whose frequency is not known exactly.
//!
//! Source: MC146818A data sheet; the registers of PC firmware.
#![expect(unsafe_code, reason = "the clock is behind two I/O ports")]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use x86_64::instructions::port::Port;

use crate::time;

/// Seconds since 1970-01-01 00:00 UTC at the hypervisor's first line.
static START: AtomicU64 = AtomicU64::new(0);

const STATUS_A: u8 = 0x0A;
const STATUS_B: u8 = 0x0B;
/// Status A: the numbers are being updated.
const UPDATING: u8 = 1 << 7;
/// Status B: numbers are binary.
const BINARY: u8 = 1 << 2;
/// Status B: hours run to 24.
const HOURS_24: u8 = 1 << 1;
/// Hours: the time is in the afternoon, if hours run to 12.
const AFTERNOON: u8 = 1 << 7;
/// Registers of seconds, minutes, hours, day, month, year.
const NUMBERS: [u8; 6] = [0, 2, 4, 7, 8, 9];
/// Maximum number of reads at boot. The clock updates its numbers once a second, in less than 2 ms, so this is ample.
const TRIES: u32 = 10_000;
/// Maximum number of reads while the hypervisor runs. A clock that is being updated is read at the next call.
const FEW_TRIES: u32 = 4;
/// Time in microseconds after which the clock is read again.
const AGAIN_US: u64 = 10 * 60 * 1_000_000;

/// The time at which the clock is read again, in microseconds since the first line.
static NEXT_US: AtomicU64 = AtomicU64::new(AGAIN_US);

/// Returns the seconds since 1970-01-01 00:00 UTC.
#[must_use]
pub fn unix_seconds() -> u64 {
    START.load(Relaxed) + time::us() / 1_000_000
}

/// Reads the clock. Returns the problem, if any.
pub fn init() -> Option<&'static str> {
    let Some(seconds) = read(&mut register, TRIES) else {
        return Some("the real-time clock has no valid time; TDs start in 1970");
    };
    START.store(seconds.saturating_sub(time::us() / 1_000_000), Relaxed);
    None
}

/// Reads the clock again if it is time. The CPU that runs the console calls this; nobody else reads the clock.
pub fn refresh() {
    let now_us = time::us();
    if now_us < NEXT_US.load(Relaxed) {
        return;
    }
    if let Some(start) = start_again(&mut register, START.load(Relaxed), now_us) {
        START.store(start, Relaxed);
        NEXT_US.store(now_us + AGAIN_US, Relaxed);
    }
}

/// Reads the clock `now_us` after the first line. Returns the time of the first line by the clock, or `None` if the
/// clock can't be read now. `start` is the time of the first line so far: the clock's seconds do not begin with the
/// hypervisor's, so a difference of one second is none.
fn start_again(register: &mut impl FnMut(u8) -> u8, start: u64, now_us: u64) -> Option<u64> {
    let found = read(register, FEW_TRIES)?.saturating_sub(now_us / 1_000_000);
    Some(if found.abs_diff(start) <= 1 {
        start
    } else {
        found
    })
}

fn register(number: u8) -> u8 {
    // SAFETY: the two ports are the real-time clock's on every PC, and reading its registers has no effect except for
    // status C, which is not read. The hypervisor reads it on one CPU, once.
    unsafe {
        Port::new(0x70).write(number);
        Port::new(0x71).read()
    }
}

/// Reads the time from these registers, in at most `tries` reads. Two reads in a row must agree, without an update in
/// between.
fn read(register: &mut impl FnMut(u8) -> u8, tries: u32) -> Option<u64> {
    let mut last = None;
    for _ in 0..tries {
        if register(STATUS_A) & UPDATING != 0 {
            continue;
        }
        let numbers = NUMBERS.map(&mut *register);
        if last == Some(numbers) {
            return seconds(numbers, register(STATUS_B));
        }
        last = Some(numbers);
    }
    None
}

fn seconds(numbers: [u8; 6], status_b: u8) -> Option<u64> {
    let number = |value: u8| match status_b & BINARY {
        0 => value / 16 * 10 + value % 16,
        _ => value,
    };
    let [second, minute, hour, day, month, year] = numbers;
    let hour = match status_b & HOURS_24 {
        0 => number(hour & !AFTERNOON) % 12 + if hour & AFTERNOON == 0 { 0 } else { 12 },
        _ => number(hour),
    };
    let [second, minute, day, month, year] = [second, minute, day, month, year].map(number);
    let sane = second < 60 && minute < 60 && hour < 24 && (1..=31).contains(&day);
    if !sane || !(1..=12).contains(&month) || year > 99 {
        return None;
    }
    let days = days_since_1970(2000 + u64::from(year), month.into(), day.into());
    Some(((days * 24 + u64::from(hour)) * 60 + u64::from(minute)) * 60 + u64::from(second))
}

/// Returns the days from 1970-01-01 to a date from 2000 on, in the Gregorian calendar.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let march_first_1970 = 1969 * 365 + 1969 / 4 - 1969 / 100 + 1969 / 400 + 306;
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - march_first_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(numbers: [u8; 6], status_b: u8) -> impl FnMut(u8) -> u8 {
        move |register| match register {
            STATUS_A => 0x26,
            STATUS_B => status_b,
            other => numbers[NUMBERS.iter().position(|n| *n == other).unwrap()],
        }
    }

    #[test]
    fn dates_are_counted_from_1970() {
        assert_eq!(days_since_1970(2000, 1, 1), 10_957);
        assert_eq!(days_since_1970(2000, 2, 29), 10_957 + 59);
        assert_eq!(days_since_1970(2000, 3, 1), 10_957 + 60);
        assert_eq!(days_since_1970(2026, 11, 26), 20_783);
    }

    #[test]
    fn both_formats_are_read() {
        let expected = 20_783 * 86_400 + (13 * 60 + 45) * 60 + 30;
        let bcd = [0x30, 0x45, 0x13, 0x26, 0x11, 0x26];
        assert_eq!(read(&mut clock(bcd, HOURS_24), TRIES), Some(expected));
        let binary = [30, 45, AFTERNOON | 1, 26, 11, 26];
        assert_eq!(read(&mut clock(binary, BINARY), TRIES), Some(expected));
        let midnight = [0, 0, 0x12, 0x26, 0x11, 0x26];
        assert_eq!(read(&mut clock(midnight, 0), TRIES), Some(20_783 * 86_400));
    }

    #[test]
    fn nonsense_and_a_clock_that_never_settles_give_no_time() {
        assert_eq!(read(&mut |_| 0xFF, TRIES), None);
        assert_eq!(read(&mut clock([0x99; 6], HOURS_24), TRIES), None);
        let mut count = 0;
        let mut restless = |register| {
            count += 1;
            if register == STATUS_A { 0 } else { count as u8 }
        };
        assert_eq!(read(&mut restless, TRIES), None);
    }

    #[test]
    fn a_clock_that_is_read_again_corrects_what_has_drifted() {
        let noon = 20_783 * 86_400 + 12 * 3600;
        let clock = || clock([0, 0, 0x12, 0x26, 0x11, 0x26], HOURS_24);
        let hour = 3_600_000_000;
        for (start, corrected) in [(0, 0), (1, 0), (5, 5), (40, 40)] {
            let begin = noon - 3600 - start;
            let expected = if corrected == 0 { begin } else { noon - 3600 };
            assert_eq!(start_again(&mut clock(), begin, hour), Some(expected));
        }
        let mut updating = |register| if register == STATUS_A { UPDATING } else { 0 };
        assert_eq!(start_again(&mut updating, 7, hour), None);
    }
}

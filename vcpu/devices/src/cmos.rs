//! The real-time clock and its CMOS memory.
//!
//! Source: MC146818A data sheet. The century is at 0x32, as in PC firmware (ACPI FADT, CENTURY). The memory size is
//! where QEMU puts it for its firmware (docs/specs, hw/i386/x86.c, x86_cmos_init).

use core::ops::Range;

use td_base::board;

use crate::{Device, Effect, Now, Place};

/// The port that selects a register, and the one that reads and writes the selected register.
pub const PORTS: Range<u64> = board::CLOCK as u64..board::CLOCK as u64 + 2;

const REGISTERS: usize = 128;
const STATUS_A: u8 = 0x0A;
const STATUS_B: u8 = 0x0B;
const STATUS_C: u8 = 0x0C;
const STATUS_D: u8 = 0x0D;
const CENTURY: u8 = board::CENTURY;
/// Status A: the divider runs at 32,768 Hz, rate 1024 Hz. No update is ever in progress.
const RUNNING: u8 = 0x26;
/// Status B: binary numbers, 24-hour mode. The guest may change both bits.
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Status D: the battery is good.
const VALID: u8 = 1 << 7;

/// The clock. It shows the host's time in UTC and can't be set.
#[derive(Debug)]
pub struct Cmos {
    index: u8,
    format: u8,
    memory: [u8; REGISTERS],
}

/// Memory size in units of 64 KiB: between 16 MiB and 4 GiB in two bytes, and above 4 GiB in three.
const LOW_MEMORY: usize = 0x34;
const HIGH_MEMORY: usize = 0x5B;
const MEMORY_UNIT: u64 = 64 << 10;
const LOW_MEMORY_FROM: u64 = 16 << 20;
const FOUR_GIB: u64 = 4 << 30;

impl Cmos {
    /// Creates the clock of a TD with these memory ranges, which start at address 0 and at 4 GiB.
    #[must_use]
    pub fn new(memory: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut ends = [LOW_MEMORY_FROM, FOUR_GIB];
        for range in memory {
            let end = &mut ends[usize::from(range.start >= FOUR_GIB)];
            *end = range.end.max(*end);
        }
        let [low, high] = ends;
        let units = |from: u64, end: u64, most: u64| ((end - from) / MEMORY_UNIT).min(most);
        let low = units(LOW_MEMORY_FROM, low, 0xFFFF).to_le_bytes();
        let high = units(FOUR_GIB, high, 0xFF_FFFF).to_le_bytes();
        let mut memory = [0; REGISTERS];
        memory[LOW_MEMORY..LOW_MEMORY + 2].copy_from_slice(&low[..2]);
        memory[HIGH_MEMORY..HIGH_MEMORY + 3].copy_from_slice(&high[..3]);
        Self {
            index: 0,
            format: HOURS_24,
            memory,
        }
    }

    fn register(&self, now: Now) -> u8 {
        let date = Date::of(now.unix_seconds);
        match self.index {
            0 => self.number(date.second),
            2 => self.number(date.minute),
            4 => self.hour(date.hour),
            6 => self.number(date.weekday),
            7 => self.number(date.day),
            8 => self.number(date.month),
            9 => self.number((date.year % 100) as u8),
            CENTURY => self.number((date.year / 100) as u8),
            STATUS_A => RUNNING,
            STATUS_B => self.format,
            STATUS_C => 0,
            STATUS_D => VALID,
            other => self.memory[usize::from(other) % REGISTERS],
        }
    }

    const fn number(&self, value: u8) -> u8 {
        if self.format & BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    const fn hour(&self, hour: u8) -> u8 {
        const AFTERNOON: u8 = 1 << 7;
        if self.format & HOURS_24 != 0 {
            return self.number(hour);
        }
        let twelve = match hour % 12 {
            0 => 12,
            other => other,
        };
        self.number(twelve) | if hour >= 12 { AFTERNOON } else { 0 }
    }
}

impl Device for Cmos {
    fn read(&mut self, place: Place, now: Now) -> u64 {
        match place.offset {
            0 => u64::from(self.index),
            _ => u64::from(self.register(now)),
        }
    }

    fn write(&mut self, place: Place, value: u64, _: Now) -> Effect {
        let value = value as u8;
        match (place.offset, self.index) {
            // Bit 7 masks NMI on a PC. A TD receives no NMI from there.
            (0, _) => self.index = value & 0x7F,
            (_, STATUS_B) => self.format = value & (BINARY | HOURS_24),
            (_, 0x0E..=0x31 | 0x33..) => self.memory[usize::from(self.index) % REGISTERS] = value,
            // The time is the host's, and the other status registers are read-only.
            _ => {}
        }
        Effect::None
    }
}

/// A calendar date and time of day.
#[derive(Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u8,
    day: u8,
    /// 1 is Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Date {
    fn of(unix_seconds: u64) -> Self {
        let (days, rest) = (unix_seconds / 86_400, unix_seconds % 86_400);
        let (year, month, day) = civil(days);
        Self {
            year,
            month,
            day,
            // 1970-01-01 was a Thursday.
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }
}

/// Converts days since 1970-01-01 to year, month and day in the Gregorian calendar.
fn civil(days: u64) -> (u64, u8, u8) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970 + days / DAYS_IN_400_YEARS * 400;
    let mut left = days % DAYS_IN_400_YEARS;
    loop {
        let length = 365 + u64::from(is_leap(year));
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left as u8 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(cmos: &mut Cmos, index: u8, unix_seconds: u64) -> u8 {
        let now = Now {
            unix_seconds,
            ..Now::default()
        };
        let at = |offset| Place { offset, size: 1 };
        cmos.write(at(0), index.into(), now);
        cmos.read(at(1), now) as u8
    }

    fn set(cmos: &mut Cmos, index: u8, value: u8) {
        let at = |offset| Place { offset, size: 1 };
        cmos.write(at(0), index.into(), Now::default());
        cmos.write(at(1), value.into(), Now::default());
    }

    #[test]
    fn firmware_finds_how_much_memory_there_is() {
        let sizes = |low, high| {
            let mut cmos = Cmos::new([0..low, FOUR_GIB..high]);
            [0x34, 0x35, 0x5B, 0x5C, 0x5D].map(|at| get(&mut cmos, at, 0))
        };
        assert_eq!(sizes(0, FOUR_GIB), [0; 5]);
        assert_eq!(sizes(8 << 20, FOUR_GIB), [0; 5]);
        // 512 MiB are 16 MiB and 0x1F00 units.
        assert_eq!(sizes(512 << 20, FOUR_GIB), [0, 0x1F, 0, 0, 0]);
        let large = sizes(3 << 30, 0x23_4567_0000);
        assert_eq!(large, [0, 0xBF, 0x67, 0x45, 0x22]);
        assert_eq!(sizes(0, 1 << 47), [0, 0, 0xFF, 0xFF, 0xFF]);
    }

    #[test]
    fn days_are_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_782, (2026, 11, 25)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
    }

    #[test]
    fn the_clock_shows_the_time_in_either_format() {
        // 2026-11-25 16:05:09 UTC, a Wednesday.
        let now = 20_782 * 86_400 + 16 * 3600 + 5 * 60 + 9;
        let mut cmos = Cmos::new([]);
        let shown = |cmos: &mut Cmos| [0, 2, 4, 6, 7, 8, 9, 0x32].map(|at| get(cmos, at, now));
        assert_eq!(shown(&mut cmos), [9, 5, 0x16, 4, 0x25, 0x11, 0x26, 0x20]);
        set(&mut cmos, STATUS_B, BINARY);
        assert_eq!(shown(&mut cmos), [9, 5, 4 | 0x80, 4, 25, 11, 26, 20]);
        assert_eq!(get(&mut cmos, 4, 0), 12, "midnight");
    }

    #[test]
    fn the_clock_never_updates_and_keeps_its_memory() {
        let mut cmos = Cmos::new([]);
        assert_eq!(get(&mut cmos, STATUS_A, 0) >> 7, 0);
        assert_eq!(get(&mut cmos, STATUS_D, 0), 0x80);
        set(&mut cmos, 0x40, 0x5A);
        set(&mut cmos, 0, 30);
        assert_eq!((get(&mut cmos, 0x40, 0), get(&mut cmos, 0, 7)), (0x5A, 7));
        assert_eq!(get(&mut cmos, 0xC0, 0), 0x5A, "bit 7 selects no register");
    }
}

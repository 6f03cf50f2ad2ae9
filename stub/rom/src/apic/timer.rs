//! The APIC timer: QEMU's for one-shot and periodic mode, and TSC deadlines on top of its one-shot mode.

use super::{Xapic, regs};
use crate::personality::clock::CRYSTAL_HZ;

/// Counts of the timer per second, with divisor one.
const TIMER_HZ: u64 = CRYSTAL_HZ as u64;
const MODE: u32 = 3 << 17;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;

#[derive(Clone, Debug)]
pub struct Timer {
    tsc_hz: u64,
    lvt: u32,
    divide: u32,
    deadline: u64,
}

impl Timer {
    pub fn new(tsc_hz: u64) -> Self {
        Self {
            tsc_hz,
            lvt: regs::LVT_MASKED,
            divide: 0,
            deadline: 0,
        }
    }

    pub fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    pub fn adopt(&mut self, xapic: &impl Xapic) {
        self.lvt = xapic.read(regs::LVT_TIMER << 4) & !(1 << 12);
        self.divide = xapic.read(regs::DIVIDE << 4);
    }

    fn in_deadline_mode(&self) -> bool {
        self.lvt & MODE == DEADLINE
    }

    pub fn read(&self, register: u32, xapic: &impl Xapic) -> u32 {
        match register {
            regs::LVT_TIMER => self.lvt | xapic.read(regs::LVT_TIMER << 4) & 1 << 12,
            regs::DIVIDE => self.divide,
            _ if self.in_deadline_mode() => 0,
            _ => xapic.read(register << 4),
        }
    }

    pub fn write(&mut self, register: u32, value: u32, xapic: &mut impl Xapic) {
        match register {
            regs::LVT_TIMER => {
                let was_in_deadline_mode = self.in_deadline_mode();
                self.lvt = value;
                xapic.write(regs::LVT_TIMER << 4, value & !MODE | value & PERIODIC);
                if was_in_deadline_mode != self.in_deadline_mode() {
                    self.deadline = 0;
                    xapic.write(regs::INITIAL_COUNT << 4, 0);
                    xapic.write(regs::DIVIDE << 4, self.divide);
                }
            }
            regs::DIVIDE => {
                self.divide = value;
                if !self.in_deadline_mode() {
                    xapic.write(regs::DIVIDE << 4, value);
                }
            }
            _ if self.in_deadline_mode() => {}
            _ => xapic.write(register << 4, value),
        }
    }

    pub fn deadline(&self, now: u64) -> u64 {
        if self.in_deadline_mode() && now < self.deadline {
            self.deadline
        } else {
            0
        }
    }

    pub fn set_deadline(&mut self, deadline: u64, now: u64, xapic: &mut impl Xapic) {
        if !self.in_deadline_mode() {
            return;
        }
        self.deadline = deadline;
        if deadline == 0 {
            xapic.write(regs::INITIAL_COUNT << 4, 0);
            return;
        }
        let (divide, count) = self.count_until(deadline.saturating_sub(now));
        xapic.write(regs::DIVIDE << 4, divide);
        xapic.write(regs::INITIAL_COUNT << 4, count);
    }

    /// Returns the divide configuration and the count that last at least `ticks` of the time-stamp counter. The longest
    /// count lasts nine minutes; a deadline beyond that fires early.
    fn count_until(&self, ticks: u64) -> (u32, u32) {
        let exact = u128::from(ticks) * u128::from(TIMER_HZ) / u128::from(self.tsc_hz) + 1;
        // The ratio of the two clocks is measured. The margin keeps its error from making a deadline early.
        let counts = exact + (exact >> 12);
        (0..8)
            .find_map(|shift| {
                let count = u32::try_from((counts >> shift) + 1).ok()?;
                Some((divide_by_power(shift), count))
            })
            .unwrap_or((divide_by_power(7), u32::MAX))
    }
}

/// Returns the divide configuration register's encoding of division by 2 to the power of `shift`, 0 to 7.
fn divide_by_power(shift: u32) -> u32 {
    let code = shift.wrapping_sub(1) & 7;
    code & 3 | (code & 4) << 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divide_configuration_is_encoded_as_in_the_manual() {
        assert_eq!(
            (0..8).map(divide_by_power).collect::<alloc::vec::Vec<_>>(),
            [
                0b1011, 0b0000, 0b0001, 0b0010, 0b0011, 0b1000, 0b1001, 0b1010
            ]
        );
    }

    #[test]
    fn a_deadline_is_never_early_up_to_the_longest_count() {
        let timer = Timer::new(2_500_000_000);
        for ticks in [
            0,
            1,
            2_500,
            2_500_000_000,
            25_000_000_000,
            1_000_000_000_000,
        ] {
            let (divide, count) = timer.count_until(ticks);
            let shift = (0..8).find(|&s| divide_by_power(s) == divide).unwrap();
            let nanoseconds = u64::from(count) << shift;
            assert!(nanoseconds * 5 / 2 >= ticks, "{ticks}");
            assert!(
                nanoseconds <= ticks * 2 / 5 + (ticks >> 12) + 1000,
                "{ticks}"
            );
        }
        assert_eq!(timer.count_until(u64::MAX), (0b1010, u32::MAX));
    }
}

//! The local APIC's timer in TSC-deadline mode: it fires once, when the time-stamp counter reaches the deadline.
//!
//! A CPU has several deadlines, and the timer is armed for the earliest: that of the vCPUs, that of the look at the
//! machine-check banks, the end of the rests of functions' interrupts, and on one CPU that of the serial port's poll. The
//! looks and the polls come back by themselves.
//!
//! Source: Intel SDM volume 3A, section 11.5.4.1 (TSC-Deadline Mode).
#![expect(unsafe_code, reason = "the timer's registers are MSRs")]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use seam::abi::x86::msr::TSC_DEADLINE;
use seam::abi::x86::msr::x2apic::LVT_TIMER;

use super::vector::TIMER_VECTOR;
use crate::{msr, time};

const DEADLINE_MODE: u64 = 2 << 17;

/// The deadlines of a CPU's timer; 0 is none.
#[derive(Debug)]
pub struct Armed {
    /// The deadline that [`set`] set.
    own: AtomicU64,
    /// The next look at the machine-check banks.
    look: AtomicU64,
    /// The next poll of the serial port.
    poll: AtomicU64,
    /// The end of the rests of functions' interrupts.
    rest: AtomicU64,
}

/// The meaning of a timer that fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fired {
    /// The deadline that [`set`] set has passed.
    pub own: bool,
    /// The machine-check banks are due.
    pub look: bool,
    /// The serial port is to be polled.
    pub poll: bool,
    /// The rests of functions' interrupts are over.
    pub rest: bool,
}

impl Armed {
    pub(super) const fn new() -> Self {
        Self {
            own: AtomicU64::new(0),
            look: AtomicU64::new(0),
            poll: AtomicU64::new(0),
            rest: AtomicU64::new(0),
        }
    }

    /// Takes the deadlines that have passed at `now`.
    fn fire(&self, now: u64) -> Fired {
        let take = |deadline: &AtomicU64| {
            let passed = (1..=now).contains(&deadline.load(Relaxed));
            if passed {
                deadline.store(0, Relaxed);
            }
            passed
        };
        Fired {
            own: take(&self.own),
            look: take(&self.look),
            poll: take(&self.poll),
            rest: take(&self.rest),
        }
    }

    /// Returns the earliest deadline; 0 if there is none.
    fn earliest(&self) -> u64 {
        let set = |deadline: &AtomicU64| Some(deadline.load(Relaxed)).filter(|tsc| *tsc != 0);
        let all = [&self.own, &self.look, &self.poll, &self.rest].map(set);
        all.into_iter().flatten().min().unwrap_or(0)
    }
}

/// Returns true if CPUID reports TSC-deadline mode. Every CPU with TDX has it.
#[must_use]
pub fn present() -> bool {
    core::arch::x86_64::__cpuid(1).ecx & 1 << 24 != 0
}

/// Prepares this CPU's timer. Its APIC must be in x2APIC mode.
pub(super) fn enable() {
    if present() {
        // SAFETY: the vector has a handler, and the timer does not fire before a deadline is written.
        unsafe { msr::write(LVT_TIMER, DEADLINE_MODE | u64::from(TIMER_VECTOR)) };
    }
}

/// Arms this CPU's timer for `tsc`, or disarms it. Call it with interrupts off.
pub fn set(tsc: Option<u64>) {
    let Some(cpu) = super::this() else { return };
    let deadline = tsc.unwrap_or(0);
    if cpu.timer.own.swap(deadline, Relaxed) != deadline {
        program(cpu);
    }
}

/// Sets the time of the next look at the machine-check banks. Call it with interrupts off.
pub(super) fn look_at(tsc: u64) {
    if let Some(cpu) = super::this() {
        cpu.timer.look.store(tsc, Relaxed);
        program(cpu);
    }
}

/// Sets the time of the next poll of the serial port. Call it with interrupts off.
pub fn poll_at(tsc: u64) {
    if let Some(cpu) = super::this() {
        cpu.timer.poll.store(tsc, Relaxed);
        program(cpu);
    }
}

/// Has the rests of functions' interrupts end at this time, if none of this CPU end before. Call it with interrupts off.
pub fn rest_until(tsc: u64) {
    if let Some(cpu) = super::this()
        && cpu.timer.rest.load(Relaxed) == 0
    {
        cpu.timer.rest.store(tsc, Relaxed);
        program(cpu);
    }
}

/// Returns true if it is time to look at the machine-check banks.
pub(super) fn look_is_due() -> bool {
    let now = time::tsc();
    super::this().is_some_and(|cpu| (1..=now).contains(&cpu.timer.look.load(Relaxed)))
}

/// Takes the deadlines that have passed, and arms the timer for those that have not.
pub(super) fn fired() -> Fired {
    let Some(cpu) = super::this() else {
        return Fired {
            own: false,
            look: false,
            poll: false,
            rest: false,
        };
    };
    let fired = cpu.timer.fire(time::tsc());
    program(cpu);
    fired
}

fn program(cpu: &super::Cpu) {
    if !super::interrupts() || !present() {
        return;
    }
    // SAFETY: the CPU has the register, any deadline may be written, and the vector has a handler. The fences keep the
    // write behind that of the mode.
    unsafe {
        core::arch::x86_64::_mm_mfence();
        core::arch::x86_64::_mm_lfence();
        msr::write(TSC_DEADLINE, cpu.timer.earliest());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_deadline_fires_first_and_the_others_stay() {
        let armed = Armed::new();
        assert_eq!(armed.earliest(), 0);
        armed.own.store(100, Relaxed);
        armed.look.store(50, Relaxed);
        armed.poll.store(70, Relaxed);
        assert_eq!(armed.earliest(), 50);
        let fired = |own, look, poll| Fired {
            own,
            look,
            poll,
            rest: false,
        };
        // A timer that fires early is armed again.
        assert_eq!(armed.fire(49), fired(false, false, false));
        assert_eq!(armed.earliest(), 50);
        assert_eq!(armed.fire(60), fired(false, true, false));
        assert_eq!(armed.earliest(), 70);
        assert_eq!(armed.fire(100), fired(true, false, true));
        assert_eq!(armed.earliest(), 0);
        assert_eq!(armed.fire(200), fired(false, false, false));
        armed.rest.store(250, Relaxed);
        assert_eq!(armed.earliest(), 250);
        assert!(armed.fire(250).rest && !armed.fire(300).rest);
    }
}

//! The local APIC's timer in TSC-deadline mode: it fires once, when the time-stamp counter reaches the deadline.
//!
//! Source: Intel SDM volume 3A, section 11.5.4.1 (TSC-Deadline Mode).
#![expect(unsafe_code, reason = "the timer's registers are MSRs")]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use seam::abi::x86::msr::TSC_DEADLINE;
use seam::abi::x86::msr::x2apic::LVT_TIMER;

use super::trap;
use crate::msr;

const DEADLINE_MODE: u64 = 2 << 17;

/// The deadline of a CPU's timer; 0 when the timer is off.
#[derive(Debug)]
pub struct Armed(AtomicU64);

impl Armed {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Notes that the timer fired.
    pub(super) fn went_off(&self) {
        self.0.store(0, Relaxed);
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
        unsafe { msr::write(LVT_TIMER, DEADLINE_MODE | u64::from(trap::TIMER_VECTOR)) };
    }
}

/// Arms this CPU's timer for `tsc`, or disarms it. Call it with interrupts off.
pub fn set(tsc: Option<u64>) {
    let Some(cpu) = super::this() else { return };
    let deadline = tsc.unwrap_or(0);
    if !super::interrupts() || !present() || cpu.timer.0.swap(deadline, Relaxed) == deadline {
        return;
    }
    // SAFETY: the CPU has the register, any deadline may be written, and the vector has a handler. The fences keep the
    // write behind that of the mode.
    unsafe {
        core::arch::x86_64::_mm_mfence();
        core::arch::x86_64::_mm_lfence();
        msr::write(TSC_DEADLINE, deadline);
    }
}

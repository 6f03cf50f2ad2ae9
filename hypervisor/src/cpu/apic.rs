//! The local APIC in x2APIC mode: its id, end of interrupt, and messages to other CPUs.
//!
//! Source: Intel SDM volume 3A, section 11.12.
#![expect(
    unsafe_code,
    reason = "the local APIC's registers are MSRs, and messages start and stop other CPUs"
)]

use seam::abi::x86::msr::APIC_BASE;
use seam::abi::x86::msr::x2apic::{
    EOI, ICR, ID as X2APIC_ID, LVT_CMCI, LVT_ERROR, LVT_LINT0, LVT_LINT1, LVT_PERFORMANCE,
    LVT_THERMAL, LVT_TIMER, SVR as SPURIOUS, VERSION,
};

use crate::msr;

/// IA32_APIC_BASE: the APIC is on.
const ENABLED: u64 = 1 << 11;
/// IA32_APIC_BASE: the APIC is in x2APIC mode.
const X2APIC: u64 = 1 << 10;
const SOFTWARE_ENABLE: u64 = 1 << 8;

/// The vector of interrupts that are withdrawn before they are taken. They get no end-of-interrupt.
pub const SPURIOUS_VECTOR: u8 = 0xFF;

/// A message from one CPU to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An interrupt with this vector.
    Fixed(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// Reset to wait-for-SIPI.
    Init,
    /// Start at this page number.
    Startup(u8),
}

/// Returns true if CPUID reports an x2APIC.
#[must_use]
pub fn present() -> bool {
    core::arch::x86_64::__cpuid(1).ecx & 1 << 21 != 0
}

/// Switches this CPU's APIC on, in x2APIC mode, with every local interrupt masked that the firmware has left. The CPU
/// must have one ([`present`]).
pub fn enable() {
    let base = msr::read(APIC_BASE).unwrap_or(0);
    // SAFETY: the CPU has an x2APIC, whose mode is this program's to choose, and every step is a transition that is
    // allowed. The registers that are masked exist, and interrupts are off. The spurious vector has a handler.
    unsafe {
        for value in steps(base) {
            msr::write(APIC_BASE, value);
        }
        let highest = msr::read(VERSION).unwrap_or(0) >> 16 & 0xFF;
        for register in local_vectors(highest) {
            let value = msr::read(register).unwrap_or(0);
            // The pin for NMIs of the machine, such as those of its front panel, stays as it is.
            if register != LVT_LINT1 || value & DELIVERY != DELIVER_NMI {
                msr::write(register, MASKED);
            }
        }
        msr::write(SPURIOUS, SOFTWARE_ENABLE | u64::from(SPURIOUS_VECTOR));
    }
}

/// Returns the values that take IA32_APIC_BASE from `base` to x2APIC mode, in order. An APIC that is off must be switched
/// on in xAPIC mode first (SDM volume 3A, section 11.12.5).
fn steps(base: u64) -> impl Iterator<Item = u64> {
    let off = base & !(ENABLED | X2APIC);
    let (xapic, x2apic) = (off | ENABLED, off | ENABLED | X2APIC);
    [xapic, x2apic]
        .into_iter()
        .filter(move |step| base & ENABLED == 0 || (*step == x2apic && base != x2apic))
}

const MASKED: u64 = 1 << 16;
const DELIVERY: u64 = 7 << 8;
const DELIVER_NMI: u64 = 4 << 8;

/// Returns the registers of the local vector table of an APIC whose version register names `highest` as its last
/// entry.
fn local_vectors(highest: u64) -> impl Iterator<Item = u32> {
    [
        (0, LVT_TIMER),
        (0, LVT_LINT0),
        (0, LVT_LINT1),
        (3, LVT_ERROR),
        (4, LVT_PERFORMANCE),
        (5, LVT_THERMAL),
        (6, LVT_CMCI),
    ]
    .into_iter()
    .filter(move |(entry, _)| *entry <= highest)
    .map(|(_, register)| register)
}

/// Returns this CPU's APIC id.
#[must_use]
pub fn id() -> u32 {
    msr::read(X2APIC_ID).unwrap_or(0) as u32
}

/// Signals the end of the interrupt in service.
pub fn end_of_interrupt() {
    // SAFETY: only interrupt handlers call this, once each, with the APIC in x2APIC mode.
    unsafe { msr::write(EOI, 0) }
}

/// Sends a message to the CPU with APIC id `to`.
pub fn send(to: u32, message: Message) {
    // SAFETY: every vector that is sent has a handler; INIT and SIPI go only to CPUs that this program starts, at a
    // page that it has prepared; the write is ordered after the stores before it by MFENCE and LFENCE, as WRMSR to
    // an x2APIC register is not serialising.
    unsafe {
        core::arch::x86_64::_mm_mfence();
        core::arch::x86_64::_mm_lfence();
        msr::write(ICR, encode(to, message));
    }
}

/// Encodes the interrupt command register for a message with a physical destination.
fn encode(to: u32, message: Message) -> u64 {
    const ASSERT: u64 = 1 << 14;
    let command = match message {
        Message::Fixed(vector) => u64::from(vector),
        Message::Nmi => 4 << 8,
        Message::Init => 5 << 8,
        Message::Startup(page) => 6 << 8 | u64::from(page),
    };
    u64::from(to) << 32 | ASSERT | command
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    /// Returns true if a CPU accepts this change of IA32_APIC_BASE (SDM volume 3A, table 11-5).
    fn is_allowed(from: u64, to: u64) -> bool {
        const BOTH: u64 = ENABLED | X2APIC;
        match (from & BOTH, to & BOTH) {
            (_, X2APIC) | (0, BOTH) | (BOTH, ENABLED) => false,
            (X2APIC, _) => unreachable!("no APIC is in this state"),
            _ => true,
        }
    }

    #[test]
    fn every_state_leads_to_x2apic_mode_by_allowed_steps() {
        const BASE: u64 = 0xFEE0_0100;
        for (from, writes) in [(0, 2), (ENABLED, 1), (ENABLED | X2APIC, 0)] {
            let mut at = BASE | from;
            let steps: Vec<_> = steps(at).collect();
            assert_eq!(steps.len(), writes);
            for step in steps {
                assert!(is_allowed(at, step), "{at:#x} to {step:#x}");
                at = step;
            }
            assert_eq!(at, BASE | ENABLED | X2APIC);
        }
    }

    #[test]
    fn only_registers_that_exist_are_masked() {
        let all: Vec<_> = local_vectors(6).collect();
        assert!(all.contains(&LVT_CMCI) && all.len() == 7);
        let five: Vec<_> = local_vectors(5).collect();
        assert!(!five.contains(&LVT_CMCI) && five.contains(&LVT_THERMAL));
        assert!(local_vectors(0).eq([LVT_TIMER, LVT_LINT0, LVT_LINT1]));
    }

    #[test]
    fn messages_are_encoded_as_the_manual_says() {
        assert_eq!(encode(3, Message::Init), 0x3_0000_4500);
        assert_eq!(encode(0x1_0002, Message::Startup(0x9F)), 0x1_0002_0000_469F);
        assert_eq!(encode(1, Message::Nmi), 0x1_0000_4400);
        assert_eq!(encode(1, Message::Fixed(0xE0)), 0x1_0000_40E0);
    }
}

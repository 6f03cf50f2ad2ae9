//! The local APIC in x2APIC mode: its id, end of interrupt, and messages to other CPUs.
//!
//! Source: Intel SDM volume 3A, section 11.12.
#![expect(
    unsafe_code,
    reason = "the local APIC's registers are MSRs, and messages start and stop other CPUs"
)]

use seam::abi::x86::msr::APIC_BASE;
use seam::abi::x86::msr::x2apic::{EOI, ICR, ID as X2APIC_ID, SVR as SPURIOUS};

use crate::msr;

const ENABLED_X2APIC: u64 = 1 << 11 | 1 << 10;
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

/// Switches this CPU's APIC on, in x2APIC mode. The CPU must have one ([`present`]).
pub fn enable() {
    let base = msr::read(APIC_BASE).unwrap_or(0);
    // SAFETY: the CPU has an x2APIC; its mode is this program's to choose, and the transition from xAPIC to x2APIC
    // mode is always allowed. The spurious vector has a handler.
    unsafe {
        if base & ENABLED_X2APIC != ENABLED_X2APIC {
            msr::write(APIC_BASE, base | ENABLED_X2APIC);
        }
        msr::write(SPURIOUS, SOFTWARE_ENABLE | u64::from(SPURIOUS_VECTOR));
    }
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
    use super::*;

    #[test]
    fn messages_are_encoded_as_the_manual_says() {
        assert_eq!(encode(3, Message::Init), 0x3_0000_4500);
        assert_eq!(encode(0x1_0002, Message::Startup(0x9F)), 0x1_0002_0000_469F);
        assert_eq!(encode(1, Message::Nmi), 0x1_0000_4400);
        assert_eq!(encode(1, Message::Fixed(0xE0)), 0x1_0000_40E0);
    }
}

//! The machine's power button: a fixed event of ACPI, which interrupts, or is polled where nothing can interrupt.
//!
//! Source: ACPI Specification 6.5, sections 4.8.2.2.1 and 4.8.3.1.
#![expect(unsafe_code, reason = "the event registers are I/O ports")]

use core::sync::atomic::{
    AtomicBool, AtomicU16, AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};

use x86_64::instructions::port::Port;

use crate::firmware::fadt::{Events, Fadt};

/// The power button's bit in the PM1 status and enable registers.
const BUTTON: u16 = 1 << 8;
/// Number of interrupts in a row without an event after which the source is believed to be broken.
const MAX_IDLE: u32 = 1000;

/// The PM1 status ports; 0 if there is none.
static STATUS: [AtomicU16; 2] = [const { AtomicU16::new(0) }; 2];
static PRESSED: AtomicBool = AtomicBool::new(false);
static IDLE: AtomicU32 = AtomicU32::new(0);

/// Enables the button's event and disables all others. Returns false if the machine has no such button.
pub fn enable(fadt: &Fadt) -> bool {
    if !fadt.has_power_button {
        return false;
    }
    for events in fadt.general_events.into_iter().flatten() {
        for port in events.enable..events.enable + (events.enable - events.status) {
            out8(port, 0);
        }
    }
    let mut found = false;
    for (events, status) in fadt.pm1_events.iter().zip(&STATUS) {
        let Some(Events {
            status: at,
            enable: to,
        }) = *events
        else {
            continue;
        };
        // A press that the firmware has not served is not meant for this program.
        out16(at, BUTTON);
        out16(to, BUTTON);
        status.store(at, Relaxed);
        found = true;
    }
    found
}

/// The button, as the interrupt's handler finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The button was pressed.
    Pressed,
    /// Nothing that this program knows.
    Other,
    /// The source interrupts without end, and must be masked.
    Broken,
}

/// Serves the interrupt of ACPI's events.
pub fn on_interrupt() -> Event {
    if poll() {
        IDLE.store(0, Relaxed);
        return Event::Pressed;
    }
    match IDLE.fetch_add(1, Relaxed) {
        MAX_IDLE.. => Event::Broken,
        _ => Event::Other,
    }
}

/// Looks for a press, on a machine whose button can't interrupt. Returns true if there was one.
pub fn poll() -> bool {
    let mut pressed = false;
    for port in STATUS.iter().map(|port| port.load(Relaxed)) {
        if port != 0 && in16(port) & BUTTON != 0 {
            // Writing a one clears the bit.
            out16(port, BUTTON);
            pressed = true;
        }
    }
    if pressed {
        PRESSED.store(true, Release);
    }
    pressed
}

/// Returns true once for each press, or each few that came together.
pub fn was_pressed() -> bool {
    PRESSED.load(Relaxed) && PRESSED.swap(false, Acquire)
}

fn in16(port: u16) -> u16 {
    // SAFETY: the FADT says that this is a PM1 status register, which may be read.
    unsafe { Port::new(port).read() }
}

fn out16(port: u16, value: u16) {
    // SAFETY: the FADT says that this is a PM1 event register, which this program alone uses in ACPI mode.
    unsafe { Port::new(port).write(value) }
}

fn out8(port: u16, value: u8) {
    // SAFETY: the FADT says that this is a register that enables general-purpose events.
    unsafe { Port::new(port).write(value) }
}

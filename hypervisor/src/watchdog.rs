//! The watchdog, which resets the machine when the console's loop no longer runs. It is off unless `host.watchdog`
//! says otherwise.
//!
//! The loop of the CPU with the console serves the operator, runs vCPUs and ends TDs, so it feeds the watchdog for all
//! of them. A crash ends the loop, too: the watchdog then resets the machine, also after `on_crash = "halt"`.
#![expect(
    unsafe_code,
    reason = "the timer's registers are I/O ports or device memory"
)]

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sync::IrqLock;
use x86_64::instructions::port::Port;

use crate::{
    firmware::wdat::{self, Place, Register, Registers, Wdat},
    memory, pci, time,
};

/// Interval in microseconds between two feedings.
const FEED_US: u64 = 1_000_000;

static WATCHDOG: IrqLock<Option<Watchdog>> = IrqLock::new(None);
/// The time of the next feeding in microseconds; never while the watchdog is off.
static NEXT_US: AtomicU64 = AtomicU64::new(u64::MAX);

struct Watchdog {
    timer: Wdat,
    access: Access,
}

/// Starts the machine's watchdog: the WDAT's, else an ICH9's.
///
/// # Errors
/// A sentence that says why there is none.
pub fn start(seconds: u32, table: Option<Wdat>) -> Result<String, String> {
    let (timer, name) = match (table, ich9()) {
        (Some(timer), _) => (timer, "the ACPI tables' (WDAT)"),
        (None, Some(timer)) => (timer, "the chipset's (TCO)"),
        (None, None) => {
            return Err("host.watchdog is ignored: the machine has no WDAT and no ICH9".into());
        }
    };
    let mut access = Access::to(&timer)
        .ok_or("host.watchdog is ignored: the timer's registers can't be mapped")?;
    let ms = timer.start(seconds, &mut access).ok_or_else(|| {
        let most = u64::from(timer.counts.1) * u64::from(timer.period_ms) / 1000;
        format!("host.watchdog is ignored: the machine's timer runs for {most} s at most")
    })?;
    *WATCHDOG.lock() = Some(Watchdog { timer, access });
    NEXT_US.store(0, Relaxed);
    Ok(format!(
        "the watchdog is {name}, of {} s",
        ms.div_ceil(1000)
    ))
}

/// Feeds the watchdog if it is on.
pub fn feed() {
    let now_us = time::us();
    if now_us < NEXT_US.load(Relaxed) {
        return;
    }
    if let Some(watchdog) = &mut *WATCHDOG.lock() {
        watchdog.timer.feed(&mut watchdog.access);
        NEXT_US.store(now_us + FEED_US, Relaxed);
    }
}

/// Switches the watchdog off, before the machine goes off.
pub fn stop() {
    if let Some(mut watchdog) = WATCHDOG.lock().take() {
        watchdog.timer.stop(&mut watchdog.access);
    }
    NEXT_US.store(u64::MAX, Relaxed);
}

/// Returns the TCO timer if the machine's LPC bridge is an ICH9's, as in QEMU's q35.
fn ich9() -> Option<Wdat> {
    /// Device 31, function 0: the LPC bridge.
    const LPC: (u8, u8) = (31, 0);
    const ICH9: u32 = 0x2918_8086;
    let read = |offset| pci::read_legacy(LPC.0, LPC.1, offset);
    let (pm_base, rcba) = (read(0x40), read(0xF0));
    let enabled = read(0x44) & 0x80 != 0 && rcba & 1 != 0;
    (read(0) == ICH9 && enabled)
        .then(|| wdat::ich9((pm_base & 0xFF80) as u16, u64::from(rcba & 0xFFFF_C000)))
}

/// The registers of a timer, mapped.
struct Access(Vec<(u64, u64)>);

impl Access {
    /// Maps the registers of `timer` that are in memory: physical and virtual addresses.
    fn to(timer: &Wdat) -> Option<Self> {
        let mut mapped: Vec<(u64, u64)> = Vec::new();
        for register in timer.registers() {
            if let Place::Memory(pa) = register.place
                && !mapped.iter().any(|m| m.0 == pa)
            {
                mapped.push((pa, memory::window(pa, 4).ok()?));
            }
        }
        Some(Self(mapped))
    }

    fn at(&self, pa: u64) -> u64 {
        let found = self.0.iter().find(|mapped| mapped.0 == pa);
        found.expect("every register was mapped").1
    }
}

impl Registers for Access {
    fn read(&mut self, register: Register) -> u32 {
        // SAFETY: the firmware says that this is a register of the watchdog timer, or it is the ICH9's; memory is
        // mapped.
        unsafe {
            match (register.place, register.width) {
                (Place::Port(port), 1) => Port::<u8>::new(port).read().into(),
                (Place::Port(port), 2) => Port::<u16>::new(port).read().into(),
                (Place::Port(port), _) => Port::new(port).read(),
                (Place::Memory(pa), 1) => (self.at(pa) as *const u8).read_volatile().into(),
                (Place::Memory(pa), 2) => (self.at(pa) as *const u16).read_volatile().into(),
                (Place::Memory(pa), _) => (self.at(pa) as *const u32).read_volatile(),
            }
        }
    }

    fn write(&mut self, register: Register, value: u32) {
        // SAFETY: as above.
        unsafe {
            match (register.place, register.width) {
                (Place::Port(port), 1) => Port::new(port).write(value as u8),
                (Place::Port(port), 2) => Port::new(port).write(value as u16),
                (Place::Port(port), _) => Port::new(port).write(value),
                (Place::Memory(pa), 1) => (self.at(pa) as *mut u8).write_volatile(value as u8),
                (Place::Memory(pa), 2) => (self.at(pa) as *mut u16).write_volatile(value as u16),
                (Place::Memory(pa), _) => (self.at(pa) as *mut u32).write_volatile(value),
            }
        }
    }
}

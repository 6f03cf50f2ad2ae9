//! The registers of a port on this machine.
#![expect(
    unsafe_code,
    reason = "a serial port's registers are I/O ports or device memory"
)]

use core::sync::atomic::{AtomicU64, Ordering};

use uart::{Register, Registers};
use x86_64::instructions::port::Port;

use crate::firmware::spcr::Place;

/// A mapped port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// I/O ports from this one on.
    Io(u16),
    /// Device memory.
    Memory {
        /// Virtual address of the first register.
        at: u64,
        /// Distance of two registers and width of an access, in bytes.
        step: u8,
    },
}

/// The console's port, for a crash report that can't get the lock: bits 7:0 are the step, or 0 for I/O ports; the rest
/// is the address. 0 means none.
static CURRENT: AtomicU64 = AtomicU64::new(0);

impl Wire {
    /// Returns the registers at `place`, or `None` if they can't be mapped. `map` returns the virtual address of a
    /// physical one.
    ///
    /// # Safety
    /// A serial port is there, or nothing; nobody else uses it. `map` returns addresses that stay mapped, uncached.
    pub unsafe fn at(place: Place, map: impl FnOnce(u64, u64) -> Option<u64>) -> Option<Self> {
        match place {
            Place::Io(port) if port <= u16::MAX - 8 => Some(Self::Io(port)),
            Place::Io(_) => None,
            Place::Memory { pa, step } => Some(Self::Memory {
                at: map(pa, 8 * u64::from(step))?,
                step,
            }),
        }
    }

    /// Makes this the port of a crash report.
    pub fn make_current(self) {
        let packed = match self {
            Self::Io(port) => u64::from(port) << 8,
            // A canonical address survives the loss of its upper 8 bits.
            Self::Memory { at, step } => at << 8 | u64::from(step),
        };
        CURRENT.store(packed, Ordering::Release);
    }

    /// Returns the port of a crash report.
    pub fn current() -> Option<Self> {
        let packed = CURRENT.load(Ordering::Acquire);
        match (packed, packed as u8) {
            (0, _) => None,
            (_, 0) => Some(Self::Io((packed >> 8) as u16)),
            (_, step) => Some(Self::Memory {
                at: (packed as i64 >> 8) as u64,
                step,
            }),
        }
    }
}

impl Registers for Wire {
    fn read(&mut self, register: Register) -> u8 {
        let number = register as u8;
        // SAFETY: the creator of the wire knows that a serial port is there, which this driver alone uses; device
        // memory is mapped, and 8 registers of `step` bytes are within the mapping.
        unsafe {
            match *self {
                Self::Io(base) => Port::new(base + u16::from(number)).read(),
                Self::Memory { at, step } => {
                    let at = at + u64::from(number) * u64::from(step);
                    match step {
                        1 => (at as *const u8).read_volatile(),
                        2 => (at as *const u16).read_volatile() as u8,
                        _ => (at as *const u32).read_volatile() as u8,
                    }
                }
            }
        }
    }

    fn write(&mut self, register: Register, value: u8) {
        let number = register as u8;
        // SAFETY: as above.
        unsafe {
            match *self {
                Self::Io(base) => Port::new(base + u16::from(number)).write(value),
                Self::Memory { at, step } => {
                    let at = at + u64::from(number) * u64::from(step);
                    match step {
                        1 => (at as *mut u8).write_volatile(value),
                        2 => (at as *mut u16).write_volatile(value.into()),
                        _ => (at as *mut u32).write_volatile(value.into()),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_crash_report_is_found_again() {
        assert_eq!(Wire::current(), None);
        for wire in [
            Wire::Io(0x2F8),
            Wire::Memory {
                at: 0xFFFF_A000_0000_0010,
                step: 4,
            },
        ] {
            wire.make_current();
            assert_eq!(Wire::current(), Some(wire));
        }
    }
}

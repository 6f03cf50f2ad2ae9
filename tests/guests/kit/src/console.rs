//! The guest's output: whole lines to the first serial port and to the debug port, if the host has them.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use crate::vmcall;

/// COM1's data register.
const SERIAL: u16 = 0x3F8;
/// Offsets of the other registers.
const INTERRUPT_ENABLE: u16 = 1;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
/// Line status: a byte has been received.
const DATA_READY: u32 = 1;
/// The debug console of QEMU's firmware.
const DEBUG: u16 = 0x402;

/// Held while a line is printed, so that lines of several vCPUs do not mix.
static LINE: Mutex<()> = Mutex::new(());

struct Ports;

impl Write for Ports {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        static SERIAL_REFUSED: AtomicBool = AtomicBool::new(false);
        static DEBUG_REFUSED: AtomicBool = AtomicBool::new(false);
        for byte in text.bytes() {
            for (port, refused) in [(SERIAL, &SERIAL_REFUSED), (DEBUG, &DEBUG_REFUSED)] {
                if !refused.load(Ordering::Relaxed) && vmcall::io_out(port, 1, byte.into()).is_err()
                {
                    refused.store(true, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }
}

/// Returns the next byte that was typed, if any.
pub fn typed() -> Option<u8> {
    let status = vmcall::io_in(SERIAL + LINE_STATUS, 1).ok()?;
    let byte = || vmcall::io_in(SERIAL, 1).ok().map(|byte| byte as u8);
    (status & DATA_READY != 0).then(byte).flatten()
}

/// Restores the serial port's reset state, as far as it affects output.
pub fn heal() {
    for (register, value) in [(INTERRUPT_ENABLE, 0), (LINE_CONTROL, 3), (MODEM_CONTROL, 0)] {
        // If there is no port, nothing needs to be restored.
        let _ = vmcall::io_out(SERIAL + register, 1, value);
    }
}

/// Prints one line.
pub fn line(text: fmt::Arguments<'_>) {
    let _line = LINE.lock();
    say(text);
}

/// Prints one line even if the vCPU was interrupted in the middle of another.
pub(crate) fn last_words(text: fmt::Arguments<'_>) {
    say(text);
}

fn say(text: fmt::Arguments<'_>) {
    // Ports accept everything; an error could only come from formatting.
    let _ = write!(Ports, "{text}\r\n");
}

/// Prints one line, with the arguments of `format!`.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::console::line(format_args!($($arguments)*))
    };
}

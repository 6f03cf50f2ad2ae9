//! The first serial port, as firmware has set it up.

use core::fmt::{self, Write};

use crate::cpu;

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(cpu::send_serial);
        Ok(())
    }
}

/// Writes one line.
pub fn line(text: fmt::Arguments<'_>) {
    let _ = write!(Port, "{text}\r\n");
}

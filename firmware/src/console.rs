//! The firmware's messages: a few lines on the first serial port, and a fatal one.
//!
//! Numbers are formatted by hand, because `core::fmt` would be a fifth of the program.

use td_base::{board, vmcall};

/// Prints a line made of parts.
pub fn say(parts: &[Part<'_>]) {
    text(b"td-firmware: ");
    for part in parts {
        match *part {
            Part::Text(part) => text(part.as_bytes()),
            Part::Number(number) => decimal(number),
        }
    }
    text(b"\r\n");
}

/// A part of a line.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Text.
    Text(&'a str),
    /// A number.
    Number(u64),
}

/// Reports a fatal error on the console and to the host, which stops the TD.
pub fn fatal(why: &str) -> ! {
    say(&[Part::Text(why)]);
    vmcall::report_fatal_error(0, why)
}

/// A host without a serial port is tolerated.
fn text(bytes: &[u8]) {
    for byte in bytes {
        let _ = vmcall::io_out(board::SERIAL, 1, (*byte).into());
    }
}

fn decimal(number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = number;
    while at == digits.len() || left != 0 {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
    }
    text(&digits[at..]);
}

//! JSON lines on QEMU's debug console (port 0xE9): one object per line, even if several processors report at once.
#![expect(unsafe_code, reason = "writes to an I/O port")]

use core::fmt::{self, Write};

use crate::cpu;

const PORT: u16 = 0xE9;

static LOCK: spin::Mutex<()> = spin::Mutex::new(());

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the port belongs to the debug console, which only takes the byte.
            unsafe { cpu::out8(PORT, byte) };
        }
        Ok(())
    }
}

/// Text inside a JSON string.
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                ' '..='~' => f.write_char(c)?,
                _ => write!(f, "\\u{:04x}", (c as u32).min(0xFFFF))?,
            }
        }
        Ok(())
    }
}

/// Writes one object: `kind` as the value of `stub`, then `rest`, the other members in JSON.
pub fn line(kind: &str, rest: fmt::Arguments<'_>) {
    let _guard = LOCK.lock();
    let _ = writeln!(Console, r#"{{"stub":"{kind}",{rest}}}"#);
}

/// Writes one object like [`line`], in a panic: it waits for another processor's line for a limited time only.
pub fn last_line(kind: &str, rest: fmt::Arguments<'_>) {
    const PATIENCE: u32 = 100_000_000;
    let _guard = (0..PATIENCE).find_map(|_| LOCK.try_lock());
    let _ = writeln!(Console, r#"{{"stub":"{kind}",{rest}}}"#);
}

/// Reports an access that the machine does not allow.
pub fn violation(class: &str, lp: u32, rip: u64, pa: u64) {
    line(
        "violation",
        format_args!(r#""class":"{class}","lp":{lp},"rip":"{rip:#x}","pa":"{pa:#x}""#),
    );
}

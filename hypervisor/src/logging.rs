//! The log. Every record goes to the ring, and as a line to the serial port.

use alloc::vec::Vec;
use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use boot::efi;
use log::{LevelFilter, Log, Metadata};
use sync::IrqLock;

use crate::{
    cpu,
    ring::{Record, Ring},
    serial, time,
};

const RING_BYTES: usize = 128 << 10;
/// Maximum length of a message in bytes; a longer one is cut.
const LINE: usize = 1024;

static RING: IrqLock<Ring<RING_BYTES>> = IrqLock::new(Ring::new());
static TO_SERIAL: AtomicBool = AtomicBool::new(true);

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = Line::new();
        let _ = line.write_fmt(*record.args());
        let entry = Record {
            us: time::us(),
            cpu: cpu::number(),
            level: record.level(),
            target: record.target(),
            message: line.as_str(),
        };
        RING.lock().push(&entry);
        if TO_SERIAL.load(Relaxed) {
            // While the firmware runs, its console shows the line too.
            let _ = writeln!(efi::Screen, "{}", Shown(&entry));
            serial::line(format_args!("{}", Shown(&entry)));
        } else {
            cpu::wake_console();
        }
    }

    fn flush(&self) {}
}

/// Starts logging at level `info`.
pub fn init() {
    // Only a second call fails, and it changes nothing.
    let _ = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Info);
}

/// Switches log lines on the serial port, beside the ring, on or off. They are off while the console is in use.
pub fn to_serial(on: bool) {
    TO_SERIAL.store(on, Relaxed);
}

/// Passes every record that the ring still holds to `visit`, oldest first. Returns how many the ring has lost.
///
/// `visit` works on a copy, so it may log.
pub fn visit(visit: &mut dyn FnMut(&Record<'_>)) -> u64 {
    visit_from(&mut 0, visit)
}

/// Returns true if there are records beyond the first `seen`.
pub fn is_news(seen: u64) -> bool {
    RING.lock().pushed() > seen
}

/// Passes the records beyond the first `seen` that were ever logged to `visit`, and updates `seen`. Returns how many
/// records the ring has lost.
pub fn visit_from(seen: &mut u64, visit: &mut dyn FnMut(&Record<'_>)) -> u64 {
    let ring = RING.lock();
    let lost = ring.lost();
    let copies: Vec<_> = ring
        .iter()
        .skip(seen.saturating_sub(lost) as usize)
        .map(|r| {
            let mut text = alloc::string::String::with_capacity(r.target.len() + r.message.len());
            text.push_str(r.target);
            text.push_str(r.message);
            (r.us, r.cpu, r.level, r.target.len(), text)
        })
        .collect();
    *seen = ring.pushed();
    drop(ring);
    for (us, cpu, level, target_len, text) in &copies {
        let (target, message) = text.split_at(*target_len);
        visit(&Record {
            us: *us,
            cpu: *cpu,
            level: *level,
            target,
            message,
        });
    }
    lost
}

/// A record formatted as a line for people.
pub struct Shown<'a>(pub &'a Record<'a>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.0;
        let (s, us) = (r.us / 1_000_000, r.us % 1_000_000);
        // As `dmesg` shows it.
        let level = match r.level {
            log::Level::Error => "error",
            log::Level::Warn => "warn",
            log::Level::Info => "info",
            log::Level::Debug => "debug",
            log::Level::Trace => "trace",
        };
        write!(
            f,
            "[{s:5}.{us:06}] cpu{} {level:<5} {}: {}",
            r.cpu, r.target, r.message
        )
    }
}

/// One formatted message, stored without the heap.
struct Line {
    bytes: [u8; LINE],
    len: usize,
}

impl Line {
    fn new() -> Self {
        Self {
            bytes: [0; LINE],
            len: 0,
        }
    }

    fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let fits = s.floor_char_boundary(LINE - self.len);
        self.bytes[self.len..self.len + fits].copy_from_slice(&s.as_bytes()[..fits]);
        self.len += fits;
        if fits == s.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

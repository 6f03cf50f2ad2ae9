//! Panics of the monitor: reports the processor, the reason and its registers in one JSON line, then stops the machine.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;

use crate::{cpu, report};

/// Formats the executing processor's state as members of a JSON object, each after a comma. Formats nothing if the
/// processor does not run the monitor yet.
pub type Describe = fn(&mut fmt::Formatter<'_>) -> fmt::Result;

static DESCRIBE: Once<Describe> = Once::new();
static DEAD: AtomicBool = AtomicBool::new(false);

/// Installs the function that describes the executing processor in the report of a panic.
pub fn install(describe: Describe) {
    DESCRIBE.call_once(|| describe);
}

/// Returns whether a processor has panicked. The others stop at their next exit.
pub fn is_dead() -> bool {
    DEAD.load(Ordering::Relaxed)
}

/// Reports `reason` and stops this processor. The others stop at their next exit.
pub fn stop(reason: fmt::Arguments<'_>) -> ! {
    DEAD.store(true, Ordering::Relaxed);
    report::last_line(
        "panic",
        format_args!(r#""reason":"{}"{}"#, Reason(reason), Processor),
    );
    cpu::stop()
}

struct Processor;

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DESCRIBE.get() {
            Some(describe) => describe(f),
            None => Ok(()),
        }
    }
}

/// A reason inside a JSON string.
struct Reason<'a>(fmt::Arguments<'a>);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl fmt::Write for Escape<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                fmt::Display::fmt(&report::Escaped(text), self.0)
            }
        }
        fmt::write(&mut Escape(f), self.0)
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => stop(format_args!(
            "{} at {}:{}",
            info.message(),
            at.file(),
            at.line()
        )),
        None => stop(format_args!("{}", info.message())),
    }
}

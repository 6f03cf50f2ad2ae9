//! A crash: a CPU can't go on.
//!
//! The first CPU that crashes stops the others and fills the [`record::Record`], whose fixed layout and magic number a
//! debugger finds, or a search of a memory dump. The report, one line `crash: key=value ...` for each fact between
//! `crash: begin` and `crash: end`, is made in memory first. From there it goes to the places that keep it over a reset,
//! and to the serial port, in an order in which no step can cost what comes before it:
//!
//! 1. memory, then the ACPI tables' store of error records, whose operations are bounded;
//! 2. the serial port, which may be slow or stalled;
//! 3. the firmware's variables, since the firmware's code may hang or fault.
#![expect(
    unsafe_code,
    reason = "the report is written once, by the CPU that won the right to"
)]

pub mod print;
pub mod record;
pub mod stores;

use core::{
    cell::UnsafeCell,
    panic::PanicInfo,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use crashlog::text::Text;
use spin::Once;

use self::record::{MAGIC, Record};
use crate::{
    cpu::{self, check},
    exception::{Cause, Frame},
    rtc, runtime, serial, time,
};

/// Maximum time in microseconds that the report waits for the banks of other CPUs.
const BANKS_US: u64 = 500_000;

struct Place<T>(UnsafeCell<T>);

// SAFETY: written only by the one CPU that set `IN_PROGRESS`.
unsafe impl<T> Sync for Place<T> {}

static RECORD: Place<Record> = Place(UnsafeCell::new(Record::EMPTY));
static TEXT: Place<Text> = Place(UnsafeCell::new(Text::new()));
static IN_PROGRESS: AtomicBool = AtomicBool::new(false);
/// The CPU that has handed the report out, except to the firmware's code; `NOBODY` before.
static ALMOST_DONE: AtomicU32 = AtomicU32::new(NOBODY);
const NOBODY: u32 = u32::MAX;
static THEN: Once<fn() -> !> = Once::new();

/// Sets the action after a report. Without it the machine stops.
pub fn then(what: fn() -> !) {
    THEN.call_once(|| what);
}

/// Reports that the running CPU can't go on, and stops the machine.
pub fn crash(cause: Cause, frame: &Frame) -> ! {
    report(cause, frame, |_| {})
}

/// Reports a broken invariant, and stops the machine.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    let (rsp, rbp): (u64, u64);
    // SAFETY: two registers are read.
    unsafe {
        core::arch::asm!("mov {}, rsp", "mov {}, rbp", out(reg) rsp, out(reg) rbp, options(nomem, nostack));
    }
    let frame = Frame {
        rsp,
        rbp,
        ..Frame::default()
    };
    report(Cause::Panic, &frame, |record| match info.location() {
        Some(place) => {
            let (file, line) = (place.file(), place.line());
            record.set_message(format_args!("{file}:{line}: {}", info.message()));
        }
        None => record.set_message(format_args!("{}", info.message())),
    })
}

fn report(cause: Cause, frame: &Frame, complete: impl FnOnce(&mut Record)) -> ! {
    x86_64::instructions::interrupts::disable();
    if IN_PROGRESS.swap(true, Ordering::AcqRel) {
        if ALMOST_DONE.load(Ordering::Acquire) == cpu::number() {
            // The firmware's code faulted.
            end();
        }
        // Another CPU already reports, or this one failed while reporting: its lines are on the way or lost.
        cpu::stop_here();
    }
    cpu::stop_others();
    // SAFETY: this CPU alone passed the swap above.
    let (record, text) = unsafe { (&mut *RECORD.0.get(), &mut *TEXT.0.get()) };
    record.fill(cause, frame);
    complete(record);
    if print::is_hardware(cause) {
        // Each CPU that was stopped leaves its banks. One that does not is named in the report.
        check::deposit_here();
        time::wait_us(BANKS_US, || {
            cpu::all()
                .iter()
                .all(|cpu| !print::has_run(cpu) || check::banks(cpu).is_some())
        });
    }
    record.magic = MAGIC;
    print::print(record, cause, text);
    text.finish(print::END);
    let of = stores::identity(text, record.tsc, rtc::unix_seconds());
    stores::keep(of, text.as_bytes());
    serial::last_words(|out| {
        let _ = out
            .write_str("\n")
            .and_then(|()| out.write_str(text.as_str()));
    });
    runtime::let_faults_be_fatal();
    ALMOST_DONE.store(cpu::number(), Ordering::Release);
    stores::keep_in_variables(of, text.as_bytes());
    end()
}

fn end() -> ! {
    match THEN.get() {
        Some(then) => then(),
        None => cpu::stop_here(),
    }
}

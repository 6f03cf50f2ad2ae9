//! The serial console: the driver of [`uart`] on this machine's port.
//!
//! The port's interrupt, or the timer of the CPU that the console runs on, drains the output. Until one of them works,
//! whoever writes a line sends it ([`drained`]).

mod choice;
mod wire;

use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use boot::efi;
use config::ConsolePort;
use sync::IrqLock;
use uart::{Access, Patience, is_present};

pub use self::choice::Choice;
use self::wire::Wire;
use crate::{
    firmware::spcr::{Place, Spcr},
    memory, time, watchdog,
};

/// Size of the ring of output in bytes: more than the longest reply, a log of 128 KiB as JSON.
const OUT: usize = 512 << 10;
/// Size of the ring of input in bytes: a script of some hundred lines.
const IN: usize = 16 << 10;
/// The bounds of a crash report.
const PATIENCE: Patience = Patience {
    silence_us: 2_000_000,
    total_us: 60_000_000,
};
/// Time in microseconds within which an interrupt that works comes.
const INTERRUPT_US: u64 = 200_000;
/// Interval in microseconds at which the console's loop runs at least.
const LOOP_US: u64 = 250_000;

type Port = uart::Port<Wire, OUT, IN>;

static PORT: IrqLock<Port> = IrqLock::new(Port::new());
static CHOICE: IrqLock<Option<Choice>> = IrqLock::new(None);
/// True once something besides the writers drains the output.
static DRAINED: AtomicBool = AtomicBool::new(false);
/// Number of the port's interrupts.
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);
/// The time of the last poll that woke the console's loop.
static LOOPED_US: AtomicU64 = AtomicU64::new(0);

/// The port's owner.
struct Owner;

impl Access<Wire, OUT, IN> for Owner {
    fn section<T>(&self, work: impl FnOnce(&mut Port) -> T) -> T {
        work(&mut PORT.lock())
    }

    fn now_us(&self) -> u64 {
        time::us()
    }

    fn pause(&self) {
        watchdog::feed();
        core::hint::spin_loop();
    }
}

/// Chooses the console's port while the firmware runs. Returns `None` if there is none; output is discarded then.
/// Ports in memory are believed: whether they can be reached is not known yet.
pub fn choose(spcr: Option<Spcr>, config: Option<ConsolePort>) -> Option<Choice> {
    let found = choice::candidates(spcr, config).find(|choice| match choice.place {
        Place::Io(_) => wire(choice.place).is_some_and(|mut wire| is_present(&mut wire)),
        Place::Memory { .. } => true,
    });
    *CHOICE.lock() = found;
    found
}

/// Opens the chosen port, or says why it can't be used and opens COM1 or COM2. A port in memory must be opened after
/// [`memory::init`]; an earlier call leaves it closed.
pub fn open() {
    let Some(choice) = *CHOICE.lock() else { return };
    if is_open() || (matches!(choice.place, Place::Memory { .. }) && !memory::is_ready()) {
        return;
    }
    if attach(choice) {
        return;
    }
    let other = choice::candidates(None, None).find(|choice| attach(*choice));
    if let Some(other) = other {
        *CHOICE.lock() = Some(other);
        log::warn!("{choice} does not answer: the console is {other}");
    }
}

fn is_open() -> bool {
    Wire::current().is_some()
}

fn attach(choice: Choice) -> bool {
    let Some(wire) = wire(choice.place) else {
        return false;
    };
    let now_us = time::us();
    let attached = PORT.lock().attach(wire, choice.baud, now_us).is_ok();
    if attached {
        wire.make_current();
    }
    attached
}

fn wire(place: Place) -> Option<Wire> {
    #[expect(unsafe_code, reason = "the place of the registers is trusted")]
    // SAFETY: the firmware or the operator says that a serial port is there, or PCs have one there; this driver alone
    // uses it. Windows stay mapped.
    unsafe {
        Wire::at(place, |pa, bytes| memory::window(pa, bytes).ok())
    }
}

/// Returns the port that was chosen.
#[must_use]
pub fn chosen() -> Option<Choice> {
    *CHOICE.lock()
}

/// Finds out whether the port's interrupt comes, by letting an empty transmitter interrupt. Interrupts must be on, and
/// the interrupt routed. The port uses its interrupts from now on if it does.
pub fn try_interrupts() -> bool {
    uart::settle(&Owner);
    let before = INTERRUPTS.load(Relaxed);
    let came = || INTERRUPTS.load(Relaxed) != before;
    PORT.lock().test_interrupt();
    let works = time::wait_us(INTERRUPT_US, came) || came();
    PORT.lock().use_interrupts(works, time::us());
    works
}

/// Notes that something besides the writers drains the output from now on.
pub fn drained() {
    DRAINED.store(true, Relaxed);
}

/// Serves the port's interrupt. Returns true if the console's loop has work.
pub fn on_interrupt() -> bool {
    INTERRUPTS.fetch_add(1, Relaxed);
    serve()
}

/// Serves the polling timer. Returns true if the console's loop must run, and the microseconds until the next poll.
pub fn on_poll() -> (bool, u64) {
    let news = serve();
    let now_us = time::us();
    let due = now_us.saturating_sub(LOOPED_US.load(Relaxed)) >= LOOP_US;
    if news || due {
        LOOPED_US.store(now_us, Relaxed);
    }
    (news || due, PORT.lock().poll_us())
}

/// Serves the port once. Returns true if input can be processed, or output has room again.
pub fn serve() -> bool {
    let now_us = time::us();
    let mut port = PORT.lock();
    let had_room = port.has_room(now_us);
    let input = port.serve(now_us);
    port.has_room(now_us) && (input || !had_room)
}

/// Returns true if the output has room for the reply to a command.
pub fn has_room() -> bool {
    PORT.lock().has_room(time::us())
}

/// Returns true if received bytes are waiting.
pub fn has_input() -> bool {
    PORT.lock().serve(time::us())
}

/// Takes the next received byte.
pub fn receive() -> Option<u8> {
    PORT.lock().receive(time::us())
}

/// Returns how often received bytes were lost in the port.
pub fn overruns() -> u64 {
    PORT.lock().overruns()
}

/// Sends the output that waits, unless the port is stalled.
pub fn settle() {
    uart::settle(&Owner);
}

/// Prints a line of text that lines of other CPUs do not interrupt.
pub fn line(text: fmt::Arguments<'_>) {
    let _ = writeln!(Text(&mut PORT.lock()), "{text}");
    if !DRAINED.load(Relaxed) {
        settle();
    }
}

/// Output as text: a line ends with CR and LF.
struct Text<'a>(&'a mut Port);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let now_us = time::us();
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(text) => {
                    self.0.push(text.as_bytes(), now_us);
                    self.0.push(b"\r\n", now_us);
                }
                None => self.0.push(line.as_bytes(), now_us),
            }
        }
        Ok(())
    }
}

/// The port for bytes that go to a terminal unchanged. It waits for room while the port makes progress.
pub struct Terminal;

impl Write for Terminal {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        uart::write(&Owner, text.as_bytes());
        Ok(())
    }
}

/// Sends the text that `report` writes, after the newest output that waits. Other CPUs have been stopped, and one of
/// them may hold the port's lock. While the firmware runs, the report goes to its console.
pub fn last_words(report: impl FnOnce(&mut dyn Write)) {
    let Some(wire) = Wire::current() else {
        report(&mut efi::Screen);
        return;
    };
    let mut port = None;
    time::wait_us(200_000, || {
        port = PORT.try_lock();
        port.is_some()
    });
    match port {
        Some(mut port) => uart::finish(&mut *port, PATIENCE, &mut time::us, report),
        None => {
            let mut port = uart::Port::<Wire, 1024, 16>::new();
            port.take_over(wire, time::us());
            uart::finish(&mut port, PATIENCE, &mut time::us, report);
        }
    }
}

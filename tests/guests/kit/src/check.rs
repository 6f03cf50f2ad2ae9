//! Checks and their output: `ok NAME`, `FAIL NAME: why`, and at the end `GUEST: N passed, N failed`.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use arrayvec::ArrayString;
use spin::Mutex;

use crate::{console, say, vcpu, vmcall};

/// Maximum length of a reason in bytes.
const MOST: usize = 112;

/// The reason why a check failed, in few words.
#[derive(Clone, Copy, Debug)]
pub struct Failure(ArrayString<MOST>);

impl Failure {
    /// Creates a reason. Text that does not fit is cut off.
    pub fn new(why: fmt::Arguments<'_>) -> Self {
        struct Cut(ArrayString<MOST>);
        impl fmt::Write for Cut {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for letter in text.chars() {
                    self.0.try_push(letter).map_err(|_| fmt::Error)?;
                }
                Ok(())
            }
        }
        let mut text = Cut(ArrayString::new());
        let _ = fmt::Write::write_fmt(&mut text, why);
        Self(text.0)
    }
}

/// The outcome of a check.
pub type Check = Result<(), Failure>;

/// Returns a failed check, with the arguments of `format!`.
#[macro_export]
macro_rules! fail {
    ($($arguments:tt)*) => {
        Err($crate::check::Failure::new(format_args!($($arguments)*)))
    };
}

/// Fails with the arguments of `format!` unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($arguments:tt)*) => {
        if !$condition {
            return $crate::fail!($($arguments)*);
        }
    };
}

/// Fails unless `found` is `expected`.
///
/// # Errors
/// Both values, with `what` they belong to.
pub fn expect(what: &str, found: u64, expected: u64) -> Check {
    ensure!(found == expected, "{what} is {found:#x}, not {expected:#x}");
    Ok(())
}

/// The tally of a guest.
#[derive(Debug, Default)]
pub struct Checks {
    passed: u32,
    failed: u32,
}

/// The current check of [`each`], a `fn() -> Check`; and its first failure, with the vCPU.
static CHECK: AtomicUsize = AtomicUsize::new(0);
static FIRST: Mutex<Option<(u32, Failure)>> = Mutex::new(None);

impl Checks {
    /// Runs a check on this vCPU.
    pub fn once(&mut self, name: &str, check: fn() -> Check) {
        match check() {
            Ok(()) => self.pass(name),
            Err(Failure(why)) => self.fail(name, format_args!("{why}")),
        }
    }

    /// Runs a check on every vCPU, one after the other.
    pub fn each(&mut self, name: &str, check: fn() -> Check) {
        self.run(name, check, || {
            (0..vcpu::count()).for_each(|index| vcpu::on(index, perform));
        });
    }

    /// Runs a check on every vCPU at the same time.
    pub fn together(&mut self, name: &str, check: fn() -> Check) {
        self.run(name, check, || vcpu::on_all(perform));
    }

    fn run(&mut self, name: &str, check: fn() -> Check, run: impl FnOnce()) {
        CHECK.store(check as usize, Ordering::Release);
        run();
        match FIRST.lock().take() {
            None => self.pass(name),
            Some((index, Failure(why))) => self.fail(name, format_args!("vCPU {index}: {why}")),
        }
    }

    fn pass(&mut self, name: &str) {
        self.passed += 1;
        say!("ok {name}");
    }

    fn fail(&mut self, name: &str, why: fmt::Arguments<'_>) {
        self.failed += 1;
        say!("FAIL {name}: {why}");
    }
}

/// Performs the check on this vCPU.
#[expect(unsafe_code, reason = "passes a function between vCPUs as a number")]
fn perform() {
    // SAFETY: `run` stored a function of this type before it called any vCPU.
    let check =
        unsafe { core::mem::transmute::<usize, fn() -> Check>(CHECK.load(Ordering::Acquire)) };
    if let Err(why) = check() {
        FIRST.lock().get_or_insert((vcpu::current().index(), why));
    }
}

/// Runs a guest: its checks, the tally, and its end.
pub fn run(name: &str, main: fn(&mut Checks), end: fn() -> !) -> ! {
    say!("{name}: start");
    let mut checks = Checks::default();
    main(&mut checks);
    say!("{name}: {} passed, {} failed", checks.passed, checks.failed);
    end()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::last_words(format_args!("FAIL panic: {info}"));
    vmcall::report_fatal_error(0, "panic")
}

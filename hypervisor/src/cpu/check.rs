//! Machine checks on this machine's CPUs: initialisation, the handler, and the collection of corrected errors.
//!
//! The crate `mca` decides; this module reads and writes the registers. Handlers take no lock and allocate nothing.
//! Each CPU judges its own banks. The first that finds a fatal error stops the others by NMI, and each of them leaves
//! its banks for the report ([`banks`]).
#![expect(unsafe_code, reason = "the machine-check registers are MSRs")]

use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use mca::{
    Msrs,
    books::Books,
    cper::Severity,
    decide::{Next, Place, decide},
    deposit::Deposit,
    scan::{self, Banks, Scan},
    verdict::{Occasion, Why},
};
use seam::abi::x86::msr::{mc, x2apic::LVT_CMCI};

use super::{Cpu, fatal::fatal, ghes, speculation, timer, vector::CMCI_VECTOR};
use crate::{
    exception::{Cause, Frame},
    msr, time,
};

/// One CPU's machine checks.
#[derive(Debug, Default)]
pub struct Checks {
    /// The errors of the CPU's banks.
    pub books: Books,
    deposit: Deposit,
    has_banks: AtomicBool,
    is_local: AtomicBool,
    signalling: AtomicU32,
    /// The time at which corrected-error interrupts were counted from, and their number since.
    storm: (AtomicU64, AtomicU32),
    /// The number of the last error that was logged.
    pub logged: AtomicU32,
}

/// The way in which a CPU hears of its errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reporting {
    /// Machine checks reach the affected CPU alone.
    pub is_local: bool,
    /// Banks that signal corrected errors by an interrupt. All others are looked at by the timer.
    pub signalling: Banks,
}

impl Checks {
    /// Returns how the CPU hears of its errors. `None` before its start, or without a machine-check architecture.
    #[must_use]
    pub fn reporting(&self) -> Option<Reporting> {
        self.has_banks.load(Relaxed).then(|| Reporting {
            is_local: self.is_local.load(Relaxed),
            signalling: Banks(self.signalling.load(Relaxed)),
        })
    }
}

static FIRMWARE_FIRST: AtomicU32 = AtomicU32::new(0);
/// The reason why the machine stopped, as its place in [`Why::ALL`] plus one; 0 without one.
static STOPPED_BY: AtomicU8 = AtomicU8::new(0);

/// Period of the look at the banks in microseconds.
const PERIOD_US: u64 = 30_000_000;
/// Number of corrected-error interrupts of a CPU in one second from which on they are switched off.
const STORM: u32 = 16;

/// This CPU's machine-check registers.
struct Here;

impl Msrs for Here {
    fn read(&self, msr: u32) -> Option<u64> {
        msr::read(msr)
    }

    fn write(&self, msr: u32, value: u64) -> bool {
        let is_ours = matches!(msr, mc::MCG_STATUS | mc::MCG_CTL | mc::MCG_EXT_CTL)
            || (mc::MC0_CTL2..mc::MC0_CTL2 + 32).contains(&msr)
            || (mc::MC0_CTL..mc::MC0_CTL + 4 * 32).contains(&msr);
        // SAFETY: these registers only hold and report errors.
        is_ours && unsafe { msr::try_write(msr, value) }.is_ok()
    }
}

/// Sets what CPUs need to know before they start: the banks that the firmware handles first, and the bits of an
/// address that hold a KeyID.
pub fn prepare(firmware_first: Banks, key_id_bits: u64) {
    FIRMWARE_FIRST.store(firmware_first.0, Relaxed);
    super::KEY_ID_BITS.store(key_id_bits, Relaxed);
}

/// Initialises the running CPU's banks. Errors from before are entered in its books.
pub fn start_here(cpu: &Cpu) {
    const MACHINE_CHECKS: u32 = 1 << 7 | 1 << 14;
    if core::arch::x86_64::__cpuid(1).edx & MACHINE_CHECKS != MACHINE_CHECKS {
        return;
    }
    let checks = &cpu.checks;
    let started = scan::start(&Here, Banks(FIRMWARE_FIRST.load(Relaxed)));
    enter(checks, &started.stale, Occasion::Start);
    checks.is_local.store(started.is_local, Relaxed);
    checks.has_banks.store(true, Relaxed);
    if super::interrupts() {
        listen(checks, started.signalling);
    } else {
        scan::silence(&Here, started.signalling);
    }
    timer::look_at(next_look());
}

/// Routes the corrected-error interrupt to this CPU.
fn listen(checks: &Checks, signalling: Banks) {
    if signalling == Banks::default() {
        return;
    }
    // SAFETY: the vector has a handler.
    let routed = unsafe { msr::try_write(LVT_CMCI, u64::from(CMCI_VECTOR)) };
    match routed {
        Ok(()) => checks.signalling.store(signalling.0, Relaxed),
        Err(_) => scan::silence(&Here, signalling),
    }
}

fn next_look() -> u64 {
    time::tsc().saturating_add(time::hz() / 1_000_000 * PERIOD_US)
}

/// Enters errors in the books, and lists the pages whose data is lost.
fn enter(checks: &Checks, scan: &Scan, occasion: Occasion) {
    for (reading, verdict) in scan.judged(occasion) {
        checks.books.enter(time::tsc(), reading, verdict, occasion);
        // Memory that was lost before the reset belongs to nobody any more.
        if verdict.is_loss()
            && occasion != Occasion::Start
            && reading.status.code().is_memory()
            && let Some(page) = reading.page(super::KEY_ID_BITS.load(Relaxed))
        {
            super::lose_page(page);
        }
    }
    if !scan.readings.is_empty() {
        super::call_console();
    }
}

/// Serves a machine check on this CPU.
#[must_use]
pub fn serve(place: Place) -> Next {
    let scan = Scan::take(&Here);
    let next = decide(&scan, place);
    if let Some(cpu) = super::this() {
        cpu.checks.deposit.put(&scan);
        cpu.checks.books.count_machine_check();
        enter(&cpu.checks, &scan, Occasion::MachineCheck);
    }
    if let Next::Stop(why) = next {
        let number = Why::ALL.iter().position(|known| *known == why);
        let code = number.map_or(0, |number| number as u8 + 1);
        // The first reason is the report's.
        let _ = STOPPED_BY.compare_exchange(0, code, SeqCst, SeqCst);
        return next;
    }
    scan.clear(&Here, Occasion::MachineCheck);
    if let Some(cpu) = super::this() {
        cpu.checks.deposit.clear();
    }
    scan.end_machine_check(&Here);
    next
}

/// Returns the reason why a machine check stopped the machine.
#[must_use]
pub fn stopped_by() -> Option<Why> {
    let number = usize::from(STOPPED_BY.load(SeqCst));
    Why::ALL.get(number.checked_sub(1)?).copied()
}

/// Looks at this CPU's banks for errors that no machine check signalled. Call it with interrupts off.
pub fn look_here() {
    let Some(cpu) = super::this() else { return };
    if !cpu.checks.has_banks.load(Relaxed) {
        return;
    }
    let scan = Scan::of(&Here, Banks(!FIRMWARE_FIRST.load(Relaxed)));
    enter(&cpu.checks, &scan, Occasion::Poll);
    scan.clear(&Here, Occasion::Poll);
}

/// Serves the timer's look at the banks.
pub(super) fn on_timer() {
    look_here();
    if let Some(cpu) = super::this() {
        speculation::check_here(cpu);
    }
    if super::number() == 0 {
        look_at_firmware();
    }
    timer::look_at(next_look());
}

/// Looks for records of the firmware. A fatal one stops the machine.
pub fn look_at_firmware() {
    match ghes::look() {
        Some(Severity::Fatal) => fatal(Cause::Firmware, &Frame::default()),
        Some(_) => super::call_console(),
        None => {}
    }
}

/// Looks at the banks if the timer's look is due, on a CPU whose timer can't interrupt it.
pub fn look_if_due() {
    if super::interrupts() {
        return;
    }
    if timer::look_is_due() {
        on_timer();
    }
}

/// Serves the corrected-error interrupt. In a storm of them, the banks stop signalling and the timer looks at them.
pub(super) fn on_signal() {
    let Some(cpu) = super::this() else { return };
    let checks = &cpu.checks;
    checks.books.count_signal();
    look_here();
    let now = time::tsc();
    let (since, count) = &checks.storm;
    if now.saturating_sub(since.load(Relaxed)) > time::hz() {
        since.store(now, Relaxed);
        count.store(0, Relaxed);
    }
    if count.fetch_add(1, Relaxed) + 1 >= STORM {
        let signalling = Banks(checks.signalling.swap(0, Relaxed));
        scan::silence(&Here, signalling);
    }
}

/// Leaves this CPU's banks for the report of the CPU that stops it.
pub fn deposit_here() {
    if let Some(cpu) = super::this() {
        cpu.checks.deposit.put(&Scan::take(&Here));
    }
}

/// Returns a CPU's banks as it left them for the report.
#[must_use]
pub fn banks(cpu: &Cpu) -> Option<Scan> {
    cpu.checks.deposit.get()
}

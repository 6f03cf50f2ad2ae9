//! NMIs: those by which this program stops its CPUs, and foreign ones, which are looked into and follow the
//! operator's policy.
#![expect(unsafe_code, reason = "the NMI status register is an I/O port")]

use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use mca::nmi::{self, Source};
use x86_64::instructions::port::Port;

use super::{check, ghes};

static HALTS: AtomicBool = AtomicBool::new(true);
/// Counts by source, in the order of [`Source::ALL`].
static COUNTS: [AtomicU64; Source::ALL.len()] = [const { AtomicU64::new(0) }; Source::ALL.len()];
/// The source of the NMI that stopped the machine, as its place in [`Source::ALL`] plus one.
static STOPPED_BY: AtomicU8 = AtomicU8::new(0);
/// True while a CPU looks at the chipset's register.
static LOOKING: AtomicBool = AtomicBool::new(false);

/// Sets the policy: whether a foreign NMI stops the machine.
pub fn set_policy(halts: bool) {
    HALTS.store(halts, Relaxed);
}

/// Returns the number of foreign NMIs by source.
#[must_use]
pub fn counts() -> [(Source, u64); Source::ALL.len()] {
    core::array::from_fn(|i| (Source::ALL[i], COUNTS[i].load(Relaxed)))
}

/// Returns the source of the NMI that stopped the machine.
#[must_use]
pub fn stopped_by() -> Option<Source> {
    let number = usize::from(STOPPED_BY.load(SeqCst));
    Source::ALL.get(number.checked_sub(1)?).copied()
}

/// Serves an NMI on this CPU. Returns `true` if the machine must stop.
#[must_use]
pub(super) fn serve() -> bool {
    if super::stopping() {
        check::deposit_here();
        super::stop_here();
    }
    let record = ghes::look_at_nmi();
    let source = Source::of(record, take_status());
    let index = source as usize;
    COUNTS[index].fetch_add(1, Relaxed);
    if nmi::must_stop(record, HALTS.load(Relaxed)) {
        let _ = STOPPED_BY.compare_exchange(0, index as u8 + 1, SeqCst, SeqCst);
        check::deposit_here();
        return true;
    }
    super::call_console();
    false
}

/// Reads the chipset's status, and lets its sources raise the next NMI. An NMI reaches one CPU or all at once; the
/// first reads the status for all.
fn take_status() -> u8 {
    if LOOKING.swap(true, SeqCst) {
        return 0;
    }
    let mut port = Port::<u8>::new(nmi::PORT);
    // SAFETY: every PC has this register. A read has no effect, and the writes change its NMI sources alone.
    let status = unsafe {
        let status = port.read();
        for value in nmi::rearm(status).into_iter().flatten() {
            port.write(value);
        }
        status
    };
    LOOKING.store(false, SeqCst);
    status
}

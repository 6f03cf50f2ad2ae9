//! Presence of processors: tracks which of them may access the host's memory, and waits until each has seen a change of
//! its mapping.
//!
//! A processor accesses the host's memory through its TLB while it executes the software, and by its earlier checks
//! while the monitor emulates an instruction on it. Each change of the access rights starts an epoch. A processor notes
//! the epoch in which it started to execute or to emulate. The processor that made the change waits for those that are
//! still in an older epoch, and makes them exit the software by an NMI.

use core::sync::atomic::{AtomicU64, Ordering};

use super::panic;
use super::shared::Shared;
use crate::cpu;

/// The longest time that a processor may take to leave the software, in seconds. An exit can take 20 milliseconds, and
/// many processors may share one of the computer beneath.
pub const PATIENCE: u64 = 60;

/// The processors that a change of the mapping waits for.
#[derive(Clone, Copy)]
pub struct Processors<'a> {
    /// All processors by number.
    pub all: &'a [Shared],
    /// The number of the one that makes the change.
    pub own: u32,
    /// [`PATIENCE`] in ticks of the time-stamp counter.
    pub patience: u64,
}

/// Number of changes. It starts at zero, so that it lies among the data that every exit uses.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// Returns the epoch. It is never 0, the value of [`AWAY`].
pub fn epoch() -> u64 {
    CHANGES.load(Ordering::SeqCst) + 1
}

/// The processors by number. An APIC id of 8 bits allows no more.
static PRESENCES: [Presence; 256] = [const { Presence(AtomicU64::new(AWAY)) }; 256];

/// The presence of a processor: away from the host's memory, or the epoch since which it has been handling an exit or
/// executing the software.
#[derive(Debug)]
pub struct Presence(AtomicU64);

const AWAY: u64 = 0;
const EXECUTING: u64 = 1;

fn handling(epoch: u64) -> u64 {
    epoch << 1
}

impl Presence {
    /// Marks the processor as away from the software: it is in SEAM, or waits for its start.
    pub fn leave(&self) {
        self.0.store(AWAY, Ordering::SeqCst);
    }

    /// Marks the processor as handling an exit.
    pub fn handle(&self) {
        self.0.store(handling(epoch()), Ordering::SeqCst);
    }

    /// Marks the processor as executing the software since `epoch`.
    pub fn execute(&self, epoch: u64) {
        self.0.store(handling(epoch) | EXECUTING, Ordering::SeqCst);
    }
}

/// Returns the presence of processor `number`.
pub fn of(number: u32) -> &'static Presence {
    &PRESENCES[usize::from(number as u8)]
}

/// Waits until no other processor relies on anything older than this call: those that handle an exit and, if TLBs may
/// hold old translations (`stale`), those that execute the software.
pub fn settle(processors: Processors<'_>, stale: bool) {
    let own = of(processors.own);
    // A waiting processor does nothing for the software either. Two processors may wait for each other.
    let before = own.0.swap(AWAY, Ordering::SeqCst);
    let epoch = CHANGES.fetch_add(1, Ordering::SeqCst) + 2;
    for (other, shared) in (0..).zip(processors.all) {
        if other == processors.own {
            continue;
        }
        let start = cpu::rdtsc();
        let mut kicked = false;
        loop {
            let at = of(other).0.load(Ordering::SeqCst);
            let executing = at & EXECUTING != 0;
            if at == AWAY || at >= handling(epoch) || executing && !stale {
                break;
            }
            if executing && !kicked {
                shared.kick();
                kicked = true;
            }
            if panic::is_dead() {
                cpu::stop();
            }
            if cpu::rdtsc().wrapping_sub(start) > processors.patience {
                panic::stop(format_args!(
                    "processor {other} did not leave the software within {PATIENCE} s after a change of its memory"
                ));
            }
            core::hint::spin_loop();
        }
    }
    if before != AWAY {
        own.handle();
    }
}

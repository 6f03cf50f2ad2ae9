//! Where every processor is, as far as the host's memory is concerned; and waiting until each has seen that it changed.
//!
//! A processor reaches the host's memory when it executes the software, by what its TLB holds, and when the monitor
//! emulates an instruction on it, by what it has checked. Each change of who may reach what begins an epoch; a
//! processor notes the epoch in which it began either. The one that made the change waits for those that are still in an
//! older one, and drives them out of the software by an NMI.

use core::sync::atomic::{AtomicU64, Ordering};

use super::lp::Lp;
use super::{panic, world};
use crate::cpu;

/// How long a processor may take to leave the software, in seconds. An exit can take 20 milliseconds, and many
/// processors may share one of the computer beneath.
const PATIENCE: u64 = 60;

/// How many changes there were. Zero at first, so that it lies among what every exit looks at.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// The epoch: never 0, which would be [`AWAY`].
fn epoch() -> u64 {
    CHANGES.load(Ordering::SeqCst) + 1
}

/// The processors by their numbers, of which no more fit into an APIC id of 8 bits.
static PRESENCES: [Presence; 256] = [const { Presence(AtomicU64::new(AWAY)) }; 256];

/// Where a processor is: away from the host's memory, or since which epoch it has been handling an exit, or executing
/// the software.
#[derive(Debug)]
pub struct Presence(AtomicU64);

const AWAY: u64 = 0;
const EXECUTING: u64 = 1;

fn handling(epoch: u64) -> u64 {
    epoch << 1
}

impl Presence {
    /// The processor does nothing for the software from here on: it is in SEAM, or waits for its start.
    pub fn leave(&self) {
        self.0.store(AWAY, Ordering::SeqCst);
    }

    /// The processor handles an exit.
    pub fn handle(&self) {
        self.0.store(handling(epoch()), Ordering::SeqCst);
    }

    fn execute(&self, epoch: u64) {
        self.0.store(handling(epoch) | EXECUTING, Ordering::SeqCst);
    }
}

/// Where processor `number` is.
pub fn of(number: u32) -> &'static Presence {
    &PRESENCES[usize::from(number as u8)]
}

/// To be called before the software is entered on `lp`.
#[inline(always)]
pub fn enter(lp: &mut Lp) {
    if lp.is_parked() {
        of(lp.number).leave();
        return;
    }
    let epoch = epoch();
    if epoch != lp.epoch {
        begin_epoch(lp, epoch);
    }
    of(lp.number).execute(epoch);
}

#[inline(never)]
fn begin_epoch(lp: &mut Lp, epoch: u64) {
    lp.epoch = epoch;
    lp.vmcb.tlb_control = 1;
    lp.detour.refresh(world::get().npt.address());
}

/// To be called when the software was left on `lp`.
pub fn exit(lp: &Lp) {
    of(lp.number).handle();
}

/// Waits until no other processor goes by anything older than this call: those that handle an exit, and, where TLBs may
/// hold what has changed (`stale`), those that execute the software.
pub fn settle(number: u32, stale: bool) {
    let world = world::get();
    let own = of(number);
    // While this one waits it does nothing for the software either; two may be waiting for each other.
    let before = own.0.swap(AWAY, Ordering::SeqCst);
    let epoch = CHANGES.fetch_add(1, Ordering::SeqCst) + 2;
    for (other, shared) in (0..).zip(&world.lps) {
        if other == number {
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
            if world::is_dead() {
                cpu::stop();
            }
            if cpu::rdtsc().wrapping_sub(start) > PATIENCE.saturating_mul(world.tsc_hz) {
                panic::stop(format_args!(
                    "processor {other} does not see that memory was taken from the software"
                ));
            }
            core::hint::spin_loop();
        }
    }
    if before != AWAY {
        own.handle();
    }
}

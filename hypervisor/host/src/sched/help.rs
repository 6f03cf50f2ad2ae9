//! Work of a TD's devices that a CPU does which has nothing else to do.
//!
//! A vCPU's CPU does a few parts between two entries, and offers the rest. The CPU that takes the offer works on, part by
//! part, while nothing wants it: no vCPU is ready for it, nobody pokes it, and its turn is not over. The TD pays for the
//! time as for that of its vCPUs.
//!
//! A CPU that helps keeps the guest's record alive, but not the TD. It works only while the TD is runnable, and holds for
//! each part what a vCPU's CPU holds: the lock of one function, and the shared memory's for reading. The CPU that ends the
//! TD changes its state first, then locks each function to retire it, then locks the shared memory for writing to free it
//! ([`super::runner`]): it waits for one part at most, and what comes after finds no function that works and no page.

use alloc::sync::Arc;

use sync::IrqsOff;
use vcpu::Waker;

use super::{
    Scheduler,
    guest::{Guest, Offer},
    poke,
};
use crate::{platform::Running, td::life::State};

/// Microseconds after which an offer is withdrawn that was not taken. A halted CPU wakes in less.
const PATIENCE_US: u64 = 2_000;

impl<P: Running> Scheduler<'_, P> {
    /// Works for the devices of a TD whose CPU has offered that, for at most a time slice. A CPU calls this when it has nothing
    /// else to do. Returns `false` if there is no offer; other CPUs find the CPU idle from then on, until it calls
    /// [`Self::schedule`].
    pub fn help(&self) -> bool {
        let _off = IrqsOff::new();
        let cpu = self.platform.this_cpu();
        let Some(guest) = self.idle.take(cpu) else {
            if self.helps {
                self.idle.enter(cpu);
            }
            return false;
        };
        self.work_for(&guest, cpu);
        true
    }

    /// Offers the work of a guest's devices to an idle CPU.
    pub(super) fn offer(&self, guest: &Arc<Guest>, from: u32) {
        // Another vCPU's CPU offers it just now, or it can't be done now.
        let Some(mut offered) = guest.offered.try_lock() else {
            return;
        };
        if !guest.vm().devices().pci().has_work() || guest.vm().is_converting() {
            return;
        }
        let now = self.platform.tsc();
        let waits = |offer: &Offer| self.idle.is_offered(guest, offer.to);
        if let Some(offer) = offered.filter(waits) {
            let patience = PATIENCE_US * self.platform.tsc_hz() / 1_000_000;
            if now.saturating_sub(offer.at) < patience {
                return;
            }
            self.idle.withdraw(guest, offer.to);
        }
        let to = self.idle.offer(guest, from);
        *offered = to.map(|to| Offer { to, at: now });
        if let Some(cpu) = to {
            poke(self.platform, cpu);
        }
    }

    fn work_for(&self, guest: &Guest, cpu: u32) {
        let platform = self.platform;
        let begin = platform.tsc();
        let turn = self.with_queue(|scheduled| scheduled.queue.turn(guest.id(), begin));
        let attention = platform.attention(cpu);
        let waker = Waker::new(guest.vm(), self);
        vcpu::help_devices(waker, platform, || {
            platform.take_interrupts();
            let is_over = platform.tsc() - begin >= turn;
            !is_over && !attention.is_any() && is_runnable(guest)
        });
        let spent = platform.tsc() - begin;
        guest.note_help(spent);
        self.with_queue(|scheduled| scheduled.queue.charge(guest.id(), spent));
    }

    /// Returns the microseconds that CPUs which did not run its vCPUs have worked for a TD's devices in this life.
    #[must_use]
    pub fn helped_us(&self, id: u32) -> u64 {
        let helped = self.guest(id).map_or(0, |guest| guest.helped());
        let hz = u128::from(self.platform.tsc_hz().max(1));
        (u128::from(helped) * 1_000_000 / hz) as u64
    }
}

fn is_runnable(guest: &Guest) -> bool {
    let td = guest.td();
    guest.vm().end().is_none() && td.is_some_and(|td| td.state() == State::Runnable)
}

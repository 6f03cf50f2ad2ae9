//! A page that is blocked, tracked, kicked out of every TLB and removed, again and again, while vCPUs use it: no access gets
//! through afterwards.

use core::sync::atomic::Ordering;

use seam::abi::PAGE_4K;

use super::Host;
use crate::attempt::{read, write};
use crate::cpu::sleep_while;
use crate::{Check, expect};

/// Rounds.
const ROUNDS: u64 = 10_000;

/// Accesses that a vCPU tries after each removal: the first may have been before it.
const TRIES: u64 = 2;

/// The states of the target.
mod state {
    /// Blocked, or about to be.
    pub const LEAVING: u64 = 0;
    /// Gone: its page is the host's.
    pub const REMOVED: u64 = 1;
    /// The guest's, to be accepted.
    pub const MAPPED: u64 = 2;
}

/// Words of the page that host and guest share.
mod word {
    pub const STOP: u64 = 0;
    /// The number of writes to the target by each vCPU.
    pub const WRITTEN: u64 = 8;
}

impl Host {
    /// The page that is hammered; an address that is none as long as there is none.
    pub fn target(&self) -> u64 {
        match self.target.load(Ordering::SeqCst) {
            0 => u64::MAX,
            gpa => gpa,
        }
    }

    /// Makes it known what the target is now. Processors that wait for that sleep.
    fn set_target_state(&self, state: u64) {
        self.target_state.store(state, Ordering::SeqCst);
        self.wake_all();
    }

    /// A vCPU has found the target away. While it is on its way out, the vCPU waits; when it is gone, it tries again, twice
    /// a round, and then waits for the next page. Always true: it is to be entered again.
    pub fn target_missed(&self, number: usize) -> bool {
        let seat = &self.seats[number];
        loop {
            match self.target_state.load(Ordering::SeqCst) {
                state::REMOVED => {
                    let round = self.round.load(Ordering::SeqCst);
                    if seat.tried_in.swap(round, Ordering::SeqCst) != round {
                        seat.tries.store(0, Ordering::SeqCst);
                    }
                    if seat.tries.fetch_add(1, Ordering::SeqCst) < TRIES {
                        seat.faults.fetch_add(1, Ordering::SeqCst);
                        return true;
                    }
                    self.sleep_while(state::REMOVED);
                }
                state::MAPPED => return true,
                state => self.sleep_while(state),
            }
            if self.is_over() {
                return true;
            }
        }
    }
}

impl Host {
    fn sleep_while(&self, state: u64) {
        sleep_while(|| self.target_state.load(Ordering::SeqCst) == state && !self.is_over());
    }
}

/// The scenario.
pub fn run(host: &Host) -> Check {
    host.wait_running("the guest's page", || {
        host.mailbox.load(Ordering::SeqCst) != 0 && host.target.load(Ordering::SeqCst) != 0
    })?;
    let mailbox = host.mailbox.load(Ordering::SeqCst);
    let gpa = host.target();
    let spare = [host.spare_page(), host.spare_page()];
    let vcpus = host.td.size;
    let written = |n: usize| read(mailbox + (word::WRITTEN + n as u64) * 8);
    let faults = |n: usize| host.seats[n].faults.load(Ordering::SeqCst);
    let (mut writes, mut late) = (0, 0);
    // The guest has told the address before it used the page: it is the host's first task to map one.
    for round in 0..ROUNDS {
        if round % 1000 == 0 {
            host.say(format_args!("hammer: {round} rounds so far"));
        }
        let page = spare[round as usize % 2];
        let before: [u64; 4] = core::array::from_fn(written);
        host.aug(gpa, 0, page)?;
        host.set_target_state(state::MAPPED);
        host.wait_running("writes by every vCPU", || {
            (0..vcpus).all(|n| written(n) > before[n] + 1)
        })?;
        host.target_state.store(state::LEAVING, Ordering::SeqCst);
        let missed: [u64; 4] = core::array::from_fn(faults);
        expect("the page that was removed", host.remove(gpa)?, page)?;
        // The page is the host's from here on. What a vCPU wrote before, it may still have to tell.
        let told: [u64; 4] = core::array::from_fn(written);
        let pattern = 0x5EA0_0000_0000_0000 | round;
        for word in (0..PAGE_4K).step_by(8) {
            write(page + word, pattern);
        }
        host.round.store(round + 1, Ordering::SeqCst);
        host.set_target_state(state::REMOVED);
        host.wait_running("faults of every vCPU", || {
            (0..vcpus).all(|n| faults(n) >= missed[n] + TRIES)
        })?;
        for n in 0..vcpus {
            late += written(n) - told[n];
            expect(
                "writes that got through",
                (written(n) > told[n] + 1).into(),
                0,
            )?;
            writes += written(n) - before[n];
        }
        for word in (0..PAGE_4K).step_by(8) {
            expect("the host's page", read(page + word), pattern)?;
        }
    }
    let total: u64 = (0..vcpus).map(faults).sum();
    host.say(format_args!(
        "host: {ROUNDS} rounds, {writes} writes, {late} told after the removal, {total} faults"
    ));
    // A last page, so that the guest can end.
    write(mailbox + word::STOP * 8, 1);
    host.aug(gpa, 0, spare[0])?;
    host.set_target_state(state::MAPPED);
    Ok(())
}

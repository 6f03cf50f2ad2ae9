//! Interrupts at vCPUs that spin: none is lost, none comes twice. And the host's own timer, which makes a guest leave once.

use core::sync::atomic::Ordering;

use super::Host;
use super::seat::Seat;
use crate::attempt::{TIMER, TIMERS, count, read, write, wrmsr};
use crate::cpu::rdtsc;
use crate::{Check, Failure, expect};

/// Interrupts in all, at least.
const INTERRUPTS: u64 = 100_000;
/// In one of so many rounds, each interrupt is waited for before the next is sent.
const ALONE: u64 = 8;
/// Timer interrupts.
const TIMER_INTERRUPTS: u64 = 1_000;
/// Ticks from an entry to the timer.
const TIMER_TICKS: u64 = 200_000;

/// Words of the page that host and guest share.
mod word {
    /// The guest is to stop.
    pub const STOP: u64 = 0;
    /// The host's totals are there.
    pub const TOTAL: u64 = 1;
    /// The counts of each vCPU.
    pub const COUNTED: u64 = 8;
    /// The number of interrupts of each vector that the host has sent to vCPU 0.
    pub const SENT: u64 = 64;
}

/// The vectors that are used: every class.
const VECTORS: core::ops::RangeInclusive<u8> = 32..=254;

/// TSC deadline, before an entry.
pub fn arm_timer() {
    use seam::abi::x86::msr::TSC_DEADLINE;
    use seam::abi::x86::msr::x2apic::LVT_TIMER;
    const DEADLINE_MODE: u64 = 2 << 17;
    let _ = wrmsr(LVT_TIMER, DEADLINE_MODE | u64::from(TIMER));
    let _ = wrmsr(TSC_DEADLINE, rdtsc() + TIMER_TICKS);
}

/// The scenario.
pub fn run(host: &Host) -> Check {
    host.wait_running("the guest's page", || {
        host.mailbox.load(Ordering::SeqCst) != 0
    })?;
    let page = host.mailbox.load(Ordering::SeqCst);
    let seat = &host.seats[0];
    let mut sent = 0;
    let mut per_vector = [0u64; 256];
    let mut round = 0;
    while sent < INTERRUPTS {
        // Every vector at once, and now and then each for itself.
        let before = sent;
        for vector in VECTORS {
            seat.interrupt(vector);
            per_vector[usize::from(vector)] += 1;
            sent += 1;
            if round % ALONE == 1 {
                counted(host, page, sent)?;
            }
        }
        counted(host, page, sent)?;
        expect("a round", sent - before, VECTORS.len() as u64)?;
        round += 1;
    }
    host.say(format_args!("host: {sent} interrupts"));
    timers(host, seat)?;
    for vector in VECTORS {
        write(
            page + (word::SENT + u64::from(vector)) * 8,
            per_vector[usize::from(vector)],
        );
    }
    write(page + word::TOTAL * 8, sent);
    write(page + word::STOP * 8, 1);
    Ok(())
}

/// Waits until vCPU 0 has counted them all.
fn counted(host: &Host, page: u64, sent: u64) -> Check {
    let at = page + word::COUNTED * 8;
    host.wait_running("interrupts that the guest has counted", || read(at) >= sent)?;
    if read(at) == sent {
        Ok(())
    } else {
        Err(Failure {
            what: "interrupts that the guest has counted",
            found: read(at),
            expected: sent,
        })
    }
}

/// Each entry is followed by one exit with the timer's vector in R9, until the host's end of interrupt: no second one, and
/// none by the host's own descriptors.
fn timers(host: &Host, seat: &Seat) -> Check {
    let handled = count(&TIMERS);
    seat.wants_timer.store(true, Ordering::SeqCst);
    seat.kick();
    host.wait_running("timer interrupts", || {
        seat.timers.load(Ordering::SeqCst) >= TIMER_INTERRUPTS
    })?;
    seat.wants_timer.store(false, Ordering::SeqCst);
    // The last that was armed comes, and no other.
    seat.kick();
    let deadline = rdtsc() + 10 * TIMER_TICKS;
    while rdtsc() < deadline {
        core::hint::spin_loop();
    }
    let (seen, armed) = (
        seat.timers.load(Ordering::SeqCst),
        seat.armed.load(Ordering::SeqCst),
    );
    // An entry that an interrupt of another kind ended moves the deadline instead of arming another.
    expect(
        "timer interrupts beyond those armed",
        (seen > armed).into(),
        0,
    )?;
    expect(
        "timer interrupts by the host's IDT",
        count(&TIMERS).into(),
        handled.into(),
    )?;
    host.say(format_args!(
        "host: {seen} timer interrupts in R9, {armed} entries with the timer armed"
    ));
    Ok(())
}

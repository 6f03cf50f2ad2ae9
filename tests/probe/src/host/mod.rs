//! A host for one TD that was made from a TDVF image: a processor for each vCPU, and the services that our own guests need.
//!
//! It is another host than the hypervisor, so that what a guest finds can't be the hypervisor's doing; and one that
//! makes exactly the SEAMCALLs that a scenario is about.

mod build;
mod hammer;
mod interrupts;
mod memory;
mod posted;
mod seat;
mod serve;

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::{Mutex, Once};

use crate::cpu::{rdtsc, ticks_of};
use crate::td::{Td, VCPUS};
use crate::team::Team;
use crate::{Check, Failure, checks, expect, serial};
use memory::Memory;
use seat::Seat;

/// The time that a scenario may take, in seconds.
const PATIENCE: u64 = 900;

/// The host.
pub struct Host {
    td: Td,
    memory: Memory,
    seats: [Seat; VCPUS],
    /// The end of memory that the guest has to accept; it begins at zero.
    ram: u64,
    /// Every vCPU is to leave.
    over: AtomicBool,
    failed: AtomicBool,
    /// Interrupts that made the guest leave, other than this program's own.
    strangers: AtomicU64,
    /// Where the guest wants to be told something: the address of a shared page.
    mailbox: AtomicU64,
    /// The page that a guest of the hammer's kind uses.
    target: AtomicU64,
    /// The state of that page, and its round.
    target_state: AtomicU64,
    round: AtomicU64,
    console: Mutex<()>,
}

static HOST: Once<Host> = Once::new();

/// The host, once it was made.
fn host() -> Option<&'static Host> {
    HOST.get()
}

/// The work that is done while the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Nothing: the guest's checks are all.
    Guest,
    /// Interrupts are posted to a vCPU, and the host's own timer fires.
    Interrupts,
    /// A page is removed again and again while vCPUs use it.
    Hammer,
}

/// Runs the guest in `image` with `vcpus` vCPUs on the module with the update number `release`; says `host: done` at the end unless something failed.
pub fn run(scenario: Scenario, vcpus: usize, release: u64, image: &[u8]) -> Check {
    let team = checks::bring_up()?;
    // Where the host has something to do meanwhile, it has a processor for itself.
    let first = usize::from(scenario == Scenario::Guest);
    expect(
        "processors for the vCPUs",
        (vcpus >= 1 && vcpus <= team.size() + first).into(),
        1,
    )?;
    let (td, memory, ram) = build::build(team, vcpus, release, image)?;
    let host = HOST.call_once(|| Host {
        td,
        memory,
        seats: [const { Seat::new() }; VCPUS],
        ram,
        over: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        strangers: AtomicU64::new(0),
        mailbox: AtomicU64::new(0),
        target: AtomicU64::new(0),
        target_state: AtomicU64::new(0),
        round: AtomicU64::new(0),
        console: Mutex::new(()),
    });
    host.prepare_vcpus()?;
    for number in first..vcpus {
        team.start(number - first, seat::run, number as u64);
    }
    let result = match scenario {
        Scenario::Guest => expect("vCPU 0's end", seat::run(0), 0),
        Scenario::Interrupts => interrupts::run(host),
        Scenario::Hammer => hammer::run(host),
    };
    if result.is_err() {
        host.call_off();
    }
    host.wait("the vCPUs' end", || {
        (first..vcpus).all(|number| team.is_done(number - first))
    })?;
    result?;
    expect("failures", host.failed.load(Ordering::SeqCst).into(), 0)?;
    end(host, team, first)?;
    serial::line(format_args!("host: done"));
    Ok(())
}

/// Gives the TD's key back: every vCPU is flushed where it ran.
fn end(host: &Host, team: Team, first: usize) -> Check {
    for number in first..host.td.size {
        let flushed = team.ask(number - first, seat::flush, number as u64)?;
        expect("TDH.VP.FLUSH", flushed, 0)?;
    }
    if first == 1 {
        expect("TDH.VP.FLUSH", seat::flush(0), 0)?;
    }
    crate::tdx::free_hkid(host.td.tdr, team)
}

impl Host {
    /// Says one line.
    fn say(&self, text: fmt::Arguments<'_>) {
        let _line = self.console.lock();
        serial::line(text);
    }

    /// Something is wrong: says so, and has every vCPU leave.
    fn fail(&self, text: fmt::Arguments<'_>) {
        self.say(format_args!("FAIL host: {text}"));
        self.failed.store(true, Ordering::SeqCst);
        self.call_off();
    }

    /// Ends it for every vCPU.
    fn call_off(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.wake_all();
    }

    /// Has every processor outside its guest look again at what it waits for.
    fn wake_all(&self) {
        self.seats[..self.td.size].iter().for_each(Seat::wake);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Waits for something that has to come.
    fn wait(&self, what: &'static str, mut done: impl FnMut() -> bool) -> Check {
        let deadline = rdtsc() + ticks_of(PATIENCE);
        while !done() {
            if rdtsc() > deadline {
                self.call_off();
                return expect(what, 0, 1);
            }
            core::hint::spin_loop();
        }
        Ok(())
    }

    /// As [`Self::wait`], which ends at once when a vCPU has failed.
    fn wait_running(&self, what: &'static str, mut done: impl FnMut() -> bool) -> Check {
        let mut failed = false;
        self.wait(what, || {
            failed = self.failed.load(Ordering::SeqCst);
            failed || done()
        })?;
        if failed {
            return Err(Failure {
                what,
                found: 0,
                expected: 1,
            });
        }
        Ok(())
    }
}

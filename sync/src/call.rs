//! Cross-CPU calls: a lock-free mailbox per CPU, and an interrupt that makes a CPU check its mailbox.
//!
//! While the caller waits, it serves its own mailbox, so two CPUs that call each other both make progress. A CPU that
//! does not take its call in time is reported, and the call is withdrawn: it will never run there. Once a CPU has taken
//! a call, the caller waits for it to finish, since the call may use data that the caller borrowed.

use alloc::vec::Vec;
use core::ptr;

use crate::{
    atomic::{AtomicPtr, AtomicU32, Ordering},
    hint::spin_loop,
};

/// A call to several CPUs, on the caller's stack.
struct Round<'a> {
    work: &'a (dyn Fn(u32) + Sync),
    left: AtomicU32,
}

/// The slot in which a CPU finds the call addressed to it.
#[derive(Debug)]
pub struct Mailbox(AtomicPtr<()>);

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Mailbox {
    /// Creates an empty mailbox.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Runs the pending call, if there is one, as CPU `me`.
    pub fn serve(&self, me: u32) {
        let round = self.0.swap(ptr::null_mut(), Ordering::Acquire);
        if round.is_null() {
            return;
        }
        #[expect(
            unsafe_code,
            reason = "the mailbox holds a borrow whose end it can't know"
        )]
        // SAFETY: `call` posted a valid round. It returns only after `left` has been counted down for this mailbox, or
        // after it has withdrawn the round itself, in which case the swap did not find it.
        let round = unsafe { &*round.cast::<Round<'_>>() };
        (round.work)(me);
        round.left.fetch_sub(1, Ordering::Release);
    }
}

/// Numbers of the CPUs that did not take their call in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAnswer(pub Vec<u32>);

impl core::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "no answer from CPU")?;
        for (i, cpu) in self.0.iter().enumerate() {
            write!(f, "{} {cpu}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Machine services that a call needs.
pub trait Machine {
    /// Returns the number of the calling CPU.
    fn me(&self) -> u32;
    /// Returns the mailbox of a CPU.
    fn mailbox(&self, cpu: u32) -> &Mailbox;
    /// Makes a CPU check its mailbox.
    fn notify(&self, cpu: u32);
    /// Starts a timeout for one answer. The returned closure reports whether the time is up.
    fn timeout(&self) -> impl FnMut() -> bool;
}

/// Runs `work` on all of `cpus` in parallel, the caller's own included if it is listed, and waits until all have
/// finished.
///
/// # Errors
/// [`NoAnswer`] names the CPUs on which `work` did not run and never will. It ran on all others.
pub fn call(
    machine: &impl Machine,
    cpus: &[u32],
    work: &(dyn Fn(u32) + Sync),
) -> Result<(), NoAnswer> {
    let me = machine.me();
    let own = machine.mailbox(me);
    let round = Round {
        work,
        left: AtomicU32::new(0),
    };
    let letter = (&raw const round).cast::<()>().cast_mut();
    let mut silent = Vec::new();
    let mut posted = Vec::with_capacity(cpus.len());

    let mut over = machine.timeout();
    for &cpu in cpus.iter().filter(|&&cpu| cpu != me) {
        round.left.fetch_add(1, Ordering::Relaxed);
        let mailbox = &machine.mailbox(cpu).0;
        let post = || {
            mailbox.compare_exchange(ptr::null_mut(), letter, Ordering::AcqRel, Ordering::Relaxed)
        };
        while post().is_err() {
            if over() {
                round.left.fetch_sub(1, Ordering::Relaxed);
                silent.push(cpu);
                break;
            }
            own.serve(me);
            spin_loop();
        }
        if silent.last() != Some(&cpu) {
            posted.push(cpu);
            machine.notify(cpu);
        }
    }
    if cpus.contains(&me) {
        work(me);
    }
    let mut over = machine.timeout();
    while round.left.load(Ordering::Acquire) != 0 {
        own.serve(me);
        spin_loop();
        if !over() {
            continue;
        }
        // Withdraw the call from the CPUs that have not taken it. Wait for those that have.
        posted.retain(|&cpu| {
            let withdrawn = machine
                .mailbox(cpu)
                .0
                .compare_exchange(letter, ptr::null_mut(), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
            if withdrawn {
                round.left.fetch_sub(1, Ordering::Relaxed);
                silent.push(cpu);
            }
            !withdrawn
        });
    }
    if silent.is_empty() {
        Ok(())
    } else {
        silent.sort_unstable();
        Err(NoAnswer(silent))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::sync::atomic::AtomicBool;
    use std::{
        thread,
        time::{Duration, Instant},
        vec,
    };

    use super::*;

    struct Cpus {
        boxes: [Mailbox; 4],
        stop: AtomicBool,
        patience: Duration,
    }

    impl Cpus {
        fn new(patience: Duration) -> Self {
            Self {
                boxes: Default::default(),
                stop: AtomicBool::new(false),
                patience,
            }
        }
    }

    /// Timeout for CPUs that do answer: long enough that a busy machine never exceeds it.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Stops the other CPUs, even when the test fails.
    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    struct At<'a>(&'a Cpus, u32);

    impl Machine for At<'_> {
        fn me(&self) -> u32 {
            self.1
        }
        fn mailbox(&self, cpu: u32) -> &Mailbox {
            &self.0.boxes[cpu as usize]
        }
        fn notify(&self, _: u32) {}
        fn timeout(&self) -> impl FnMut() -> bool {
            let start = Instant::now();
            let patience = self.0.patience;
            move || {
                thread::yield_now();
                start.elapsed() > patience
            }
        }
    }

    /// Runs `body` as CPU 0 while the CPUs in `awake` serve their mailboxes.
    fn with_cpus(awake: &[u32], patience: Duration, body: impl FnOnce(&Cpus)) {
        let cpus = Cpus::new(patience);
        thread::scope(|scope| {
            let _stop = Stop(&cpus.stop);
            for &cpu in awake {
                let cpus = &cpus;
                scope.spawn(move || {
                    while !cpus.stop.load(Ordering::Relaxed) {
                        cpus.boxes[cpu as usize].serve(cpu);
                        thread::yield_now();
                    }
                });
            }
            body(&cpus);
        });
    }

    #[test]
    fn work_runs_once_on_every_cpu() {
        with_cpus(&[1, 2, 3], PATIENCE, |cpus| {
            let ran: [AtomicU32; 4] = Default::default();
            for _ in 0..100 {
                let work = |cpu: u32| {
                    ran[cpu as usize].fetch_add(1, Ordering::Relaxed);
                };
                call(&At(cpus, 0), &[0, 1, 2, 3], &work).unwrap();
            }
            assert!(ran.iter().all(|n| n.load(Ordering::Relaxed) == 100));
        });
    }

    #[test]
    fn a_cpu_that_does_not_answer_is_named_and_never_runs_the_call() {
        with_cpus(&[1], Duration::from_secs(2), |cpus| {
            let ran = AtomicU32::new(0);
            let work = |_| {
                ran.fetch_add(1, Ordering::Relaxed);
            };
            let error = call(&At(cpus, 0), &[0, 1, 2, 3], &work).unwrap_err();
            assert_eq!(error, NoAnswer(vec![2, 3]));
            assert_eq!(std::format!("{error}"), "no answer from CPU 2, 3");
            cpus.boxes[2].serve(2);
            assert_eq!(ran.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn cpus_that_call_each_other_both_get_on() {
        let cpus = Cpus::new(Duration::from_millis(200));
        thread::scope(|scope| {
            for (me, other) in [(0, 1), (1, 0)] {
                let cpus = &cpus;
                scope.spawn(move || {
                    for _ in 0..100 {
                        let answer = call(&At(cpus, me), &[other], &|_| {});
                        // The other side may have finished its own calls and exited.
                        if answer.is_err() {
                            break;
                        }
                    }
                });
            }
        });
    }
}

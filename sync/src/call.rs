//! Cross-CPU calls: a lock-free mailbox per CPU, and an interrupt that makes a CPU check its mailbox.
//!
//! While the caller waits, it serves its own mailbox, so two CPUs that call each other both make progress. Each CPU has
//! a deadline of its own. A CPU that does not take its call in time is reported, and the call is withdrawn: it will
//! never run there. Once a CPU has taken a call, the caller waits for it to finish, since the call may use data that
//! the caller borrowed. Nothing here allocates.

use core::{fmt, ops::Deref, ptr};

use crate::{
    atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering},
    hint::spin_loop,
};

/// A call to several CPUs, on the caller's stack.
struct Round<'a> {
    work: &'a (dyn Fn(u32) + Sync),
    left: AtomicU32,
}

/// The slot in which a CPU finds the call addressed to it.
#[derive(Debug)]
pub struct Mailbox {
    round: AtomicPtr<()>,
    /// The time at which the call was posted. Only the caller whose call is in the slot uses it.
    since: AtomicU64,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Mailbox {
    /// Creates an empty mailbox.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            round: AtomicPtr::new(ptr::null_mut()),
            since: AtomicU64::new(0),
        }
    }

    /// Runs the pending call, if there is one, as CPU `me`.
    pub fn serve(&self, me: u32) {
        let round = self.round.swap(ptr::null_mut(), Ordering::Acquire);
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

    /// Puts a call into the slot if it is free.
    fn post(&self, letter: *mut ()) -> bool {
        let (from, to) = (ptr::null_mut(), letter);
        let posted = self
            .round
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
        posted.is_ok()
    }

    /// Takes a call back unless the CPU has taken it.
    fn withdraw(&self, letter: *mut ()) -> bool {
        let (from, to) = (letter, ptr::null_mut());
        let withdrawn = self
            .round
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
        withdrawn.is_ok()
    }
}

/// Maximum number of CPUs that an error names.
const NAMED: usize = 16;

/// CPUs that did not take their call in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswer {
    /// The first of them, in ascending order.
    named: [u32; NAMED],
    count: u32,
}

impl NoAnswer {
    /// Creates the error of these CPUs. It names the first 16.
    #[must_use]
    pub fn of(cpus: &[u32]) -> Self {
        let mut error = Self {
            named: [0; NAMED],
            count: 0,
        };
        cpus.iter().for_each(|cpu| error.add(*cpu));
        error
    }

    fn add(&mut self, cpu: u32) {
        let known = self.len();
        let at = self.partition_point(|named| *named < cpu);
        let end = NAMED.min(known + 1);
        if at < end {
            self.named.copy_within(at..end - 1, at + 1);
            self.named[at] = cpu;
        }
        self.count += 1;
    }
}

/// The CPUs that are named.
impl Deref for NoAnswer {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.named[..NAMED.min(self.count as usize)]
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer from CPU")?;
        for (i, cpu) in self.iter().enumerate() {
            write!(f, "{} {cpu}", if i == 0 { "" } else { "," })?;
        }
        match self.count as usize - self.len() {
            0 => Ok(()),
            others => write!(f, " and {others} others"),
        }
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
    /// Returns the time, in any unit.
    fn now(&self) -> u64;
    /// Returns true if a CPU that was called at `since` has had its time to answer. A later `since` is over later.
    fn is_over(&self, since: u64) -> bool;
}

/// Maximum number of CPUs that are called at once. A list of more is called part by part.
const AT_ONCE: usize = 4096;

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
    let mut silent = NoAnswer::of(&[]);
    for cpus in cpus.chunks(AT_ONCE) {
        call_at_once(machine, cpus, work, &mut silent);
    }
    if silent.is_empty() {
        Ok(())
    } else {
        Err(silent)
    }
}

fn call_at_once(
    machine: &impl Machine,
    cpus: &[u32],
    work: &(dyn Fn(u32) + Sync),
    silent: &mut NoAnswer,
) {
    let me = machine.me();
    let round = Round {
        work,
        left: AtomicU32::new(0),
    };
    let letter = (&raw const round).cast::<()>().cast_mut();
    let start = machine.now();
    post_to_all(machine, cpus, &round, silent);
    if cpus.contains(&me) {
        work(me);
    }
    let own = machine.mailbox(me);
    while round.left.load(Ordering::Acquire) != 0 {
        own.serve(me);
        spin_loop();
        // No CPU was called earlier.
        if !machine.is_over(start) {
            continue;
        }
        for &cpu in cpus.iter().filter(|cpu| **cpu != me) {
            let mailbox = machine.mailbox(cpu);
            let pending = mailbox.round.load(Ordering::Relaxed) == letter;
            if pending
                && machine.is_over(mailbox.since.load(Ordering::Relaxed))
                && mailbox.withdraw(letter)
            {
                round.left.fetch_sub(1, Ordering::Relaxed);
                silent.add(cpu);
            }
        }
    }
}

/// Posts the round to all CPUs but the caller. While another call occupies a mailbox, the others are not kept waiting.
fn post_to_all(machine: &impl Machine, cpus: &[u32], round: &Round<'_>, silent: &mut NoAnswer) {
    let me = machine.me();
    let letter = ptr::from_ref(round).cast::<()>().cast_mut();
    let start = machine.now();
    let mut done = [0u64; AT_ONCE / 64];
    loop {
        let mut open = 0;
        for (i, &cpu) in cpus.iter().enumerate() {
            let (word, bit) = (i / 64, 1 << (i % 64));
            if cpu == me || done[word] & bit != 0 {
                continue;
            }
            done[word] |= bit;
            let mailbox = machine.mailbox(cpu);
            round.left.fetch_add(1, Ordering::Relaxed);
            if mailbox.post(letter) {
                mailbox.since.store(machine.now(), Ordering::Relaxed);
                machine.notify(cpu);
                continue;
            }
            round.left.fetch_sub(1, Ordering::Relaxed);
            if machine.is_over(start) {
                silent.add(cpu);
            } else {
                done[word] &= !bit;
                open += 1;
            }
        }
        if open == 0 {
            return;
        }
        machine.mailbox(me).serve(me);
        spin_loop();
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::sync::atomic::AtomicBool;
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    struct Cpus {
        boxes: [Mailbox; 4],
        stop: AtomicBool,
        patience: Duration,
        start: Instant,
    }

    impl Cpus {
        fn new(patience: Duration) -> Self {
            Self {
                boxes: Default::default(),
                stop: AtomicBool::new(false),
                patience,
                start: Instant::now(),
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
        fn now(&self) -> u64 {
            self.0.start.elapsed().as_nanos() as u64
        }
        fn is_over(&self, since: u64) -> bool {
            thread::yield_now();
            self.now() - since > self.0.patience.as_nanos() as u64
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
            assert_eq!(error, NoAnswer::of(&[3, 2]));
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

    /// CPU 0 calls in simulated time: each look at the clock takes a tick, and CPU 2 serves its mailbox at the ticks of
    /// `serves`. CPU 1 never does.
    struct Ticks {
        boxes: [Mailbox; 3],
        clock: AtomicU64,
        serves: &'static [u64],
    }

    impl Machine for Ticks {
        fn me(&self) -> u32 {
            0
        }
        fn mailbox(&self, cpu: u32) -> &Mailbox {
            &self.boxes[cpu as usize]
        }
        fn notify(&self, _: u32) {}
        fn now(&self) -> u64 {
            self.clock.load(Ordering::Relaxed)
        }
        fn is_over(&self, since: u64) -> bool {
            let now = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
            if self.serves.contains(&now) {
                self.boxes[2].serve(2);
            }
            now - since > 100
        }
    }

    /// CPU 0 calls CPUs 1 and 2, whose mailboxes another call occupies at first. Returns the error and the CPUs on
    /// which the call ran.
    fn call_occupied(serves: &'static [u64]) -> (Result<(), NoAnswer>, std::vec::Vec<u32>) {
        let machine = Ticks {
            boxes: Default::default(),
            clock: AtomicU64::new(0),
            serves,
        };
        let other = Round {
            work: &|_| {},
            left: AtomicU32::new(2),
        };
        for cpu in [1, 2] {
            let letter = (&raw const other).cast::<()>().cast_mut();
            assert!(machine.boxes[cpu].post(letter));
        }
        let ran = crate::Mutex::new(std::vec::Vec::new());
        let result = call(&machine, &[1, 2], &|cpu| ran.lock().push(cpu));
        (result, ran.into_inner())
    }

    #[test]
    fn a_slow_cpu_does_not_make_a_healthy_one_silent() {
        // CPU 2 is free at tick 90 of 100, and takes the call at tick 150: within its own time.
        let (result, ran) = call_occupied(&[90, 150]);
        assert_eq!((result, ran), (Err(NoAnswer::of(&[1])), [2].into()));
        // It is late for its own deadline.
        let (result, ran) = call_occupied(&[90, 400]);
        assert_eq!((result, ran), (Err(NoAnswer::of(&[1, 2])), [].into()));
    }

    #[test]
    fn an_error_names_the_first_cpus_and_counts_the_rest() {
        let all: std::vec::Vec<u32> = (0..20).rev().collect();
        let error = NoAnswer::of(&all);
        assert_eq!(*error, *(0..16).collect::<std::vec::Vec<u32>>());
        let text = std::format!("{error}");
        assert!(text.ends_with(", 14, 15 and 4 others"), "{text}");
    }
}

//! The simulated CPUs: a thread and a mailbox each.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use seam::abi::Leaf;
use sync::call::{self, Mailbox};

use super::{Machine, Rig};

/// Maximum wait for CPUs that answer. Exceeded only if the test has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Maximum wait for silent CPUs, once all others have answered.
const SILENCE: Duration = Duration::from_millis(50);

thread_local! {
    static THIS: Cell<u32> = const { Cell::new(0) };
}

/// Returns the number of the CPU that the calling thread simulates. Any other thread acts as CPU 0.
pub fn this() -> u32 {
    THIS.get()
}

/// Runs `work` on the calling thread as CPU `cpu`, beside that CPU's own thread, which answers calls.
pub fn act_as<R>(cpu: u32, work: impl FnOnce() -> R) -> R {
    let before = THIS.replace(cpu);
    let result = work();
    THIS.set(before);
    result
}

/// The CPUs of a server.
pub struct Cpus {
    cpus: Vec<Cpu>,
    stop: AtomicBool,
    start: Instant,
}

#[derive(Default)]
struct Cpu {
    mailbox: Mailbox,
    called: AtomicBool,
    silent: AtomicBool,
    last: Mutex<Option<Event>>,
    thread: OnceLock<Thread>,
    jobs: Mutex<Vec<Work>>,
}

type Work = Box<dyn FnOnce() + Send>;

/// An event on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A SEAMCALL.
    Call(Leaf),
    /// The CPU's write-back of its caches.
    WriteBack,
}

/// A job on a CPU.
pub struct Job<R>(Receiver<thread::Result<R>>);

impl<R> Job<R> {
    /// Waits for the end of the job, and propagates its panic. The waiting CPU serves its calls meanwhile.
    pub fn wait(self, rig: &Rig) -> R {
        let start = Instant::now();
        loop {
            rig.serve();
            match self.0.recv_timeout(Duration::from_micros(100)) {
                Ok(result) => return result.unwrap_or_else(|panic| panic::resume_unwind(panic)),
                Err(RecvTimeoutError::Timeout) if start.elapsed() < PATIENCE => {}
                Err(e) => panic!("the job did not end: {e}"),
            }
        }
    }
}

impl Cpus {
    pub fn new(count: usize) -> Self {
        Self {
            cpus: (0..count).map(|_| Cpu::default()).collect(),
            stop: AtomicBool::new(false),
            start: Instant::now(),
        }
    }

    pub fn start<R: Send + 'static>(
        &self,
        cpu: u32,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Job<R> {
        assert_ne!(cpu, 0, "CPU 0 is the test's own thread");
        let (done, result): (Sender<thread::Result<R>>, _) = channel();
        let cpu = &self.cpus[cpu as usize];
        cpu.jobs.lock().unwrap().push(Box::new(move || {
            // The test may have stopped waiting.
            let _ = done.send(panic::catch_unwind(AssertUnwindSafe(job)));
        }));
        cpu.wake();
        Job(result)
    }

    pub fn serve(&self) {
        let me = this();
        let cpu = &self.cpus[me as usize];
        if !cpu.silent.load(Ordering::SeqCst) && cpu.called.swap(false, Ordering::SeqCst) {
            cpu.mailbox.serve(me);
        }
    }

    pub fn is_called(&self, cpu: u32) -> bool {
        self.cpus[cpu as usize].called.load(Ordering::SeqCst)
    }

    pub fn set_silent(&self, cpu: u32, silent: bool) {
        assert_ne!(cpu, 0, "CPU 0 is the test's own thread");
        self.cpus[cpu as usize]
            .silent
            .store(silent, Ordering::SeqCst);
    }

    pub fn set_silent_after(&self, cpu: u32, event: Event) {
        assert_ne!(cpu, 0, "CPU 0 is the test's own thread");
        *self.cpus[cpu as usize].last.lock().unwrap() = Some(event);
    }

    /// Notes that the calling CPU has reached an event.
    pub fn comes_to(&self, event: Event) {
        let cpu = &self.cpus[this() as usize];
        let mut last = cpu.last.lock().unwrap();
        if *last == Some(event) {
            *last = None;
            cpu.silent.store(true, Ordering::SeqCst);
        }
    }

    /// Makes a call whose work may panic on another CPU. The caller then panics too, instead of waiting for ever.
    pub fn guarded<R>(
        &self,
        work: &(dyn Fn(u32) + Sync),
        call: impl FnOnce(&(dyn Fn(u32) + Sync)) -> R,
    ) -> R {
        let panicked: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
        let result = call(&|cpu| {
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| work(cpu)));
            if let Err(panic) = outcome {
                *panicked.lock().unwrap() = Some(panic);
            }
        });
        self.serve();
        match panicked.into_inner().unwrap() {
            Some(panic) => panic::resume_unwind(panic),
            None => result,
        }
    }

    /// Serves calls and runs jobs until the server is gone.
    fn run(&self, me: u32) {
        THIS.set(me);
        let cpu = &self.cpus[me as usize];
        cpu.thread.get_or_init(thread::current);
        while !self.stop.load(Ordering::SeqCst) {
            self.serve();
            let job = cpu.jobs.lock().unwrap().pop();
            match job {
                Some(job) => job(),
                // A call that has come in since then has unparked the thread, so it does not park.
                None => thread::park_timeout(SILENCE),
            }
        }
    }

    fn is_somebody_silent(&self) -> bool {
        self.cpus.iter().any(|c| c.silent.load(Ordering::SeqCst))
    }

    /// Returns whether a CPU other than `me` that answers calls has one pending.
    fn is_answer_due(&self, me: u32) -> bool {
        (0..).zip(&self.cpus).any(|(number, cpu)| {
            number != me && !cpu.silent.load(Ordering::SeqCst) && cpu.called.load(Ordering::SeqCst)
        })
    }
}

impl Cpu {
    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl call::Machine for Cpus {
    fn me(&self) -> u32 {
        this()
    }

    fn mailbox(&self, cpu: u32) -> &Mailbox {
        &self.cpus[cpu as usize].mailbox
    }

    fn notify(&self, cpu: u32) {
        let cpu = &self.cpus[cpu as usize];
        cpu.called.store(true, Ordering::SeqCst);
        cpu.wake();
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn is_over(&self, since: u64) -> bool {
        thread::yield_now();
        let waited = Duration::from_nanos(self.now() - since);
        waited > PATIENCE
            || waited > SILENCE && self.is_somebody_silent() && !self.is_answer_due(this())
    }
}

/// The threads of all CPUs except the first, which is the test's own.
pub struct Threads {
    machine: Arc<Machine>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    pub fn start(machine: &Arc<Machine>) -> Self {
        let cpus = 1..machine.cpus.cpus.len() as u32;
        let threads = cpus
            .map(|cpu| {
                let machine = Arc::clone(machine);
                thread::spawn(move || machine.cpus.run(cpu))
            })
            .collect();
        Self {
            machine: Arc::clone(machine),
            threads,
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.machine.cpus.stop.store(true, Ordering::SeqCst);
        for cpu in &self.machine.cpus.cpus {
            cpu.wake();
        }
        for thread in self.threads.drain(..) {
            // A job may hold the last clone of the server.
            if thread.thread().id() != thread::current().id() {
                // A CPU's thread catches panics of jobs and calls.
                let _ = thread.join();
            }
        }
    }
}

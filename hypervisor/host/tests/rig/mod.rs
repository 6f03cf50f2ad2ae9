//! A server on the developer's computer: an emulated module, a thread for each CPU, frames, and a [`Platform`] on top.
//!
//! The thread that creates a [`Rig`] is its CPU 0. The other CPUs check their mailboxes and run the jobs that
//! [`Rig::start`] gives them. Calls between CPUs use [`sync::call`], as on the machine.

#![allow(dead_code, reason = "each test program uses a part of it")]

mod cpus;
mod faults;
mod memory;
pub mod running;

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use host::platform::shutdown::Shutdown;
use host::platform::{CpuPlace, Platform, Stopwatch, TdEvent};
use host::tdx::hkids::Hkids;
use host::tdx::release::Coordinator;
use mm::frames::{Counts, Frames, words_for};
use mm::private::FramePool;
use seam::abi::{FatalDiagnostics, Leaf, PAGE_1G, PAGE_4K, Status};
use seam::address::{Hpa, KeyIdPosition};
use seam::call::Fault;
use seam::counters::Counters;
use seam::platform::KeyIds;
use seam::retry::{Pause, Reason, Wait};
use seam::tdh::Tdh;
use stub_module::Release;
use stub_module::hooks::Hooks;
use stub_module::host::{Config, Server, TdmrPlan};
use sync::call::{self, NoAnswer};

use cpus::{Cpus, Threads};
pub use cpus::{Event, Job};
pub use faults::Caller;
use faults::{Meanwhile, Refusals};
use memory::{Direct, access};

thread_local! {
    static OUTSIDE: Cell<u32> = const { Cell::new(0) };
}

/// Runs the parts of the simulated machine that are not the host's code.
pub fn outside<R>(work: impl FnOnce() -> R) -> R {
    OUTSIDE.set(OUTSIDE.get() + 1);
    let result = work();
    OUTSIDE.set(OUTSIDE.get() - 1);
    result
}

/// Returns whether the calling thread is in [`outside`].
pub fn is_outside() -> bool {
    OUTSIDE.get() > 0
}

/// Start of convertible memory.
pub const BASE: u64 = 4 * PAGE_1G;
/// The place where the module records a fatal error, in no convertible memory.
pub const FATAL_RECORD: Hpa = Hpa(2 << 20);
/// The vector of the interrupt by which it tells so.
pub const FATAL_VECTOR: u8 = 0x40;
/// The first private HKID, which is the module's own.
pub const GLOBAL_HKID: u16 = 32;

pub type Pool = FramePool<spin::Mutex<Frames>, Direct>;

/// Configuration of the server.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The package of each CPU.
    pub packages: Vec<u32>,
    /// Bytes of memory from [`BASE`] on; a multiple of 1 GiB. One GiB or more after it is convertible too.
    pub memory: u64,
    /// Further memory, ascending: start address, and exclusive end address.
    pub more_memory: Vec<(u64, u64)>,
    /// Further convertible memory, ascending, in the same format.
    pub more_cmrs: Vec<(u64, u64)>,
    /// Number of private HKIDs, including the global one.
    pub hkids: u32,
    /// Failures inside the module, in the format of [`Hooks::parse`].
    pub hooks: String,
    /// The release of the module.
    pub release: Release,
}

impl Default for Setup {
    /// Two packages of two CPUs, 1 GiB for TDs, 32 HKIDs, and no failures.
    fn default() -> Self {
        Self {
            packages: [0, 0, 1, 1].into(),
            memory: PAGE_1G,
            more_memory: Vec::new(),
            more_cmrs: Vec::new(),
            hkids: 32,
            hooks: "patterns".into(),
            release: Release::default(),
        }
    }
}

impl Setup {
    /// Returns the setup of the default server, with the failures that `hooks` describes.
    pub fn failing(hooks: &str) -> Self {
        Self {
            hooks: format!("patterns\n{hooks}"),
            ..Self::default()
        }
    }

    /// Returns the bytes of convertible memory that follow the memory.
    fn after(&self) -> u64 {
        (self.memory / 128).next_multiple_of(PAGE_1G)
    }

    /// Creates a coordinator for the server's HKIDs, of which the module has the global one.
    pub fn coordinator(&self) -> Coordinator {
        let hkids = Hkids::new(&KeyIds {
            shared: u32::from(GLOBAL_HKID) - 1,
            private: self.hkids,
            max_pa: 52,
            bits: 6,
        });
        hkids.take_global().unwrap().surrender();
        Coordinator::new(hkids)
    }
}

/// The server. Clones refer to the same one.
#[derive(Clone)]
pub struct Rig {
    machine: Arc<Machine>,
    threads: Arc<Threads>,
}

/// A record of the host about a TD.
#[derive(Clone, Debug)]
pub struct Note {
    pub td: u32,
    pub name: String,
    pub asked_by: Option<u32>,
    pub what: String,
}

/// Number of notes that are kept.
const KEPT: usize = 64;

pub struct Machine {
    server: Arc<Server>,
    places: Vec<CpuPlace>,
    size: u64,
    pool: Pool,
    counters: Vec<Counters>,
    stopwatch: Stopwatch,
    shutdown: Shutdown,
    refusals: Refusals,
    spoils: Refusals,
    meanwhile: Meanwhile,
    pauses: AtomicU64,
    write_backs: Mutex<Vec<u32>>,
    /// The newest [`KEPT`].
    notes: Mutex<VecDeque<Note>>,
    start: Instant,
    cpus: Cpus,
    running: running::State,
}

impl Rig {
    /// Creates a server whose module is loaded and not initialised.
    pub fn new(setup: &Setup) -> Self {
        let config = Config {
            release: setup.release,
            lp_to_package: setup.packages.clone(),
            // Convertible memory that the host does not use has room for a PAMT, which takes 1/256 of the memory.
            cmrs: [(BASE, BASE + setup.memory + setup.after())]
                .iter()
                .chain(&setup.more_cmrs)
                .map(|(start, end)| (*start, end - start))
                .collect(),
            num_tdx_keyids: setup.hkids,
            ..Config::default()
        };
        let hooks = Hooks::parse(&setup.hooks).unwrap();
        let server = Arc::new(Server::with_hooks(config, hooks));
        let mut frames = Frames::new();
        for &range in [(BASE, BASE + setup.memory)]
            .iter()
            .chain(&setup.more_memory)
        {
            let words = Box::leak(vec![0; words_for(range)].into_boxed_slice());
            frames.add_zone(range, words).unwrap();
            frames.add(range).unwrap();
        }
        let machine = Arc::new(Machine {
            places: (0..)
                .zip(&setup.packages)
                .map(|(cpu, &package)| CpuPlace { cpu, package })
                .collect(),
            size: setup.memory,
            pool: FramePool::new(spin::Mutex::new(frames), Direct(Arc::clone(&server))),
            counters: setup.packages.iter().map(|_| Counters::new()).collect(),
            stopwatch: Stopwatch::new(),
            shutdown: Shutdown::new(),
            refusals: Refusals::default(),
            spoils: Refusals::default(),
            meanwhile: Meanwhile::default(),
            pauses: AtomicU64::new(0),
            write_backs: Mutex::new(Vec::new()),
            notes: Mutex::new(VecDeque::with_capacity(KEPT + 1)),
            start: Instant::now(),
            cpus: Cpus::new(setup.packages.len()),
            running: running::State::new(setup.packages.len()),
            server,
        });
        Self {
            threads: Arc::new(Threads::start(&machine)),
            machine,
        }
    }

    /// Creates the default server with its module ready, and with the failures that `hooks` describes.
    pub fn ready(hooks: &str) -> Self {
        Self::ready_with(&Setup {
            hooks: format!("patterns\n{hooks}"),
            ..Setup::default()
        })
    }

    /// Creates a server with its module ready in the shortest way, which takes none of the host's frames.
    pub fn ready_with(setup: &Setup) -> Self {
        let rig = Self::new(setup);
        let tdmr = TdmrPlan {
            base: BASE,
            size: setup.memory,
        };
        rig.server().bring_up(tdmr, GLOBAL_HKID.into()).unwrap();
        rig.shutdown().module_is_ready();
        rig
    }

    /// Returns the machine and the module, as a debugger would see them.
    pub fn server(&self) -> &Server {
        &self.machine.server
    }

    /// Returns the position of the KeyID in a physical address.
    pub fn keyid_position(&self) -> KeyIdPosition {
        let config = self.server().machine().config();
        KeyIdPosition::new(config.max_pa, config.keyid_bits).unwrap()
    }

    /// Starts `job` on a CPU other than 0, and returns. Until the job ends, the CPU serves calls only where the job
    /// calls other CPUs or [`Rig::serve`].
    pub fn start<R: Send + 'static>(
        &self,
        cpu: u32,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Job<R> {
        self.machine.cpus.start(cpu, job)
    }

    /// Runs `work` on the calling thread as CPU `cpu`, beside that CPU's own thread, which answers calls.
    pub fn act_as<R>(&self, cpu: u32, work: impl FnOnce() -> R) -> R {
        cpus::act_as(cpu, work)
    }

    /// Serves the pending calls of the calling CPU, as an interrupt would.
    pub fn serve(&self) {
        self.machine.cpus.serve();
    }

    /// Returns whether a call is pending on `cpu`. On the machine, this would be a pending interrupt.
    pub fn is_called(&self, cpu: u32) -> bool {
        self.machine.cpus.is_called(cpu)
    }

    /// Makes a CPU other than 0 ignore calls, or answer them again.
    pub fn set_silent(&self, cpu: u32, silent: bool) {
        self.machine.cpus.set_silent(cpu, silent);
    }

    /// Answers the calls number `calls` of `leaf` (1 is the next) with `status`, without the module.
    pub fn refuse(&self, leaf: Leaf, calls: RangeInclusive<u64>, status: Status) {
        self.machine.refusals.add(leaf, calls, status);
    }

    /// Replaces the status of the calls number `calls` of `leaf` (1 is the next), which the module serves, by `status`.
    pub fn spoil(&self, leaf: Leaf, calls: RangeInclusive<u64>, status: Status) {
        self.machine.spoils.add(leaf, calls, status);
    }

    /// Makes the calls number `calls` of `leaf` (1 is the next) fault in the instruction.
    pub fn fault(&self, leaf: Leaf, calls: RangeInclusive<u64>, fault: Fault) {
        self.machine.refusals.add_fault(leaf, calls, fault);
    }

    /// Removes everything that [`Self::refuse`] and [`Self::fault`] arranged.
    pub fn refuse_no_more(&self) {
        self.machine.refusals.clear();
    }

    /// Runs `work` when call `number` of `leaf` (1 is the next) begins, as another CPU might.
    pub fn meanwhile(&self, leaf: Leaf, number: u64, work: impl FnOnce() + Send + 'static) {
        self.machine.meanwhile.add(leaf, number, Box::new(work));
    }

    /// Makes a CPU other than 0 ignore calls from its next `event` on. It completes what it is doing at that time.
    pub fn set_silent_after(&self, cpu: u32, event: Event) {
        self.machine.cpus.set_silent_after(cpu, event);
    }

    /// Returns what was recorded of TDs.
    pub fn notes(&self) -> Vec<Note> {
        self.machine.notes.lock().unwrap().iter().cloned().collect()
    }

    /// Returns how often each CPU wrote back its caches.
    pub fn write_backs(&self) -> Vec<usize> {
        let all = self.machine.write_backs.lock().unwrap();
        let cpus = self.machine.places.iter();
        cpus.map(|place| all.iter().filter(|cpu| **cpu == place.cpu).count())
            .collect()
    }

    /// Returns the number of calls of a leaf on each CPU.
    pub fn calls_by_cpu(&self, leaf: Leaf) -> Vec<u64> {
        let all = self.machine.counters.iter();
        all.map(|counters| counters.leaf(leaf).calls).collect()
    }

    /// Returns the frames of each order.
    pub fn counts(&self) -> Vec<Counts> {
        self.machine.pool.ledger().lock().counts().to_vec()
    }

    /// Returns the bytes in use, and the bytes in quarantine. Checks the ledger's sums as well.
    pub fn out(&self) -> (u64, u64) {
        let counts = self.counts();
        let sum = |of: fn(&Counts) -> u64| {
            let orders = counts.iter().enumerate();
            orders
                .map(|(order, counts)| of(counts) * (PAGE_4K << order))
                .sum::<u64>()
        };
        let (free, used, quarantined) = (sum(|c| c.free), sum(|c| c.used), sum(|c| c.quarantined));
        let total = self.machine.pool.ledger().lock().total_bytes();
        assert_eq!(free + used + quarantined, total, "the ledger");
        (used, quarantined)
    }

    /// Returns the number of calls of a leaf on all CPUs.
    pub fn calls(&self, leaf: Leaf) -> u64 {
        let all = self.machine.counters.iter();
        all.map(|counters| counters.leaf(leaf).calls).sum()
    }

    /// Returns the number of retries for this reason on all CPUs.
    pub fn retries(&self, reason: Reason) -> u64 {
        let all = self.machine.counters.iter();
        all.map(|counters| counters.retry(reason).retries).sum()
    }

    /// Returns the number of illegal calls on all CPUs.
    pub fn illegal(&self) -> u64 {
        let all = self.machine.counters.iter();
        all.map(|counters| counters.total().illegal).sum()
    }

    /// Returns the number of pauses between two tries.
    pub fn pauses(&self) -> u64 {
        self.machine.pauses.load(Ordering::Relaxed)
    }

    /// Checks that the module's state is consistent, and that the host did nothing illegal. No SEAMCALL may be in
    /// progress.
    pub fn audit(&self) {
        let range = BASE..BASE + self.machine.size;
        self.server().audit(range).unwrap();
        let violations = self.server().module().violations();
        assert_eq!(violations.total(), 0, "{:?}", violations.take());
        assert_eq!(self.machine.pool.refused(), 0);
        assert_eq!((seam::page::lost_pages(), seam::hkid::lost_hkids()), (0, 0));
    }

    /// Does [`Self::audit`], and checks that every frame is free and that no call was illegal.
    pub fn assert_spotless(&self) {
        self.audit();
        assert_eq!(self.out(), (0, 0));
        assert_eq!(self.illegal(), 0);
    }
}

/// Sleeps for each pause, and serves calls after it.
pub struct Sleep(Arc<Machine>);

impl Wait for Sleep {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        self.0.pauses.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(pause.us.into()));
        self.0.cpus.serve();
        ControlFlow::Continue(())
    }
}

impl Platform for Rig {
    type Call = Caller;
    type Wait = Sleep;
    type Pool = Pool;

    fn note(&self, event: &TdEvent<'_>) {
        outside(|| {
            let mut notes = self.machine.notes.lock().unwrap();
            notes.push_back(Note {
                td: event.td,
                name: event.name.into(),
                asked_by: event.asked_by,
                what: event.what.to_string(),
            });
            if notes.len() > KEPT {
                notes.pop_front();
            }
        });
    }

    fn tdh(&self) -> Tdh<'_, Caller, Sleep> {
        let cpu = cpus::this();
        Tdh::new(
            Caller::new(Arc::clone(&self.machine), cpu),
            Sleep(Arc::clone(&self.machine)),
            &self.machine.counters[cpu as usize],
        )
    }

    fn counters(&self, cpu: u32) -> Option<&Counters> {
        self.machine.counters.get(cpu as usize)
    }

    fn stopwatch(&self) -> &Stopwatch {
        &self.machine.stopwatch
    }

    fn shutdown(&self) -> &Shutdown {
        &self.machine.shutdown
    }

    fn fatal_diagnostics(&self) -> Option<FatalDiagnostics> {
        FatalDiagnostics::new(FATAL_RECORD, FATAL_VECTOR)
    }

    fn pool(&self) -> &Pool {
        &self.machine.pool
    }

    fn cpus(&self) -> &[CpuPlace] {
        &self.machine.places
    }

    fn this_cpu(&self) -> u32 {
        cpus::this()
    }

    fn on_each(&self, cpus: &[u32], work: &(dyn Fn(u32) + Sync)) -> Result<(), NoAnswer> {
        self.machine
            .cpus
            .guarded(work, |work| call::call(&self.machine.cpus, cpus, work))
    }

    fn relax(&self) {
        self.machine.cpus.serve();
        std::thread::yield_now();
    }

    // The simulated machine has no caches, so only the calling CPU is recorded.
    fn write_back_caches(&self) {
        let (all, cpu) = (&self.machine.write_backs, cpus::this());
        all.lock().unwrap().push(cpu);
        self.machine.cpus.comes_to(Event::WriteBack);
    }

    fn read(&self, from: Hpa, into: &mut [u8]) {
        access(&self.machine.server, from, into.len(), |memory| {
            memory.read(from.0, into);
        });
    }

    fn write(&self, to: Hpa, bytes: &[u8]) {
        access(&self.machine.server, to, bytes.len(), |memory| {
            memory.write(to.0, bytes);
        });
    }

    fn now_us(&self) -> u64 {
        self.machine.start.elapsed().as_micros() as u64
    }
}

//! A machine whose CPUs are threads of the exploring scheduler. Where a real CPU waits, it lets others run. It checks
//! for interrupts wherever a CPU could take one, also in the guest.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::running;
use host::platform::shutdown::Shutdown;
use host::platform::{CpuPlace, Platform};
use mm::frames::{Counts, Frames, words_for};
use mm::pages::Flush;
use mm::private::FramePool;
use seam::abi::x86::{efer, exit_reason};
use seam::abi::{FatalRecord, Gprs, GuestLeaf, Leaf, PAGE_1G, PAGE_4K, PageSize};
use seam::address::{Hpa, KeyIdPosition};
use seam::call::{Fault, SeamCall};
use seam::counters::Counters;
use seam::page::Clear;
use seam::retry::{Pause, Wait};
use seam::tdh::Tdh;
use shuttle::thread;
use stub_module::hooks::Hooks;
use stub_module::host::{Config, Exit, Guest, HostMachine, Server, TdmrPlan};
use stub_module::vcpu::{Field, Gpr, Vcpu};
use sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use sync::call::{self, Mailbox, NoAnswer};

/// Start of memory.
const BASE: u64 = 4 * PAGE_1G;
/// The module's own HKID.
pub const GLOBAL_HKID: u16 = 32;
/// The package of each CPU.
const PACKAGES: [u32; 4] = [0, 0, 1, 1];
pub const CPUS: usize = PACKAGES.len();

shuttle::thread_local! {
    static THIS: Cell<u32> = Cell::new(0);
}

/// Makes the calling thread this CPU.
pub fn become_cpu(cpu: u32) {
    THIS.with(|this| this.set(cpu));
}

/// The machine. Clones are the same one.
#[derive(Clone)]
pub struct Machine(pub Arc<Parts>);

pub struct Parts {
    pub server: Arc<Server>,
    places: Vec<CpuPlace>,
    pool: Pool,
    shutdown: Shutdown,
    counters: Vec<Counters>,
    mailboxes: [Mailbox; CPUS],
    pub interrupts: [AtomicBool; CPUS],
    /// Number of begun calls, by leaf.
    begun: Vec<AtomicU64>,
    pub running: running::State,
    clock: AtomicU64,
    is_clock_running: AtomicBool,
}

pub type Pool = FramePool<spin::Mutex<Frames>, Direct>;

impl Machine {
    /// Creates a machine whose module is ready and works without failures.
    pub fn new() -> Self {
        let config = Config {
            lp_to_package: PACKAGES.into(),
            cmrs: [(BASE, 2 * PAGE_1G)].into(),
            num_tdx_keyids: 32,
            ..Config::default()
        };
        let hooks = Hooks::parse("patterns").unwrap();
        let server = Arc::new(Server::with_hooks(config, hooks));
        let range = (BASE, BASE + PAGE_1G);
        let words = Box::leak(vec![0; words_for(range)].into_boxed_slice());
        let mut frames = Frames::new();
        frames.add_zone(range, words).unwrap();
        frames.add(range).unwrap();
        let tdmr = TdmrPlan {
            base: BASE,
            size: PAGE_1G,
        };
        server.bring_up(tdmr, GLOBAL_HKID.into()).unwrap();
        let machine = Self(Arc::new(Parts {
            places: (0..)
                .zip(PACKAGES)
                .map(|(cpu, package)| CpuPlace { cpu, package })
                .collect(),
            pool: FramePool::new(spin::Mutex::new(frames), Direct(Arc::clone(&server))),
            shutdown: Shutdown::new(),
            counters: PACKAGES.iter().map(|_| Counters::new()).collect(),
            mailboxes: Default::default(),
            interrupts: Default::default(),
            begun: Leaf::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            running: running::State::default(),
            clock: AtomicU64::new(0),
            is_clock_running: AtomicBool::new(false),
            server,
        }));
        for cpu in 0..CPUS as u32 {
            let guest = Busy(machine.clone());
            machine
                .0
                .server
                .machine()
                .set_guest(cpu, Some(Box::new(guest)));
        }
        machine
    }

    /// Sets the guest on CPU `cpu`.
    pub fn set_guest(&self, cpu: u32, guest: Box<dyn Guest>) {
        self.0.server.machine().set_guest(cpu, Some(guest));
    }

    /// Removes the guests, which hold references to the machine.
    pub fn take_apart(&self) {
        for cpu in 0..CPUS as u32 {
            self.0.server.machine().set_guest(cpu, None);
        }
    }

    /// Makes the next vCPU that the calling CPU enters accept this page first: an address, plus 1 for 2 MiB.
    pub fn accept_next(&self, page: u64) {
        let guest = Accepting {
            left: vec![page],
            then: Busy(self.clone()),
        };
        let machine = self.0.server.machine();
        machine.set_guest(self.this_cpu(), Some(Box::new(guest)));
    }

    /// Serves a pending interrupt of the calling CPU, and lets others run.
    pub fn breathe(&self) {
        let me = self.this_cpu();
        if self.0.interrupts[me as usize].swap(false, SeqCst) {
            self.0.mailboxes[me as usize].serve(me);
        }
        thread::yield_now();
    }

    /// Returns the number of calls of a leaf.
    pub fn begun(&self, leaf: Leaf) -> u64 {
        self.0.begun[place(leaf)].load(SeqCst)
    }

    /// Lets time pass, or stops it. While it passes, a wait for another CPU may time out.
    pub fn run_clock(&self, runs: bool) {
        self.0.is_clock_running.store(runs, SeqCst);
    }

    pub fn is_clock_running(&self) -> bool {
        self.0.is_clock_running.load(SeqCst)
    }

    pub fn keyid_position(&self) -> KeyIdPosition {
        let config = self.0.server.machine().config();
        KeyIdPosition::new(config.max_pa, config.keyid_bits).unwrap()
    }

    /// Checks that everything was given back, and that the module was asked nothing that it had to refuse.
    pub fn assert_spotless(&self) {
        self.0.server.audit(BASE..BASE + PAGE_1G).unwrap();
        let violations = self.0.server.module().violations();
        assert_eq!(violations.total(), 0, "{:?}", violations.take());
        assert_eq!(self.0.pool.refused(), 0);
        let ledger = self.0.pool.ledger().lock();
        let out = |counts: &Counts| (counts.used, counts.quarantined);
        assert!(ledger.counts().iter().all(|counts| out(counts) == (0, 0)));
        let illegal = self.0.counters.iter().map(|c| c.total().illegal);
        assert_eq!(illegal.sum::<u64>(), 0);
    }
}

fn place(leaf: Leaf) -> usize {
    Leaf::ALL.iter().position(|known| *known == leaf).unwrap()
}

/// A guest that stays in until an interrupt comes.
struct Busy(Machine);

impl Guest for Busy {
    fn run(&mut self, machine: &HostMachine, lp: u32, vcpu: &Vcpu<'_>) {
        // It may also leave for a reason of its own.
        for _ in 0..3 {
            thread::yield_now();
            if self.0.0.interrupts[lp as usize].load(SeqCst) {
                break;
            }
        }
        Exit::EXTERNAL_INTERRUPT.leave(machine, vcpu);
    }
}

/// Executes SEAMCALL, and lets others run before and after.
pub struct Caller {
    machine: Machine,
    cpu: u32,
}

impl SeamCall for Caller {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        if let Some(leaf) = Leaf::from_number(regs.rax as u16) {
            self.machine.0.begun[place(leaf)].fetch_add(1, SeqCst);
        }
        thread::yield_now();
        let processor = self.machine.0.server.processor(self.cpu).unwrap();
        let result = processor.seamcall(regs);
        thread::yield_now();
        result
    }

    fn note_shutdown(&self) {
        self.machine.shutdown().note(FatalRecord::default);
    }
}

/// Waits by letting others run, and takes interrupts.
pub struct Turn(Machine);

impl Wait for Turn {
    fn wait(&self, _: Pause) -> ControlFlow<()> {
        self.0.breathe();
        ControlFlow::Continue(())
    }
}

/// Memory access of the frame pool.
pub struct Direct(Arc<Server>);

impl Flush for Direct {
    // The simulated machine has no caches.
    fn flush(&self, _: Hpa, _: PageSize) {}
}

impl Clear for Direct {
    fn clear(&self, hpa: Hpa, size: PageSize) {
        let cpu = self.0.processor(THIS.with(Cell::get)).unwrap();
        for offset in (0..size.bytes()).step_by(PAGE_4K as usize) {
            cpu.clear(hpa.0 + offset).unwrap();
        }
    }
}

impl call::Machine for Machine {
    fn me(&self) -> u32 {
        self.this_cpu()
    }

    fn mailbox(&self, cpu: u32) -> &Mailbox {
        &self.0.mailboxes[cpu as usize]
    }

    fn notify(&self, cpu: u32) {
        self.0.interrupts[cpu as usize].store(true, SeqCst);
    }

    // Every CPU answers sooner or later.
    fn now(&self) -> u64 {
        0
    }

    fn is_over(&self, _: u64) -> bool {
        thread::yield_now();
        false
    }
}

impl Platform for Machine {
    type Call = Caller;
    type Wait = Turn;
    type Pool = Pool;

    fn tdh(&self) -> Tdh<'_, Caller, Turn> {
        let cpu = self.this_cpu();
        let caller = Caller {
            machine: self.clone(),
            cpu,
        };
        Tdh::new(caller, Turn(self.clone()), &self.0.counters[cpu as usize])
    }

    fn counters(&self, cpu: u32) -> Option<&Counters> {
        self.0.counters.get(cpu as usize)
    }

    fn shutdown(&self) -> &Shutdown {
        &self.0.shutdown
    }

    fn pool(&self) -> &Pool {
        &self.0.pool
    }

    fn cpus(&self) -> &[CpuPlace] {
        &self.0.places
    }

    fn this_cpu(&self) -> u32 {
        THIS.with(Cell::get)
    }

    fn on_each(&self, cpus: &[u32], work: &(dyn Fn(u32) + Sync)) -> Result<(), NoAnswer> {
        call::call(self, cpus, work)
    }

    fn relax(&self) {
        self.breathe();
    }

    // There are no caches.
    fn write_back_caches(&self) {}

    fn read(&self, from: Hpa, into: &mut [u8]) {
        self.0.server.machine().memory().read(from.0, into);
    }

    fn write(&self, to: Hpa, bytes: &[u8]) {
        self.0.server.machine().memory().write(to.0, bytes);
    }

    // No wait times out, unless a race lets time pass.
    fn now_us(&self) -> u64 {
        let passes = self.0.is_clock_running.load(SeqCst);
        self.0.clock.fetch_add(passes.into(), SeqCst)
    }
}

/// A guest that accepts pages one by one, and then is [`Busy`].
struct Accepting {
    left: Vec<u64>,
    then: Busy,
}

impl Guest for Accepting {
    fn run(&mut self, machine: &HostMachine, lp: u32, vcpu: &Vcpu<'_>) {
        const L: u64 = 1 << 13;
        let Some(page) = self.left.pop() else {
            return self.then.run(machine, lp, vcpu);
        };
        vcpu.set_vmcs(Field::EFER, vcpu.vmcs(Field::EFER) | efer::LMA);
        vcpu.set_vmcs(Field::CS_ACCESS, vcpu.vmcs(Field::CS_ACCESS) | L);
        vcpu.set_gpr(Gpr::Rax, GuestLeaf::MemPageAccept.rax());
        vcpu.set_gpr(Gpr::Rcx, page);
        let exit = Exit {
            instruction_length: 4,
            ..Exit::of(exit_reason::TDCALL)
        };
        exit.leave(machine, vcpu);
    }
}

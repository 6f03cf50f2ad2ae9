//! A server with an emulated module, a TD whose vCPUs play scripts, and a host that runs them.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod script;

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use devices::pci::Function;
use mm::frames::{Frames, words_for};
use mm::pages::{Flush as CacheFlush, page_of};
use mm::private::{FramePool, Kick, Levels, NoAnswer, PrivateMap, Settings};
use mm::shared::{self, Mirror, SharedMap, Words};
use seam::abi::metadata::sys;
use seam::abi::{Attributes, Gprs, PAGE_1G, PAGE_4K, PageSize, TdParams, Xfam};
use seam::address::{Hpa, KeyIdPosition};
use seam::counters::Counters;
use seam::hkid::Hkid;
use seam::page::{Clean, Clear, Donated, Page};
use seam::retry::{Pause, Wait};
use seam::tdh::{Tdh, Tdvpr};
use spin::Mutex;
use stub_module::Machine as _;
use stub_module::hooks::Hooks;
use stub_module::host::{Config, Processor, Server, TdmrPlan};
use vcpu::clock::Clock;
use vcpu::{Console, Event, Executor, PhysicalCpu, Stop, TimeSlice, Vcpu, Vm, Waker, Wiring, wire};
use zerocopy::{FromZeros, IntoBytes};

pub use script::{Act, Answer, Script, call};

/// The CPU on which a test's vCPUs run.
pub const CPU: u32 = 0;
/// Base address of the TDMR.
pub const BASE: u64 = 4 << 30;
/// The SHARED bit of all TDs in these tests.
pub const SHARED: u64 = 1 << 47;
/// The vector of the notification interrupt.
pub const NOTIFICATION: u8 = 0xF2;
const GLOBAL_HKID: u16 = 32;
const LEADERS: [u32; 2] = [0, 2];
const BUFFERS: u64 = 1 << 20;
const SIZE: u64 = PAGE_1G;

/// The host's access to memory.
pub struct Memory(Arc<Server>);

impl CacheFlush for Memory {
    fn flush(&self, _: Hpa, _: PageSize) {}
}

impl Clear for Memory {
    fn clear(&self, hpa: Hpa, size: PageSize) {
        let cpu = self.0.processor(0).unwrap();
        for offset in (0..size.bytes()).step_by(PAGE_4K as usize) {
            cpu.clear(hpa.0 + offset).unwrap();
        }
    }
}

type Pool = FramePool<Mutex<Frames>, Memory>;

/// A server with an emulated module.
pub struct Rig {
    pub server: Arc<Server>,
    pool: Pool,
    counters: Counters,
}

/// A [`Wait`] that does not wait.
pub struct Nothing;

impl Wait for Nothing {
    fn wait(&self, _: Pause) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Rig {
    /// Creates a server with 1 GiB for TDs. Its module has the faults `hooks`.
    pub fn new(hooks: &str) -> Self {
        let config = Config {
            cmrs: [(BASE, SIZE + PAGE_1G)].into(),
            ..Config::default()
        };
        let server = Arc::new(Server::with_hooks(config, Hooks::parse(hooks).unwrap()));
        let tdmr = TdmrPlan {
            base: BASE,
            size: SIZE,
        };
        server.bring_up(tdmr, GLOBAL_HKID.into()).unwrap();
        let span = (BASE, BASE + SIZE);
        let mut frames = Frames::new();
        let words = Box::leak(vec![0; words_for(span)].into_boxed_slice());
        frames.add_zone(span, words).unwrap();
        frames.add(span).unwrap();
        Self {
            pool: FramePool::new(Mutex::new(frames), Memory(Arc::clone(&server))),
            server,
            counters: Counters::new(),
        }
    }

    pub fn on(&self, lp: u32) -> Tdh<'_, Processor<'_>, Nothing> {
        Tdh::new(self.server.processor(lp).unwrap(), Nothing, &self.counters)
    }

    fn frame(&self) -> Page<Clean> {
        let frame = self.pool.ledger().lock().alloc_page(0).unwrap();
        page_of(frame, &Memory(Arc::clone(&self.server))).unwrap()
    }

    /// Asserts that no SEAMCALL was illegal, that no forbidden memory was accessed, and that no page was lost.
    pub fn audit(&self) {
        assert_eq!(self.counters.total().illegal, 0);
        let violations = self.server.module().violations();
        assert_eq!(violations.total(), 0, "{:?}", violations.take());
        assert_eq!(seam::page::lost_pages(), 0);
    }

    /// Returns the number of allocated 4 KiB pages.
    pub fn out(&self) -> u64 {
        let ledger = self.pool.ledger().lock();
        let counts = ledger.counts().iter().enumerate();
        counts.map(|(order, counts)| counts.used << order).sum()
    }

    /// Returns how often this leaf was called.
    pub fn calls(&self, leaf: seam::abi::Leaf) -> u64 {
        self.counters.leaf(leaf).calls
    }
}

impl shared::Frames for Rig {
    fn take(&self, size: PageSize) -> Option<Hpa> {
        let order = if size == PageSize::Size4K { 0 } else { 9 };
        let frame = self.pool.ledger().lock().alloc(order).ok()?;
        for offset in (0..size.bytes()).step_by(PAGE_4K as usize) {
            self.server.machine().fill_page(frame.pa + offset, 0);
        }
        Some(Hpa(frame.pa))
    }

    fn give(&self, hpa: Hpa, size: PageSize) {
        let order = if size == PageSize::Size4K { 0 } else { 9 };
        let frame = mm::frames::Frame { pa: hpa.0, order };
        self.pool.ledger().lock().free(frame).unwrap();
    }

    fn quarantine(&self, hpa: Hpa, size: PageSize) {
        let order = if size == PageSize::Size4K { 0 } else { 9 };
        let frame = mm::frames::Frame { pa: hpa.0, order };
        self.pool.ledger().lock().quarantine(frame).unwrap();
    }

    fn split(&self, hpa: Hpa) {
        let frame = mm::frames::Frame {
            pa: hpa.0,
            order: 9,
        };
        self.pool.ledger().lock().split(frame, 0).unwrap();
    }

    fn words(&self, hpa: Hpa) -> &Words {
        self.server.machine().page(hpa.0)
    }
}

/// A runnable TD with vCPUs and memory from address 0 on.
pub struct Td<'r> {
    pub rig: &'r Rig,
    pub vm: Vm,
    pub map: ManuallyDrop<PrivateMap>,
    pub tdvprs: ManuallyDrop<Vec<Tdvpr>>,
    pub vcpus: Vec<Mutex<Vcpu>>,
    /// Never reclaimed: the TD lives as long as the server.
    control: ManuallyDrop<Vec<Page<Donated>>>,
}

/// The parameters of a TD.
pub struct Shape {
    pub vcpus: u32,
    pub memory: u64,
    pub attributes: Attributes,
    /// True if the TD has the device that tells UEFI firmware its machine.
    pub has_fw_cfg: bool,
    /// The devices' view of the shared memory.
    pub mirror: Option<Arc<dyn Mirror>>,
}

impl Default for Shape {
    /// Returns the shape with one vCPU and 64 MiB.
    fn default() -> Self {
        Self {
            vcpus: 1,
            memory: 64 << 20,
            attributes: Attributes::empty(),
            has_fw_cfg: false,
            mirror: None,
        }
    }
}

impl<'r> Td<'r> {
    pub fn new(rig: &'r Rig, shape: &Shape) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the test plays the pool")]
        let hkid = Hkid::mint(33);
        let tdh = rig.on(0);
        let tdr = tdh.mng_create(rig.frame(), hkid).unwrap();
        for leader in LEADERS {
            rig.on(leader).mng_key_config(&tdr).unwrap();
        }
        let pages = |field| tdh.sys_rd(field).unwrap() / PAGE_4K;
        let mut control: Vec<_> = (0..pages(sys::TDCS_BASE_SIZE.id))
            .map(|_| tdh.mng_addcx(&tdr, rig.frame()).unwrap())
            .collect();
        let mut params = TdParams::new_zeroed();
        params.attributes = shape.attributes;
        params.xfam = Xfam::X87 | Xfam::SSE;
        params.max_vcpus = shape.vcpus as u16;
        params.eptp_controls = 0x1e;
        params.tsc_frequency = 40;
        let memory = rig.server.machine().memory();
        memory.write(BUFFERS, params.as_bytes());
        tdh.mng_init(&tdr, Hpa(BUFFERS)).unwrap();
        let shared = SharedMap::new(rig, Levels::Four, SHARED).unwrap();
        let shared = match &shape.mirror {
            Some(mirror) => shared.with_mirror(mirror.clone()),
            None => shared,
        };
        let root = shared.root();
        let mut tdvprs = Vec::new();
        for _ in 0..shape.vcpus {
            let tdvpr = tdh.vp_create(&tdr, rig.frame()).unwrap();
            let more = 1..pages(sys::TDVPS_BASE_SIZE.id);
            control.extend(more.map(|_| tdh.vp_addcx(&tdvpr, rig.frame()).unwrap()));
            tdh.vp_init(&tdvpr, 0, None).unwrap();
            // The emulated CPU of these tests does not read descriptors, so any address will do.
            let wiring = Wiring {
                descriptor: Hpa(BUFFERS),
                notification: NOTIFICATION,
                shared: root,
            };
            wire(&tdh, &tdvpr, wiring).unwrap();
            tdvprs.push(tdvpr);
        }
        let settings = Settings {
            limit: 4 * PAGE_1G,
            levels: Levels::Four,
            keyid: KeyIdPosition::new(52, 6).unwrap(),
            sept_limit: u64::MAX,
        };
        let map = PrivateMap::new(tdr, settings).unwrap();
        map.finalize(&tdh).unwrap();
        let clock = Clock::new(1 << 48, 0, 40);
        let memory = std::iter::once(0..shape.memory).collect();
        let console = Arc::new(Console::new());
        let vm = Vm::new(0..shape.vcpus, memory, shared, clock, console);
        let facts = devices::fw_cfg::Facts {
            vcpus: shape.vcpus as u16,
            ..Default::default()
        };
        let vm = match shape.has_fw_cfg {
            true => vm.with_fw_cfg(&facts),
            false => vm,
        };
        Self {
            vcpus: Vcpu::all_of(&vm).map(Mutex::new).collect(),
            vm,
            map: ManuallyDrop::new(map),
            tdvprs: ManuallyDrop::new(tdvprs),
            rig,
            control: ManuallyDrop::new(control),
        }
    }

    /// Adds a function to the TD's bus, as device 1.
    pub fn with_function(self, function: impl Function + 'static) -> Self {
        let functions = vec![Arc::new(Mutex::new(function)) as Arc<Mutex<dyn Function>>];
        let vm = self.vm.with_functions(functions);
        Self { vm, ..self }
    }

    /// Adds functions to the TD's PCI bus.
    pub fn with_functions(self, functions: Vec<Arc<Mutex<dyn devices::pci::Function>>>) -> Self {
        Self {
            vm: self.vm.with_functions(functions),
            ..self
        }
    }

    /// Lets the guest ask for quotes.
    pub fn with_quotes(self, quotes: vcpu::quotes::Quotes) -> Self {
        Self {
            vm: self.vm.with_quotes(quotes),
            ..self
        }
    }

    /// Creates a host that runs the TD's vCPUs on CPU 0.
    pub fn host(&self) -> TestHost<'_> {
        TestHost {
            td: self,
            tdh: self.rig.on(0),
            tsc: Cell::new(1_000_000),
            budget: Cell::new(1_000_000),
            timer: Cell::new(None),
            served: RefCell::default(),
            notified: RefCell::default(),
            interrupted: RefCell::default(),
            woken: RefCell::default(),
            notified_here: Cell::new(0),
            kicks: AtomicU64::new(0),
            silent: AtomicU32::new(0),
            left_work: RefCell::default(),
            meanwhile: RefCell::default(),
        }
    }

    /// Runs vCPU number `index` with the guest code `script` until it stops.
    pub fn run(&self, host: &TestHost<'_>, index: u32, script: &Script) -> Stop {
        let machine = self.rig.server.machine();
        machine.set_guest(0, Some(script.player()));
        let at = index as usize;
        let mut vcpu = self.vcpus[at].lock();
        let stop = vcpu.run(&self.vm, &self.tdvprs[at], host);
        if stop == Stop::Halted {
            self.vm.vcpus()[at].wait();
        }
        machine.set_guest(0, None);
        stop
    }

    /// Does the same in the middle of `outer`, which plays on this CPU.
    pub fn run_within(&self, outer: &Script, index: u32, script: &Script) -> Stop {
        let stop = self.run(&self.host(), index, script);
        let machine = self.rig.server.machine();
        machine.set_guest(0, Some(outer.player()));
        stop
    }

    /// Makes these calls on vCPU 0 and returns the answers. The vCPU stops because its script is over.
    pub fn ask(&self, calls: &[Gprs]) -> Vec<Gprs> {
        let script = Script::new(calls.iter().map(|regs| Act::Call(*regs)));
        let host = self.host();
        assert_eq!(self.run(&host, 0, &script), Stop::Yield);
        script.answers().into_iter().map(Answer::regs).collect()
    }
}

/// The host of one vCPU.
pub struct TestHost<'t> {
    pub td: &'t Td<'t>,
    tdh: Tdh<'t, Processor<'t>, Nothing>,
    pub tsc: Cell<u64>,
    /// Number of entries after which the vCPU must leave.
    pub budget: Cell<u64>,
    pub timer: Cell<Option<u64>>,
    pub served: RefCell<Vec<u8>>,
    pub notified: RefCell<Vec<u32>>,
    pub interrupted: RefCell<Vec<u32>>,
    /// The vCPUs that waited in the run queue and were woken.
    pub woken: RefCell<Vec<u32>>,
    pub notified_here: Cell<u64>,
    pub kicks: AtomicU64,
    pub silent: AtomicU32,
    /// The ticks of the rounds of devices' work after which some was left.
    pub left_work: RefCell<Vec<u64>>,
    /// Runs while this vCPU waits for all CPUs; plays another vCPU.
    pub meanwhile: RefCell<Option<Box<dyn Fn() + 't>>>,
}

impl Executor for TestHost<'_> {
    fn notify(&self, cpu: u32) {
        self.notified.borrow_mut().push(cpu);
    }

    fn interrupt(&self, cpu: u32) {
        self.interrupted.borrow_mut().push(cpu);
    }

    fn woken(&self) {
        self.woken.borrow_mut().extend(self.td.vm.take_woken());
    }
}

impl TestHost<'_> {
    /// Returns the door to the TD's vCPUs.
    pub fn waker(&self) -> Waker<'_> {
        Waker::new(&self.td.vm, self)
    }

    /// Posts an interrupt to a vCPU.
    pub fn post(&self, vcpu: u32, vector: u8) {
        self.waker().wake(vcpu, Event::Interrupt(vector));
    }

    /// Posts an NMI to a vCPU.
    pub fn post_nmi(&self, vcpu: u32) {
        self.waker().wake(vcpu, Event::Nmi);
    }

    fn answer(&self) -> Result<(), NoAnswer> {
        self.kicks.fetch_add(1, Ordering::Relaxed);
        if let Some(work) = &*self.meanwhile.borrow() {
            work();
        }
        match self.silent.load(Ordering::Relaxed) {
            0 => Ok(()),
            cpu => Err(NoAnswer { cpu }),
        }
    }
}

impl Kick for TestHost<'_> {
    fn kick(&self) -> Result<(), NoAnswer> {
        self.answer()
    }
}

impl shared::Flush for TestHost<'_> {
    fn flush(&self) -> Result<(), NoAnswer> {
        self.answer()
    }
}

/// The vector by which a script signals that it is over.
pub const OUT_OF_LINES: u8 = 0xFE;

impl PhysicalCpu for TestHost<'_> {
    type Frames = Rig;

    fn shared_frames(&self) -> &Rig {
        self.td.rig
    }

    fn tsc(&self) -> u64 {
        self.tsc.get()
    }

    fn monotonic_us(&self) -> u64 {
        self.tsc.get() / 1000
    }

    fn unix_seconds(&self) -> u64 {
        1_790_000_000
    }

    fn serve_interrupt(&self, vector: u8) {
        self.served.borrow_mut().push(vector);
    }

    fn serve_nmi(&self) {
        self.served.borrow_mut().push(2);
    }

    fn serve_machine_check(&self) {
        // The other vCPUs, which find the TD lost meanwhile, must not be first with their reason.
        assert!(self.td.vm.end().is_some(), "the end is not recorded yet");
        self.served.borrow_mut().push(18);
    }

    fn take_interrupts(&self) {}

    fn notify(&self, cpu: u32) {
        assert_eq!(cpu, CPU, "a vCPU notifies its own CPU");
        self.notified_here.set(self.notified_here.get() + 1);
    }

    fn wake_console(&self) {}
}

impl<'t> TimeSlice for TestHost<'t> {
    type Call = Processor<'t>;
    type Wait = Nothing;
    type Pool = Pool;
    type Cpu = Self;

    fn cpu(&self) -> &Self {
        self
    }

    fn cpu_number(&self) -> u32 {
        CPU
    }

    fn executor(&self) -> &dyn Executor {
        self
    }

    fn tdh(&self) -> &Tdh<'_, Self::Call, Nothing> {
        &self.tdh
    }

    fn private(&self) -> &PrivateMap {
        &self.td.map
    }

    fn pool(&self) -> &Pool {
        &self.td.rig.pool
    }

    fn must_leave(&self) -> bool {
        let left = self.budget.get();
        self.budget.set(left.saturating_sub(1));
        left == 0 || self.served.borrow().contains(&OUT_OF_LINES)
    }

    fn set_timer(&self, tsc: Option<u64>) {
        self.timer.set(tsc);
    }

    fn leave_work(&self, ticks: u64) {
        self.left_work.borrow_mut().push(ticks);
    }
}

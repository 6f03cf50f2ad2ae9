//! Test kit: a server with an emulated module that is up, its frames, and TDs with a private map.

use core::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mm::frames::{Allocated, Counts, Frames, words_for};
use mm::pages::{Flush, frame_of, page_of};
use mm::private::{Clearing, Cpu, FramePool, Levels, PrivateMap, Settings, Unowned};
use seam::abi::metadata::sys;
use seam::abi::x86::{efer, exit_reason};
use seam::abi::{Gprs, Leaf, PAGE_1G, PAGE_4K, PageSize, Status, TdParams, Xfam};
use seam::address::{Hpa, KeyIdPosition};
use seam::call::{Fault, SeamCall};
use seam::counters::Counters;
use seam::hkid::Hkid;
use seam::page::{Clean, Clear, Donated, Page};
use seam::retry::{Pause, Wait};
use seam::tdh::resume::{CacheWbRound, Step};
use seam::tdh::{EnterFlags, Tdh, Tdvpr};
use spin::Mutex;
use stub_module::hooks::Hooks;
use stub_module::host::{Config, Exit, Guest, HostMachine, Processor, Server, TdmrPlan};
use stub_module::vcpu::{Field, Gpr, Vcpu};
use zerocopy::{FromZeros, IntoBytes};

/// Base of the TDMR.
pub const BASE: u64 = 4 << 30;
/// The module's own HKID.
pub const GLOBAL_HKID: u16 = 32;
/// One CPU of each package.
pub const LEADERS: [u32; 2] = [0, 2];
/// Address of the host's buffers.
const BUFFERS: u64 = 1 << 20;
/// A page of the host to be copied from.
pub const SOURCE: Hpa = Hpa(BUFFERS + PAGE_4K);

/// The host's access to memory.
pub struct Memory(Arc<Server>);

impl Flush for Memory {
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

pub type Pool = FramePool<Mutex<Frames>, Memory>;

/// A server and the host's state.
pub struct Host {
    pub server: Arc<Server>,
    pub pool: Pool,
    pub size: u64,
    counters: [Counters; 4],
    waits: AtomicU64,
}

/// Waits by letting other threads run.
pub struct Yield<'h>(&'h AtomicU64);

impl Wait for Yield<'_> {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        assert!(pause.tries < pause.reason.max_tries());
        self.0.fetch_add(1, Ordering::Relaxed);
        std::thread::yield_now();
        ControlFlow::Continue(())
    }
}

pub type Calls<'h> = Tdh<'h, Processor<'h>, Yield<'h>>;
/// A CPU on which some calls of one leaf are not made, but end with a status that the test chooses.
pub struct Strange<'h> {
    cpu: Processor<'h>,
    leaf: Leaf,
    status: Status,
    /// Number of calls of the leaf so far.
    calls: &'h AtomicU64,
    /// The calls that end this way, counted from 1.
    which: core::ops::Range<u64>,
}

impl SeamCall for Strange<'_> {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        if regs.rax == self.leaf.rax() {
            let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
            if self.which.contains(&number) {
                regs.rax = self.status.0;
                return Ok(());
            }
        }
        self.cpu.seamcall(regs)
    }

    fn note_shutdown(&self) {
        self.cpu.note_shutdown();
    }
}

pub type OnCpu<'a, 'h> = Cpu<'a, Processor<'h>, Yield<'h>, Pool>;

impl Host {
    /// Creates a server with 1 GiB for TDs.
    pub fn new(hooks: &str) -> Self {
        Self::sized(hooks, PAGE_1G)
    }

    /// Creates a server with `size` bytes for TDs, a multiple of 1 GiB.
    pub fn sized(hooks: &str, size: u64) -> Self {
        let config = Config {
            cmrs: [(BASE, size + PAGE_1G)].into(),
            ..Config::default()
        };
        let server = Server::with_hooks(config, Hooks::parse(hooks).unwrap());
        let server = Arc::new(server);
        let tdmr = TdmrPlan { base: BASE, size };
        server.bring_up(tdmr, GLOBAL_HKID.into()).unwrap();
        let span = (BASE, BASE + size);
        let mut frames = Frames::new();
        let words = Box::leak(vec![0; words_for(span)].into_boxed_slice());
        frames.add_zone(span, words).unwrap();
        frames.add(span).unwrap();
        Self {
            pool: FramePool::new(Mutex::new(frames), Memory(Arc::clone(&server))),
            server,
            size,
            counters: Default::default(),
            waits: AtomicU64::new(0),
        }
    }

    /// Returns the module as CPU `lp` calls it.
    pub fn on(&self, lp: u32) -> Calls<'_> {
        let cpu = self.server.processor(lp).unwrap();
        Tdh::new(cpu, Yield(&self.waits), &self.counters[lp as usize])
    }

    /// Calls `work` as CPU `lp`.
    pub fn with<R>(&self, lp: u32, work: impl FnOnce(OnCpu<'_, '_>) -> R) -> R {
        let tdh = self.on(lp);
        work(Cpu {
            tdh: &tdh,
            pool: &self.pool,
        })
    }

    /// Calls `work` as CPU 0, where calls of `leaf` with a number in `which` end with `status`. `calls` counts them.
    pub fn strangely<'h, R>(
        &'h self,
        (leaf, status): (Leaf, Status),
        which: core::ops::Range<u64>,
        calls: &'h AtomicU64,
        work: impl FnOnce(Cpu<'_, Strange<'h>, Yield<'h>, Pool>) -> R,
    ) -> R {
        let call = Strange {
            cpu: self.server.processor(0).unwrap(),
            leaf,
            status,
            calls,
            which,
        };
        work(Cpu {
            tdh: &Tdh::new(call, Yield(&self.waits), &self.counters[0]),
            pool: &self.pool,
        })
    }

    /// Allocates a frame of 4 KiB.
    pub fn frame(&self) -> Page<Clean> {
        let frame = self.pool.ledger().lock().alloc(0).unwrap();
        page_of(
            Allocated {
                frame,
                flushed: false,
            },
            &Memory(Arc::clone(&self.server)),
        )
        .unwrap()
    }

    /// Frees a frame.
    pub fn give(&self, page: Page<Clean>) {
        self.pool.ledger().lock().free(frame_of(page)).unwrap();
    }

    /// Returns the counts of frames, by order.
    pub fn ledger(&self) -> Vec<Counts> {
        self.pool.ledger().lock().counts().to_vec()
    }

    /// Returns the numbers of 4 KiB pages that are allocated and that are in quarantine.
    pub fn out(&self) -> (u64, u64) {
        let counts = self.ledger();
        let sum = |of: fn(&Counts) -> u64| {
            let all = counts.iter().enumerate();
            all.map(|(order, counts)| of(counts) << order).sum::<u64>()
        };
        (sum(|c| c.used), sum(|c| c.quarantined))
    }

    /// Returns the number of calls of a leaf, on all CPUs.
    pub fn calls(&self, leaf: Leaf) -> u64 {
        self.counters.iter().map(|c| c.leaf(leaf).calls).sum()
    }

    /// Returns the number of calls that should not have been made.
    pub fn illegal(&self) -> u64 {
        self.counters.iter().map(|c| c.total().illegal).sum()
    }

    /// Checks that the module's books are consistent, and that they match the ledger.
    pub fn audit(&self) {
        let frames = self.server.audit(BASE..BASE + self.size).unwrap();
        let pages: u64 = frames.values().map(|frame| frame.size / PAGE_4K).sum();
        let (used, quarantined) = self.out();
        assert_eq!(pages, used + quarantined - self.pool.kept_bytes() / PAGE_4K);
        assert_eq!(self.illegal(), 0);
        let violations = self.server.module().violations();
        assert_eq!(violations.total(), 0, "{:?}", violations.take());
        assert_eq!(self.pool.refused(), 0);
    }

    /// Checks that every frame is free again.
    pub fn assert_spotless(&self) {
        self.audit();
        assert_eq!(self.out(), (0, 0));
        assert_eq!(seam::page::lost_pages(), 0);
        assert_eq!(seam::hkid::lost_hkids(), 0);
    }
}

/// A TD with its map, its control pages and its vCPU.
pub struct Td<'h> {
    pub host: &'h Host,
    pub map: PrivateMap,
    pub control: Vec<Page<Donated>>,
    pub tdvpr: Tdvpr,
    /// The CPU with which its vCPU is associated.
    pub lp: u32,
}

impl<'h> Td<'h> {
    /// Creates an initialised TD with one vCPU on CPU `lp` and no private memory. Faults may be injected from now on.
    pub fn new(host: &'h Host, hkid: u16, lp: u32) -> Self {
        Self::with_clearing(host, hkid, lp, Clearing::Clear)
    }

    /// Like [`Self::new`]. `clearing` applies to pages that the TD loses while it has its key.
    pub fn with_clearing(host: &'h Host, hkid: u16, lp: u32, clearing: Clearing) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the test plays the pool")]
        let hkid = Hkid::mint(hkid);
        let tdh = host.on(0);
        let tdr = tdh.mng_create(host.frame(), hkid).unwrap();
        for leader in LEADERS {
            host.on(leader).mng_key_config(&tdr).unwrap();
        }
        let tdcs = tdh.sys_rd(sys::TDCS_BASE_SIZE.id).unwrap() / PAGE_4K;
        let mut control: Vec<_> = (0..tdcs)
            .map(|_| tdh.mng_addcx(&tdr, host.frame()).unwrap())
            .collect();
        let mut params = TdParams::new_zeroed();
        params.xfam = Xfam::X87 | Xfam::SSE;
        params.max_vcpus = 2;
        params.eptp_controls = 0x1e;
        params.tsc_frequency = 40;
        let memory = host.server.machine().memory();
        memory.write(BUFFERS, params.as_bytes());
        tdh.mng_init(&tdr, Hpa(BUFFERS)).unwrap();
        let tdvpr = tdh.vp_create(&tdr, host.frame()).unwrap();
        let tdvps = tdh.sys_rd(sys::TDVPS_BASE_SIZE.id).unwrap() / PAGE_4K;
        control.extend((1..tdvps).map(|_| tdh.vp_addcx(&tdvpr, host.frame()).unwrap()));
        host.on(lp).vp_init(&tdvpr, 0, None).unwrap();
        let settings = Settings {
            limit: 4 * PAGE_1G,
            levels: Levels::Four,
            keyid: KeyIdPosition::new(52, 6).unwrap(),
            sept_limit: u64::MAX,
        };
        Self {
            host,
            map: Unowned::new(settings)
                .unwrap()
                .clearing(clearing)
                .owned_by(tdr),
            control,
            tdvpr,
            lp,
        }
    }

    /// Creates a finalised TD.
    pub fn runnable(host: &'h Host, hkid: u16, lp: u32) -> Self {
        let td = Self::new(host, hkid, lp);
        td.map.finalize(&host.on(0)).unwrap();
        td
    }

    /// Lets the guest accept the page of `size` at `gpa`. Returns RAX as the guest finds it, or `None` if the guest
    /// exited to the host instead.
    pub fn accept(&self, gpa: u64, size: PageSize) -> Option<Status> {
        const MEM_PAGE_ACCEPT: u64 = 6;
        let machine = self.host.server.machine();
        let result = Arc::new(AtomicU64::new(u64::MAX));
        let script = Accept {
            rcx: gpa | size as u64,
            rax: MEM_PAGE_ACCEPT,
            result: Arc::clone(&result),
            asked: false,
        };
        machine.set_guest(self.lp, Some(Box::new(script)));
        self.enter();
        machine.set_guest(self.lp, None);
        Some(result.load(Ordering::SeqCst))
            .filter(|rax| *rax != u64::MAX)
            .map(Status)
    }

    /// Runs TDH.VP.ENTER until the next exit.
    pub fn enter(&self) {
        let mut regs = Gprs::default();
        let tdh = self.host.on(self.lp);
        let status = tdh.vp_enter(&self.tdvpr, EnterFlags::default(), &mut regs);
        assert!(!status.unwrap().is_error(), "{status:?}");
    }

    /// Releases the HKID; the memory stays.
    pub fn release(&self) {
        let host = self.host;
        self.map.close(|_| ControlFlow::Continue(())).unwrap();
        host.on(self.lp).vp_flush(&self.tdvpr).unwrap();
        let tdh = host.on(0);
        self.map.flush_done(&tdh).unwrap();
        for leader in LEADERS {
            let mut round = CacheWbRound::new();
            while round.step(&host.on(leader)).unwrap() == Step::More {}
        }
        let hkid = self.map.free_hkid(&tdh).unwrap().unwrap();
        hkid.surrender();
    }

    /// Returns the map, and the pages of the vCPU and the TDCX.
    pub fn into_parts(self) -> (PrivateMap, Vec<Page<Donated>>) {
        let Self {
            map,
            mut control,
            tdvpr,
            ..
        } = self;
        control.push(tdvpr.into_page());
        (map, control)
    }

    /// Tears down a TD that has no private memory and no key any more.
    pub fn bury(self) {
        let Self {
            host,
            map,
            mut control,
            tdvpr,
            ..
        } = self;
        let tdh = host.on(0);
        control.push(tdvpr.into_page());
        let tdr = map.take_root().unwrap();
        let memory = Memory(Arc::clone(&host.server));
        for page in control {
            let page = tdh.phymem_page_reclaim(&tdr, page).unwrap();
            host.give(page.clear(&memory));
        }
        let page = tdh.phymem_page_reclaim_tdr(tdr, GLOBAL_HKID).unwrap();
        let keyid = KeyIdPosition::new(52, 6).unwrap();
        let page = tdh.phymem_page_wbinvd(page, keyid).unwrap();
        host.give(page.clear(&memory));
    }
}

/// A guest that makes one TDCALL and is then interrupted.
struct Accept {
    rax: u64,
    rcx: u64,
    result: Arc<AtomicU64>,
    asked: bool,
}

impl Guest for Accept {
    fn run(&mut self, machine: &HostMachine, _: u32, vcpu: &Vcpu<'_>) {
        const L: u64 = 1 << 13;
        if self.asked {
            self.result.store(vcpu.gpr(Gpr::Rax), Ordering::SeqCst);
            Exit::EXTERNAL_INTERRUPT.leave(machine, vcpu);
            return;
        }
        self.asked = true;
        vcpu.set_vmcs(Field::EFER, vcpu.vmcs(Field::EFER) | efer::LMA);
        vcpu.set_vmcs(Field::CS_ACCESS, vcpu.vmcs(Field::CS_ACCESS) | L);
        vcpu.set_gpr(Gpr::Rax, self.rax);
        vcpu.set_gpr(Gpr::Rcx, self.rcx);
        let exit = Exit {
            instruction_length: 4,
            ..Exit::of(exit_reason::TDCALL)
        };
        exit.leave(machine, vcpu);
    }
}

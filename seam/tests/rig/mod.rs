//! A small machine with the emulated module and a frame ledger, and a TD built through the typed calls.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test program uses a part of it"
)]

mod frames;
mod td;

use core::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use seam::abi::metadata::sys;
use seam::abi::{
    CmrInfo, Gprs, PAGE_1G, PAGE_2M, PAGE_4K, PAMT_ENTRY_SIZE, PageSize, PamtArea, TdmrInfo,
};
use seam::address::{Hpa, KeyIdPosition};
use seam::call::{Fault, SeamCall};
use seam::counters::Counters;
use seam::error::{Error, Handover};
use seam::hkid::Hkid;
use seam::retry::{Pause, Reason, Wait};
use seam::tdh::Tdh;
use seam::tdh::resume::{Step, TdmrInit};
use stub_module::hooks::Hooks;
use stub_module::host::{Config, HostMachine};
use stub_module::{Module, Release};
use zerocopy::IntoBytes;

pub use frames::Frames;
pub use td::{Dead, Td};

/// The only TDMR, the first gigabyte of memory. All frames of TDs come from it.
const TDMR: u64 = 4 * PAGE_1G;
/// The PAMTs and the host's buffers, in the second gigabyte.
const PAMT: u64 = 5 * PAGE_1G;
const BUFFERS: u64 = PAMT + 16 * PAGE_2M;
/// The module's own HKID.
pub const GLOBAL_HKID: u16 = 32;
/// One CPU of each package.
pub const LEADERS: [u32; 2] = [0, 2];
/// Number of times that a call that stayed busy is made again as a whole.
const ROUNDS: u32 = 16;

/// The machine.
pub struct Rig {
    pub machine: HostMachine,
    pub module: Module,
    pub frames: Frames,
    pub position: KeyIdPosition,
    counters: [Counters; 4],
    pauses: AtomicU64,
}

/// One CPU of the machine, as an executor of SEAMCALLs.
pub struct Cpu<'r> {
    rig: &'r Rig,
    lp: u32,
}

impl SeamCall for Cpu<'_> {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        self.rig.module.seamcall(&self.rig.machine, self.lp, regs);
        Ok(())
    }

    // No host keeps a record of it.
    fn note_shutdown(&self) {}
}

/// Counts pauses without sleeping: there is only one thread, so nothing changes during a pause.
pub struct Patience<'r>(&'r AtomicU64);

impl Wait for Patience<'_> {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        assert!(pause.us <= 1024 && pause.tries < pause.reason.max_tries());
        self.0.fetch_add(1, Ordering::Relaxed);
        ControlFlow::Continue(())
    }
}

pub type Calls<'r> = Tdh<'r, Cpu<'r>, Patience<'r>>;

impl Rig {
    /// Creates a machine whose module is loaded but not initialised, with the faults `hooks`.
    pub fn new(hooks: &str) -> Self {
        Self::with_release(Release::default(), hooks)
    }

    /// Does the same for a release of the module.
    pub fn with_release(release: Release, hooks: &str) -> Self {
        let machine = HostMachine::new(Config {
            release,
            ..Config::default()
        });
        let hooks = Hooks::parse(hooks).unwrap();
        let module = Module::with_hooks(
            &stub_module::Machine::platform(&machine),
            machine.config().release,
            hooks,
        );
        Self {
            position: KeyIdPosition::new(52, 6).unwrap(),
            frames: Frames::new(TDMR..TDMR + PAGE_1G),
            counters: Default::default(),
            pauses: AtomicU64::new(0),
            machine,
            module,
        }
    }

    /// Creates a machine whose module is ready.
    pub fn ready(hooks: &str) -> Self {
        let rig = Self::new(hooks);
        rig.bring_up();
        rig
    }

    /// Returns CPU `lp`.
    pub fn cpu(&self, lp: u32) -> Cpu<'_> {
        Cpu { rig: self, lp }
    }

    /// Returns the module interface of CPU `lp`.
    pub fn on(&self, lp: u32) -> Calls<'_> {
        Tdh::new(
            self.cpu(lp),
            Patience(&self.pauses),
            &self.counters[lp as usize],
        )
    }

    /// Brings the module up, from TDH.SYS.INIT to the last TDH.SYS.TDMR.INIT.
    pub fn bring_up(&self) {
        self.bring_up_by(|tdh, list, hkid| tdh.sys_config(list, 1, hkid));
    }

    /// Does the same with another way to call TDH.SYS.CONFIG.
    pub fn bring_up_by(&self, config: impl Fn(&Calls<'_>, Hpa, &Hkid) -> Result<(), Error>) {
        let tdh = self.on(0);
        persist_in(|| tdh.sys_init());
        for lp in 0..4 {
            persist_in(|| self.on(lp).sys_lp_init());
        }
        self.describe();
        let list = self.list_of_tdmrs();
        let hkid = Hkid::mint(GLOBAL_HKID);
        persist_in(|| config(&tdh, list, &hkid));
        hkid.surrender();
        for lp in LEADERS {
            persist_in(|| self.on(lp).sys_key_config());
        }
        let mut init = TdmrInit::new(Hpa(TDMR), PAGE_1G);
        while persist_in(|| init.step(&tdh)) == Step::More {}
    }

    /// Queries the module's properties in all three ways.
    fn describe(&self) {
        let tdh = self.on(0);
        let info = persist_in(|| tdh.sys_info(Hpa(BUFFERS), 1024, Hpa(BUFFERS + 1024), 32));
        assert_eq!((info.bytes, info.cmrs), (1024, 32));
        let mut cmr = CmrInfo::default();
        let memory = self.machine.memory();
        memory.read(BUFFERS + 1024, cmr.as_mut_bytes());
        let told = [sys::CMR_BASE, sys::CMR_SIZE].map(|field| persist_in(|| tdh.sys_rd(field.id)));
        assert_eq!([cmr.base, cmr.size], told);
    }

    /// Returns the list with one TDMR and its PAMTs, as TDH.SYS.CONFIG takes it.
    fn list_of_tdmrs(&self) -> Hpa {
        let area = |index: u64, size: PageSize| PamtArea {
            base: PAMT + index * 4 * PAGE_2M,
            size: (PAGE_1G / size.bytes() * PAMT_ENTRY_SIZE).next_multiple_of(PAGE_4K),
        };
        let info = TdmrInfo {
            base: TDMR,
            size: PAGE_1G,
            pamt_1g: area(0, PageSize::Size1G),
            pamt_2m: area(1, PageSize::Size2M),
            pamt_4k: area(2, PageSize::Size4K),
            ..TdmrInfo::default()
        };
        let memory = self.machine.memory();
        memory.write(BUFFERS, info.as_bytes());
        memory.write(BUFFERS + PAGE_4K, &BUFFERS.to_le_bytes());
        Hpa(BUFFERS + PAGE_4K)
    }

    /// Returns a page of host memory with these bytes at its start.
    pub fn buffer(&self, bytes: &[u8]) -> Hpa {
        self.machine.memory().write(BUFFERS, bytes);
        Hpa(BUFFERS)
    }

    /// Returns the number of illegal calls on all CPUs.
    pub fn illegal(&self) -> u64 {
        self.counters.iter().map(|c| c.total().illegal).sum()
    }

    /// Returns the number of retries for this reason on all CPUs.
    pub fn retries(&self, reason: Reason) -> u64 {
        self.counters.iter().map(|c| c.retry(reason).retries).sum()
    }

    /// Returns the number of pauses.
    pub fn pauses(&self) -> u64 {
        self.pauses.load(Ordering::Relaxed)
    }

    /// Asserts that everything was given back, no call was illegal, and the module saw no violation.
    pub fn assert_spotless(&self) {
        self.frames.assert_all_back();
        assert_eq!(self.illegal(), 0);
        let violations = self.module.violations();
        assert_eq!(violations.total(), 0, "{:?}", violations.take());
        assert_eq!((seam::page::lost_pages(), seam::hkid::lost_hkids()), (0, 0));
    }
}

/// Repeats a call that takes ownership until it succeeds. Each failure must return all operands.
pub fn persist<T, G: core::fmt::Debug>(
    mut given: G,
    mut call: impl FnMut(G) -> Handover<T, G>,
) -> T {
    for _ in 0..ROUNDS {
        match call(given) {
            Ok(out) => return out,
            Err(rejected) => {
                let (error, back) = rejected.into_parts();
                assert!(passes(&error), "{error}");
                given = back;
            }
        }
    }
    panic!("it never passed, with {given:?}");
}

/// Repeats a call that takes no ownership until it succeeds.
pub fn persist_in<T>(mut call: impl FnMut() -> Result<T, Error>) -> T {
    for _ in 0..ROUNDS {
        match call() {
            Ok(out) => return out,
            Err(error) => assert!(passes(&error), "{error}"),
        }
    }
    panic!("it never passed");
}

fn passes(error: &Error) -> bool {
    error.recovery() == seam::error::Recovery::Retry
}

//! The module's own state: what does not live in memory that the host donated.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use seam::abi::Status;
use spin::Once;

use crate::Platform;
use crate::cpuid::Native;
use crate::hooks::{Counters, Counts, Hooks, Log, counters};
use crate::keys::Keys;
use crate::lock::{Guard, Lock, Mode};
use crate::sys::Sample;
use crate::sys::tdmr::{Tdmr, Tdmrs};

/// How far the module is (SYS_STATE).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SysState {
    /// TDH.SYS.INIT is pending.
    InitPending = 0,
    /// TDH.SYS.LP.INIT and TDH.SYS.CONFIG are pending.
    InitDone = 1,
    /// TDH.SYS.KEY.CONFIG is pending.
    ConfigDone = 2,
    /// TDs can be made.
    Ready = 3,
    /// It answers nothing any more.
    Shutdown = 4,
}

/// What the module knows of a logical processor, away from the cache lines of its neighbours: it is written at every SEAMCALL.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Lp {
    /// It is executing a SEAMCALL.
    pub inside: AtomicBool,
    /// TDH.SYS.LP.INIT succeeded on it.
    pub initialized: AtomicBool,
    /// The vCPU that it entered last, by its TDVPR's address; 0 for none.
    pub last_tdvpr: AtomicU64,
    /// How its calls ended.
    pub counts: Counts,
}

impl Lp {
    /// A processor that has this room for what it seldom counts.
    pub(crate) fn with_room(room: counters::Others) -> Self {
        Self {
            inside: AtomicBool::new(false),
            initialized: AtomicBool::new(false),
            last_tdvpr: AtomicU64::new(0),
            counts: Counts::with_room(room),
        }
    }
}

/// An emulated TDX module.
///
/// It may be called on any number of logical processors at once. What it keeps for pages, TDs and vCPUs is in the
/// memory that the host gives it; only what is here is its own, and is allocated when it is created
/// (the list of TDMRs, by TDH.SYS.CONFIG).
#[derive(Debug)]
pub struct Module {
    state: AtomicU8,
    global: AtomicU64,
    /// What TDH.SYS.INIT saw, once it succeeded.
    pub(crate) sample: Once<Sample>,
    /// The CPU beneath TDs, as TDH.SYS.INIT found it.
    pub(crate) native: Once<Native>,
    /// By number.
    pub(crate) lps: Box<[Lp]>,
    /// Logical processors on which TDH.SYS.LP.INIT succeeded.
    pub(crate) num_initialized_lps: AtomicU32,
    /// Packages that have the global key, a bit each.
    pub(crate) keyed_packages: AtomicU64,
    /// Who has which HKID.
    pub(crate) keys: Keys,
    /// The global private HKID; 0 before TDH.SYS.CONFIG.
    global_hkid: AtomicU32,
    tdmrs: Once<Tdmrs>,
    /// What a test gave it.
    pub(crate) hooks: Hooks,
    pub(crate) violations: Log,
}

impl Module {
    /// A module as the P-SEAMLDR leaves it: loaded, not initialised.
    pub fn new(platform: &Platform<'_>) -> Self {
        Self::with_hooks(platform, Hooks::default())
    }

    /// The same, with what a test wants to happen in it.
    pub fn with_hooks(platform: &Platform<'_>, hooks: Hooks) -> Self {
        // Allocated last, so that what every call looks at lies together: the list of TDMRs comes next.
        let room: Vec<_> = platform
            .lp_to_package
            .iter()
            .map(|_| counters::room())
            .collect();
        let keys = Keys::new(platform);
        let lps = room.into_iter().map(Lp::with_room).collect();
        Self {
            state: AtomicU8::new(SysState::InitPending as u8),
            global: AtomicU64::new(0),
            sample: Once::new(),
            native: Once::new(),
            lps,
            num_initialized_lps: AtomicU32::new(0),
            keyed_packages: AtomicU64::new(0),
            keys,
            global_hkid: AtomicU32::new(0),
            tdmrs: Once::new(),
            hooks,
            violations: Log::default(),
        }
    }

    /// How often each leaf was called, and how it ended.
    pub fn counters(&self) -> Counters<'_> {
        Counters::new(&self.lps)
    }

    /// What the host did that it must not do.
    pub fn violations(&self) -> &Log {
        &self.violations
    }

    /// How far the module is.
    pub fn state(&self) -> SysState {
        match self.state.load(Ordering::SeqCst) {
            0 => SysState::InitPending,
            1 => SysState::InitDone,
            2 => SysState::ConfigDone,
            3 => SysState::Ready,
            _ => SysState::Shutdown,
        }
    }

    /// Moves the module on.
    pub(crate) fn set_state(&self, state: SysState) {
        self.state.store(state as u8, Ordering::SeqCst);
    }

    /// Takes the lock of the platform's life.
    ///
    /// # Errors
    /// SYS_BUSY, without operand.
    pub(crate) fn lock_global(&self, mode: Mode) -> Result<Guard<'_>, Status> {
        Lock::new(&self.global, 0)
            .acquire(mode)
            .map_err(|_| Status::SYS_BUSY)
    }

    /// The HKID of the module's own structures; 0 before TDH.SYS.CONFIG.
    pub(crate) fn global_hkid(&self) -> u32 {
        self.global_hkid.load(Ordering::Acquire)
    }

    /// Sets the HKID of the module's own structures.
    pub(crate) fn set_global_hkid(&self, hkid: u32) {
        self.global_hkid.store(hkid, Ordering::Release);
    }

    /// The TDMR that contains `pa`; none before TDH.SYS.CONFIG.
    #[inline(always)]
    pub(crate) fn tdmr_covering(&self, pa: u64) -> Option<&Tdmr> {
        self.tdmrs.get()?.covering(pa)
    }

    /// Whether `pa` is in the PAMT of a TDMR.
    pub(crate) fn is_pamt(&self, pa: u64) -> bool {
        self.tdmrs.get().is_some_and(|tdmrs| tdmrs.is_pamt(pa))
    }

    /// Sets the TDMRs, once.
    pub(crate) fn set_tdmrs(&self, tdmrs: Tdmrs) {
        self.tdmrs.call_once(|| tdmrs);
    }

    /// What is known of a logical processor.
    pub(crate) fn lp(&self, lp: u32) -> &Lp {
        &self.lps[lp as usize]
    }

    /// Whether TDH.SYS.LP.INIT succeeded on every processor.
    pub(crate) fn all_lps_initialized(&self) -> bool {
        self.num_initialized_lps.load(Ordering::Acquire) as usize == self.lps.len()
    }

    /// Checks that TDH.SYS.LP.INIT was done on `lp`.
    ///
    /// # Errors
    /// SYS_LP_INIT_NOT_DONE.
    pub(crate) fn check_lp_initialized(&self, lp: u32) -> Result<(), Status> {
        if self.lp(lp).initialized.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(Status::SYS_LP_INIT_NOT_DONE)
        }
    }
}

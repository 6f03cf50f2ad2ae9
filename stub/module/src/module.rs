//! The module's own state, excluding what lies in memory that the host donated.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use seam::abi::{Features0, Status};
use spin::{Mutex, Once};

use crate::cpuid::Native;
use crate::field::Structure;
use crate::hooks::{Counters, Counts, Hooks, Log, counters};
use crate::keys::Keys;
use crate::lock::{Guard, Lock, Mode};
use crate::params::MAX_VCPUS;
use crate::sys::tdmr::{Tdmr, Tdmrs};
use crate::sys::{Diagnostics, Handoff, Sample};
use crate::td::{Tdcs, tdcs};

/// The version of the hash by which this module measures TDs.
const MRTD_CONTEXT: u64 = 1;
use crate::{Machine, Platform, Release};

/// The module's state (SYS_STATE).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SysState {
    /// TDH.SYS.INIT is pending.
    InitPending = 0,
    /// TDH.SYS.LP.INIT and TDH.SYS.CONFIG are pending.
    InitDone = 1,
    /// TDH.SYS.KEY.CONFIG is pending.
    ConfigDone = 2,
    /// TDs can be created.
    Ready = 3,
    /// No leaf is admitted.
    Shutdown = 4,
}

/// The module's state of a logical processor. It has cache lines of its own, since every SEAMCALL writes it.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Lp {
    /// True while the processor executes a SEAMCALL.
    pub inside: AtomicBool,
    /// True once TDH.SYS.LP.INIT has succeeded on it.
    pub initialized: AtomicBool,
    /// The TDVPR address of the vCPU that it entered last; 0 for none.
    pub last_tdvpr: AtomicU64,
    /// Its call counters.
    pub counts: Counts,
}

impl Lp {
    /// Creates a processor's state with preallocated counters.
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
/// It may be called on any number of logical processors at once. Its state of pages, TDs and vCPUs lies in memory that
/// the host donates. Only the fields below are its own. They are allocated when it is created, except the list of
/// TDMRs, which TDH.SYS.CONFIG allocates.
#[derive(Debug)]
pub struct Module {
    /// The release of Intel's module that it behaves as.
    pub(crate) release: Release,
    state: AtomicU8,
    global: AtomicU64,
    /// The sample of TDH.SYS.INIT, once it succeeded.
    pub(crate) sample: Once<Sample>,
    /// The CPU that TDs run on, as TDH.SYS.INIT sampled it.
    pub(crate) native: Once<Native>,
    /// Logical processors by number.
    pub(crate) lps: Box<[Lp]>,
    /// Logical processors on which TDH.SYS.LP.INIT succeeded.
    pub(crate) num_initialized_lps: AtomicU32,
    /// Packages that have the global key, one bit each.
    pub(crate) keyed_packages: AtomicU64,
    /// The key ownership table.
    pub(crate) keys: Keys,
    /// The global private HKID; 0 before TDH.SYS.CONFIG.
    global_hkid: AtomicU32,
    tdmrs: Once<Tdmrs>,
    /// True if TDH.SYS.UPDATE enabled UPDATE_COMPATIBILITY.
    pub(crate) update_compatibility: AtomicBool,
    /// TDs in build: from TDH.MNG.INIT to TDH.MR.FINALIZE, or to TDH.MNG.VPFLUSHDONE.
    pub(crate) builds: AtomicU32,
    /// The data for a successor, or from a predecessor until it is taken over.
    pub(crate) handoff: Mutex<Option<Handoff>>,
    /// The actions at a fatal error, if the host chose them.
    pub(crate) diagnostics: Once<Diagnostics>,
    /// The test hooks.
    pub(crate) hooks: Hooks,
    pub(crate) violations: Log,
}

impl Module {
    /// Creates a module as the P-SEAMLDR leaves it: loaded, not initialised.
    pub fn new(platform: &Platform<'_>, release: Release) -> Self {
        Self::with_hooks(platform, release, Hooks::default())
    }

    /// Creates a module with test hooks.
    pub fn with_hooks(platform: &Platform<'_>, release: Release, hooks: Hooks) -> Self {
        // The counters are allocated first. The data that every call uses then lies together: keys, processors, and
        // later the list of TDMRs.
        let room: Vec<_> = platform
            .lp_to_package
            .iter()
            .map(|_| counters::room())
            .collect();
        let keys = Keys::new(platform);
        let lps = room.into_iter().map(Lp::with_room).collect();
        Self {
            release,
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
            update_compatibility: AtomicBool::new(false),
            builds: AtomicU32::new(0),
            handoff: Mutex::new(None),
            diagnostics: Once::new(),
            hooks,
            violations: Log::default(),
        }
    }

    /// Creates the module that the P-SEAMLDR installs in place of `previous`. All of that module's state is lost, except
    /// the data that it handed over at its shutdown.
    pub fn installed(platform: &Platform<'_>, release: Release, previous: &Self) -> Self {
        let module = Self::new(platform, release);
        module.handoff.lock().clone_from(&previous.handoff.lock());
        module
    }

    /// Returns MAX_VCPUS_PER_TD, in a release that has it.
    pub(crate) fn max_vcpus(&self) -> u16 {
        self.hooks.max_vcpus.unwrap_or(MAX_VCPUS)
    }

    /// Leaves the module's state for a successor.
    pub(crate) fn hand_over(&self, version: u64) {
        let builds = match version {
            0 => 0,
            _ => self.builds.load(Ordering::Acquire),
        };
        *self.handoff.lock() = Some(Handoff {
            version,
            global_hkid: self.global_hkid(),
            keyed_packages: self.keyed_packages.load(Ordering::Acquire),
            keys: self.keys.clone(),
            tdmrs: self.tdmrs.get().cloned(),
            builds,
        });
    }

    /// Takes over the state of a predecessor.
    pub(crate) fn take_over(&self, data: Handoff) {
        self.keys.take_over(&data.keys);
        self.set_global_hkid(data.global_hkid);
        self.keyed_packages
            .store(data.keyed_packages, Ordering::Release);
        self.builds.store(data.builds, Ordering::Release);
        if let Some(tdmrs) = data.tdmrs {
            self.set_tdmrs(tdmrs);
        }
    }

    /// Returns the release of Intel's module that it behaves as.
    pub fn release(&self) -> Release {
        self.release
    }

    /// Returns the counters per leaf and status.
    pub fn counters(&self) -> Counters<'_> {
        Counters::new(&self.lps)
    }

    /// Returns the log of the host's violations.
    pub fn violations(&self) -> &Log {
        &self.violations
    }

    /// Returns the module's state.
    pub fn state(&self) -> SysState {
        match self.state.load(Ordering::SeqCst) {
            0 => SysState::InitPending,
            1 => SysState::InitDone,
            2 => SysState::ConfigDone,
            3 => SysState::Ready,
            _ => SysState::Shutdown,
        }
    }

    /// Sets the module's state.
    pub(crate) fn set_state(&self, state: SysState) {
        self.state.store(state as u8, Ordering::SeqCst);
    }

    /// Acquires the global lock.
    ///
    /// # Errors
    /// SYS_BUSY, without an operand.
    pub(crate) fn lock_global(&self, mode: Mode) -> Result<Guard<'_>, Status> {
        Lock::new(&self.global, 0)
            .acquire(mode)
            .map_err(|_| Status::SYS_BUSY)
    }

    /// Returns the HKID of the module's own structures; 0 before TDH.SYS.CONFIG.
    pub(crate) fn global_hkid(&self) -> u32 {
        self.global_hkid.load(Ordering::Acquire)
    }

    /// Sets the HKID of the module's own structures.
    pub(crate) fn set_global_hkid(&self, hkid: u32) {
        self.global_hkid.store(hkid, Ordering::Release);
    }

    /// Returns the TDMR that contains `pa`; `None` before TDH.SYS.CONFIG.
    #[inline(always)]
    pub(crate) fn tdmr_covering(&self, pa: u64) -> Option<&Tdmr> {
        self.tdmrs.get()?.covering(pa)
    }

    /// Returns whether `pa` lies in the PAMT of a TDMR.
    pub(crate) fn is_pamt(&self, pa: u64) -> bool {
        self.tdmrs.get().is_some_and(|tdmrs| tdmrs.is_pamt(pa))
    }

    /// Returns whether the host chose dynamic PAMTs.
    pub(crate) fn has_dynamic_pamt(&self) -> bool {
        self.tdmrs.get().is_some_and(Tdmrs::are_dynamic)
    }

    /// Sets the TDMRs, once.
    pub(crate) fn set_tdmrs(&self, tdmrs: Tdmrs) {
        self.tdmrs.call_once(|| tdmrs);
    }

    /// Counts a TD whose build begins.
    pub(crate) fn begin_build<M: Machine>(&self, tdcs: &Tdcs<'_, M>) {
        if self.release.has(Features0::UPDATE_COMPATIBILITY) {
            tdcs.set(tdcs::field::MRTD_CONTEXT, MRTD_CONTEXT);
            self.builds.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Counts a TD whose build ends, unless it has ended before.
    pub(crate) fn end_build<M: Machine>(&self, tdcs: &Tdcs<'_, M>) {
        if tdcs.get(tdcs::field::MRTD_CONTEXT) != 0 {
            tdcs.set(tdcs::field::MRTD_CONTEXT, 0);
            self.builds.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Checks that this release can go on with the measurement of a TD.
    ///
    /// # Errors
    /// INCOMPATIBLE_MRTD_CONTEXT.
    pub(crate) fn check_measurement<M: Machine>(&self, tdcs: &Tdcs<'_, M>) -> Result<(), Status> {
        let checks = self.update_compatibility.load(Ordering::Acquire);
        if checks && tdcs.get(tdcs::field::MRTD_CONTEXT) != MRTD_CONTEXT {
            return Err(Status::INCOMPATIBLE_MRTD_CONTEXT);
        }
        Ok(())
    }

    /// Returns the state of a logical processor.
    pub(crate) fn lp(&self, lp: u32) -> &Lp {
        &self.lps[lp as usize]
    }

    /// Returns whether TDH.SYS.LP.INIT succeeded on every processor.
    pub(crate) fn all_lps_initialized(&self) -> bool {
        self.num_initialized_lps.load(Ordering::Acquire) as usize == self.lps.len()
    }

    /// Checks that TDH.SYS.LP.INIT succeeded on `lp`.
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

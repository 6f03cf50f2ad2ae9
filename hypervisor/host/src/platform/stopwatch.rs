//! A stopwatch for SEAMCALLs. During a measurement it records each call's ticks by leaf; otherwise it costs one flag
//! check.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use seam::address::SHARED;
use seam::{
    abi::{Gprs, Leaf, PageSize, Status},
    address::Hpa,
    call::Fault,
};
use sync::IrqLock;
use vcpu::exit::Exit;

/// No vCPU.
const NONE: u64 = u64::MAX;

/// Maximum number of samples per leaf and page size; later ones are dropped.
const MAX_SAMPLES: usize = 4096;

/// The stopwatch of a machine.
pub struct Stopwatch {
    is_on: AtomicBool,
    /// Root page of the vCPU whose entries are measured as well.
    entered: AtomicU64,
    samples: IrqLock<Vec<Samples>>,
}

/// Ticks of the time-stamp counter taken by calls of one leaf.
#[derive(Clone, Debug)]
pub struct Samples {
    /// The leaf.
    pub leaf: Leaf,
    /// Size of the page operand, for leaves whose duration depends on it.
    pub size: Option<PageSize>,
    /// Ticks of each call.
    pub ticks: Vec<u64>,
}

impl Stopwatch {
    /// Creates a stopwatch that is off.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            is_on: AtomicBool::new(false),
            entered: AtomicU64::new(NONE),
            samples: IrqLock::new(Vec::new()),
        }
    }

    /// Makes a SEAMCALL, and times it with the clock `now` if a measurement is running.
    ///
    /// # Errors
    /// As `call`.
    #[inline]
    pub fn time(
        &self,
        now: impl Fn() -> u64,
        regs: &mut Gprs,
        call: impl FnOnce(&mut Gprs) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        if !self.is_on.load(Relaxed) {
            return call(regs);
        }
        let before = *regs;
        let start = now();
        let result = call(regs);
        let ticks = now() - start;
        if result.is_ok() {
            self.keep(&before, regs, ticks);
        }
        result
    }

    /// Measures the successful calls that all CPUs make during `work`. Returns `None` if another measurement is
    /// running.
    pub fn measure<R>(&self, work: impl FnOnce() -> R) -> Option<(R, Vec<Samples>)> {
        if self.is_on.swap(true, Relaxed) {
            return None;
        }
        let result = work();
        self.is_on.store(false, Relaxed);
        Some((result, core::mem::take(&mut *self.samples.lock())))
    }

    /// Also measures, during `work`, entries of this vCPU that end with a TDG.VP.VMCALL. Entries of other vCPUs are not
    /// measured.
    pub fn with_entries_of<R>(&self, tdvpr: Hpa, work: impl FnOnce() -> R) -> R {
        self.entered.store(tdvpr.0, Relaxed);
        let result = work();
        self.entered.store(NONE, Relaxed);
        result
    }

    #[cold]
    fn keep(&self, before: &Gprs, after: &Gprs, ticks: u64) {
        let status = Status(after.rax);
        let leaf = Leaf::from_number(before.rax as u16).filter(|_| !status.is_error());
        let leaf = leaf.filter(|leaf| match leaf {
            Leaf::VpEnter => {
                before.rcx == self.entered.load(Relaxed)
                    && Exit::decode(status, after, SHARED) == Exit::Call
            }
            _ => true,
        });
        let Some(leaf) = leaf else {
            return;
        };
        let size = size(leaf, before, after);
        let mut all = self.samples.lock();
        let place = all.iter().position(|s| (s.leaf, s.size) == (leaf, size));
        let place = place.unwrap_or_else(|| {
            all.push(Samples {
                leaf,
                size,
                ticks: Vec::new(),
            });
            all.len() - 1
        });
        let ticks_of = &mut all[place].ticks;
        if ticks_of.len() < MAX_SAMPLES && ticks_of.try_reserve(1).is_ok() {
            ticks_of.push(ticks);
        }
    }
}

impl Default for Stopwatch {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for Stopwatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Stopwatch")
            .field("is_on", &self.is_on)
            .finish_non_exhaustive()
    }
}

/// Returns the size of a call's page operand, for leaves whose duration depends on it.
fn size(leaf: Leaf, before: &Gprs, after: &Gprs) -> Option<PageSize> {
    /// Bits of the level in a GPA operand.
    const LEVEL: u64 = 7;
    match leaf {
        Leaf::MemPageAug
        | Leaf::MemPageDemote
        | Leaf::MemPagePromote
        | Leaf::MemPageRemove
        | Leaf::MemRangeBlock
        | Leaf::MemRangeUnblock => PageSize::from_level((before.rcx & LEVEL) as u8),
        Leaf::PhymemPageReclaim => PageSize::from_level(after.r8 as u8),
        _ => None,
    }
}

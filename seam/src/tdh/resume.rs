//! Work that takes many SEAMCALLs, as state machines. Each `step` is one call and returns control, so that the CPU can
//! serve interrupts in between. All state machines terminate: the work has a known bound, and a module that makes no
//! progress is an error.

use super::{CacheWb, CacheWbStart, Tdh, TdmrProgress};
use crate::abi::{Leaf, PageSize};
use crate::address::{Hpa, KeyIdPosition};
use crate::call::SeamCall;
use crate::error::{Cause, Error};
use crate::page::{Cached, Dirty, Page};
use crate::retry::Wait;

/// The progress of a state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Call `step` again.
    More,
    /// The work is done.
    Done,
}

/// Number of interruptions after which the write-back of one package's caches is given up. Each one is a served
/// interrupt; a cache has far fewer sub-blocks.
const MAX_INTERRUPTIONS: u32 = 10_000;

/// TDH.PHYMEM.CACHE.WB on one package, from start to completion. Every step runs on a CPU of that package, not
/// necessarily the same one.
///
/// After an error the state is unchanged: the next step continues from there.
#[derive(Debug, Default)]
pub struct CacheWbRound {
    interruptions: u32,
    interrupted: bool,
}

impl CacheWbRound {
    /// Creates a round that has not started. Only the HKIDs that need a write-back at the first step are covered.
    pub const fn new() -> Self {
        Self {
            interruptions: 0,
            interrupted: false,
        }
    }

    /// Returns the number of interruptions.
    pub const fn interruptions(&self) -> u32 {
        self.interruptions
    }

    /// Makes one call.
    ///
    /// # Errors
    /// As [`Tdh::phymem_cache_wb`]; [`Cause::NoProgress`] after too many interruptions.
    pub fn step<C: SeamCall, W: Wait>(&mut self, tdh: &Tdh<'_, C, W>) -> Result<Step, Error> {
        let start = if self.interrupted {
            CacheWbStart::Resume
        } else {
            CacheWbStart::New
        };
        match tdh.phymem_cache_wb(start)? {
            CacheWb::Done | CacheWb::NothingToDo => Ok(Step::Done),
            CacheWb::Interrupted if self.interruptions == MAX_INTERRUPTIONS => {
                Err(Error::new(Leaf::PhymemCacheWb, Cause::NoProgress, [0; 5]))
            }
            CacheWb::Interrupted => {
                self.interrupted = true;
                self.interruptions += 1;
                Ok(Step::More)
            }
        }
    }
}

/// TDH.SYS.TDMR.INIT of one TDMR until it is fully initialised.
#[derive(Debug)]
pub struct TdmrInit {
    base: Hpa,
    size: u64,
    next: Hpa,
    idle_calls: u64,
}

impl TdmrInit {
    /// Creates the initialisation of the TDMR at `base` with `size` bytes, both multiples of 1 GiB.
    pub const fn new(base: Hpa, size: u64) -> Self {
        Self {
            base,
            size,
            next: base,
            idle_calls: 0,
        }
    }

    /// Returns the number of bytes known to be initialised, a multiple of 1 GiB, and the total number.
    pub const fn progress(&self) -> (u64, u64) {
        (self.next.0 - self.base.0, self.size)
    }

    /// Makes one call.
    ///
    /// # Errors
    /// As [`Tdh::sys_tdmr_init`]; [`Cause::NoProgress`] if a gigabyte takes more calls than it has pages.
    pub fn step<C: SeamCall, W: Wait>(&mut self, tdh: &Tdh<'_, C, W>) -> Result<Step, Error> {
        match tdh.sys_tdmr_init(self.base, self.size)? {
            TdmrProgress::Done => {
                self.next = Hpa(self.base.0 + self.size);
                Ok(Step::Done)
            }
            TdmrProgress::UpTo(next) if next > self.next => {
                self.next = next;
                self.idle_calls = 0;
                Ok(Step::More)
            }
            // The module reports only whole gigabytes. Each call initialises at least one page of the current one.
            TdmrProgress::UpTo(_) if self.idle_calls < PageSize::Size1G.pages() => {
                self.idle_calls += 1;
                Ok(Step::More)
            }
            TdmrProgress::UpTo(_) => Err(Error::new(Leaf::SysTdmrInit, Cause::NoProgress, [0; 5])),
        }
    }
}

/// TDH.PHYMEM.PAGE.WBINVD of a page of any size, 4 KiB per step.
#[derive(Debug)]
#[must_use = "it owns the page"]
pub struct PageWriteBack {
    page: Page<Cached>,
    written: u64,
}

impl PageWriteBack {
    /// Creates the write-back of all of `page`.
    pub const fn new(page: Page<Cached>) -> Self {
        Self { page, written: 0 }
    }

    /// Makes one call, unless the work is done.
    ///
    /// # Errors
    /// As [`Tdh::phymem_page_wbinvd`]; the next step repeats the same call.
    pub fn step<C: SeamCall, W: Wait>(
        &mut self,
        tdh: &Tdh<'_, C, W>,
        position: KeyIdPosition,
    ) -> Result<Step, Error> {
        if self.written < self.page.size().bytes() {
            let hpa = Hpa(self.page.hpa().0 + self.written);
            tdh.write_back_4k(hpa, self.page.hkid(), position)?;
            self.written += PageSize::Size4K.bytes();
        }
        if self.written < self.page.size().bytes() {
            Ok(Step::More)
        } else {
            Ok(Step::Done)
        }
    }

    /// Gives up and returns the page unchanged.
    pub fn into_page(self) -> Page<Cached> {
        self.page
    }

    /// Returns the page after its write-back.
    ///
    /// # Errors
    /// Returns `self` if the write-back is not done.
    pub fn finish(self) -> Result<Page<Dirty>, Self> {
        if self.written < self.page.size().bytes() {
            Err(self)
        } else {
            Ok(self.page.turn(Dirty))
        }
    }
}

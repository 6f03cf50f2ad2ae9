//! Work that takes many SEAMCALLs, as state machines: each `step` is one call and hands control back, so that the CPU
//! serves its interrupts in between. All of them end: work has a known bound, and a module that gets nowhere is an
//! error.

use super::{CacheWb, CacheWbStart, Tdh, TdmrProgress};
use crate::abi::{Leaf, PageSize};
use crate::address::{Hpa, KeyIdPosition};
use crate::call::SeamCall;
use crate::error::{Cause, Error};
use crate::page::{Cached, Dirty, Page};
use crate::retry::Wait;

/// How far a state machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Call `step` again.
    More,
    /// All is done.
    Done,
}

/// Interruptions after which writing one package's caches back is given up. Each is an interrupt served; a cache has far
/// fewer sub-blocks.
const MAX_INTERRUPTIONS: u32 = 10_000;

/// TDH.PHYMEM.CACHE.WB on one package, from its start until it is done. Every step runs on a CPU of that package; it
/// need not be the same one.
///
/// An error leaves it where it was: stepping again goes on from there.
#[derive(Debug, Default)]
pub struct CacheWbRound {
    interruptions: u32,
    interrupted: bool,
}

impl CacheWbRound {
    /// A round that has not started. Only the HKIDs that wait at its first step are written back.
    pub const fn new() -> Self {
        Self {
            interruptions: 0,
            interrupted: false,
        }
    }

    /// How often it was interrupted.
    pub const fn interruptions(&self) -> u32 {
        self.interruptions
    }

    /// Makes one call.
    ///
    /// # Errors
    /// As [`Tdh::phymem_cache_wb`]; [`Cause::NoProgress`] after very many interruptions.
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

/// TDH.SYS.TDMR.INIT of one TDMR until all of it is initialised.
#[derive(Debug)]
pub struct TdmrInit {
    base: Hpa,
    size: u64,
    next: Hpa,
    idle_calls: u64,
}

impl TdmrInit {
    /// The TDMR from `base` on, `size` bytes, both multiples of 1 GiB.
    pub const fn new(base: Hpa, size: u64) -> Self {
        Self {
            base,
            size,
            next: base,
            idle_calls: 0,
        }
    }

    /// Bytes that are known to be initialised, a multiple of 1 GiB, and how many there are.
    pub const fn progress(&self) -> (u64, u64) {
        (self.next.0 - self.base.0, self.size)
    }

    /// Makes one call.
    ///
    /// # Errors
    /// As [`Tdh::sys_tdmr_init`]; [`Cause::NoProgress`] when a gigabyte takes more calls than it has pages.
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
            // The module tells only of whole gigabytes; each call initialises at least one page of the current one.
            TdmrProgress::UpTo(_) if self.idle_calls < PageSize::Size1G.pages() => {
                self.idle_calls += 1;
                Ok(Step::More)
            }
            TdmrProgress::UpTo(_) => Err(Error::new(Leaf::SysTdmrInit, Cause::NoProgress, [0; 5])),
        }
    }
}

/// TDH.PHYMEM.PAGE.WBINVD of a page of any size, 4 KiB a step.
#[derive(Debug)]
#[must_use = "it owns the page"]
pub struct PageWriteBack {
    page: Page<Cached>,
    written: u64,
}

impl PageWriteBack {
    /// All of `page`.
    pub const fn new(page: Page<Cached>) -> Self {
        Self { page, written: 0 }
    }

    /// Makes one call, unless all is done.
    ///
    /// # Errors
    /// As [`Tdh::phymem_page_wbinvd`]; stepping again repeats the same call.
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

    /// The page as it was, for who gives up.
    pub fn into_page(self) -> Page<Cached> {
        self.page
    }

    /// The page, written back.
    ///
    /// # Errors
    /// Gives itself back when it is not done.
    pub fn finish(self) -> Result<Page<Dirty>, Self> {
        if self.written < self.page.size().bytes() {
            Err(self)
        } else {
            Ok(self.page.turn(Dirty))
        }
    }
}

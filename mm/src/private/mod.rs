//! A TD's private memory: build it, change it, shrink it, take it all back.
//!
//! A [`PrivateMap`] owns everything that a TD has: its root page, the pages of its S-EPT, its private pages, each as the
//! token that [`seam::page`] makes of it. What is not in the map is not the TD's. Memory comes back by *dynamic removal*
//! ([`PrivateMap::remove`]) while the TD has its key: block, track, kick, remove, write back, clear; in batches, so that one
//! tracking round serves many pages. After that it comes back by *bulk reclaim* ([`Reclaim`]), with one call for each page.
//!
//! Whether that works is a [`Mode`], which changes under the map's lock. While the HKID is on its way back to the pool,
//! what is to be freed is queued.
//!
//! No lock is held over a SEAMCALL but the map's own, and that shared. Nothing here waits: what another CPU has is
//! [`Error::Busy`].

mod build;
mod claim;
mod demote;
mod error;
mod join;
mod kick;
mod mirror;
mod op;
mod pool;
mod promote;
mod reclaim;
mod remove;
mod root;
mod sept;
mod stock;
mod track;
mod unblock;
mod write_off;

use core::fmt;
use core::ops::ControlFlow;

use seam::address::KeyIdPosition;
use seam::call::SeamCall;
use seam::hkid::Hkid;
use seam::retry::Wait;
use seam::tdh::{Keyed, Keyless, Tdh, Tdr};

use mirror::Mirror;
use op::Op;
use root::RootLock;
use stock::Stock;
use track::Tracker;

use sync::atomic::AtomicBool;

pub use build::Given;
pub use error::Error;
pub use join::{Found, Search};
pub use kick::{Kick, NoAnswer, NoneRuns};
pub use mirror::Levels;
pub use pool::{FramePool, Ledger, Pool};
pub use reclaim::{
    ClearPolicy, Clearing, Clock, NoPolicy, Plan, Progress, Reclaim, Reclaimed, Refusal, Step,
};
pub use remove::{Outcome, Taken};
pub use root::Mode;
pub use stock::Holding;
pub use write_off::WrittenOff;

/// What a CPU works with: the module as it calls it, and the host's frames.
#[derive(Debug)]
pub struct Cpu<'a, C, W, P> {
    /// The module.
    pub tdh: &'a Tdh<'a, C, W>,
    /// The frames.
    pub pool: &'a P,
}

impl<C, W, P> Clone for Cpu<'_, C, W, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C, W, P> Copy for Cpu<'_, C, W, P> {}

/// What a map must know of its TD and the machine.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Guest-physical addresses that can be private memory are below this.
    pub limit: u64,
    /// As EPTP_CONTROLS in the TD's parameters says.
    pub levels: Levels,
    /// Where the KeyID is in a physical address.
    pub keyid: KeyIdPosition,
}

/// A TD's private memory.
pub struct PrivateMap {
    root: RootLock,
    mirror: Mirror,
    tracker: Tracker,
    stock: Stock,
    /// Whether something is noted that may be made one page.
    joinable: AtomicBool,
    keyid: KeyIdPosition,
    clearing: Clearing,
}

/// A map without a TD, for who wants to know that there will be one before there is a TD.
#[derive(Debug)]
pub struct Unowned {
    mirror: Mirror,
    keyid: KeyIdPosition,
    clearing: Clearing,
}

impl Unowned {
    /// All of making a map that can fail.
    ///
    /// # Errors
    /// As [`PrivateMap::new`].
    pub fn new(settings: Settings) -> Result<Self, Error> {
        Ok(Self {
            mirror: Mirror::new(settings.limit, settings.levels)?,
            keyid: settings.keyid,
            clearing: Clearing::Clear,
        })
    }

    /// What is done with the content of pages that the TD loses while it has its key; without this they are cleared.
    #[must_use]
    pub fn clearing(self, clearing: Clearing) -> Self {
        Self { clearing, ..self }
    }

    /// The map of a TD that owns no private page yet.
    #[must_use]
    pub fn owned_by(self, tdr: Tdr<Keyed>) -> PrivateMap {
        PrivateMap {
            root: RootLock::new(tdr),
            mirror: self.mirror,
            tracker: Tracker::new(),
            stock: Stock::new(),
            joinable: AtomicBool::new(false),
            keyid: self.keyid,
            clearing: self.clearing,
        }
    }
}

impl PrivateMap {
    /// The map of a TD that owns no private page yet.
    ///
    /// # Errors
    /// [`Error::NoHeap`]; [`Error::BadRange`] when the limit is beyond what the levels reach. The TD is the caller's
    /// again.
    pub fn new(tdr: Tdr<Keyed>, settings: Settings) -> Result<Self, (Error, Tdr<Keyed>)> {
        match Unowned::new(settings) {
            Ok(map) => Ok(map.owned_by(tdr)),
            Err(error) => Err((error, tdr)),
        }
    }

    /// How memory can be taken back now.
    pub fn mode(&self) -> Mode {
        self.root.mode()
    }

    /// What the TD owns, by size; exact when nobody is at work.
    pub fn holding(&self) -> Holding {
        self.stock.holding()
    }

    /// Does something with the TD while it has its key; it can't lose it meanwhile.
    ///
    /// # Errors
    /// [`Error::Terminated`], and what `work` fails with.
    pub fn keyed<R>(&self, work: impl FnOnce(&Tdr<Keyed>) -> Result<R, Error>) -> Result<R, Error> {
        self.root.keyed(|live| work(live.tdr()))
    }

    /// Does something with the TD after its key is gone.
    ///
    /// # Errors
    /// [`Error::NotKeyless`], and what `work` fails with.
    pub fn keyless<R>(
        &self,
        work: impl FnOnce(&Tdr<Keyless>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.root.keyless(work)
    }

    /// TDH.MR.FINALIZE: closes the measurement. What is taken from the TD is blocked and tracked first from now on.
    ///
    /// # Errors
    /// [`Error::Terminated`]; [`Error::Finalized`] when it was closed before; [`Error::Busy`] while a CPU works on the
    /// map; [`Error::Seam`].
    pub fn finalize<C: SeamCall, W: Wait>(&self, tdh: &Tdh<'_, C, W>) -> Result<(), Error> {
        self.root.finalize(tdh)
    }

    /// From keyed to releasing. From here on nothing is mapped, linked, changed or removed. `pause` is called, with
    /// the tries so far, while a CPU still works on the map; newcomers are refused meanwhile. Asking twice is harmless.
    ///
    /// # Errors
    /// [`Error::Busy`] when `pause` gave up: the map is as it was.
    pub fn close(&self, pause: impl FnMut(u32) -> ControlFlow<()>) -> Result<(), Error> {
        self.root.close(pause)
    }

    /// Back from releasing to keyed, while TDH.MNG.VPFLUSHDONE has not been done. What was to be freed meanwhile
    /// [`Self::run_queued`] frees.
    ///
    /// # Errors
    /// [`Error::Terminated`] when it was: there is no way back.
    pub fn reopen(&self) -> Result<(), Error> {
        self.root.reopen()
    }

    /// TDH.MNG.VPFLUSHDONE, in mode releasing: the point of no return. Asking twice is harmless.
    ///
    /// # Errors
    /// [`Error::Busy`] when the map was not closed; [`Error::Seam`], and the TD is as before.
    pub fn flush_done<C: SeamCall, W: Wait>(&self, tdh: &Tdh<'_, C, W>) -> Result<(), Error> {
        self.root.flush_done(tdh)
    }

    /// TDH.MNG.KEY.FREEID: from releasing to keyless. The HKID is the caller's; `None` when it was given before.
    ///
    /// # Errors
    /// [`Error::Busy`] before [`Self::flush_done`]; [`Error::Seam`], and HKID and memory stay the TD's.
    pub fn free_hkid<C: SeamCall, W: Wait>(
        &self,
        tdh: &Tdh<'_, C, W>,
    ) -> Result<Option<Hkid>, Error> {
        self.root.free_hkid(tdh)
    }

    /// The end: the root page, when nothing else is left. The map is of no use afterwards.
    ///
    /// # Errors
    /// [`Error::NotEmpty`] when the TD owns anything; [`Error::NotKeyless`], also when the root was taken before;
    /// [`Error::Busy`].
    pub fn take_root(&self) -> Result<Tdr<Keyless>, Error> {
        if self.holding() != Holding::default() {
            return Err(Error::NotEmpty);
        }
        self.root.take()
    }
}

impl fmt::Debug for PrivateMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateMap")
            .field("mode", &self.mode())
            .field("holding", &self.holding())
            .finish_non_exhaustive()
    }
}

//! A TD's private memory: building it, changing it, shrinking it, and taking all of it back.
//!
//! A [`PrivateMap`] owns a TD's root page, S-EPT pages and private pages, each as a token of [`seam::page`]. A private
//! page outside the map is not the TD's. While the TD has its key, memory is taken back by *dynamic removal*
//! ([`PrivateMap::remove`]): block, track, kick, remove, write back, clear. It works in batches, so that one tracking
//! round serves many pages. After that, memory is taken back by *bulk reclaim* ([`Reclaim`]), with one call for each
//! page.
//!
//! A [`Mode`] tells which of the two applies. It changes under the map's lock. While the HKID is being released, ranges
//! to be freed are queued.
//!
//! A change of memory holds no lock over a SEAMCALL but the map's own, and that shared. Nothing here waits: if another
//! CPU has claimed an entry, the result is [`Error::Busy`].

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
pub use mirror::{DIRECTORY_FRAMES, Levels, PAGE_TABLE_FRAMES};
pub use pool::{FramePool, Ledger, Pool};
pub use reclaim::{
    ClearPolicy, Clearing, Clock, NoPolicy, Progress, Reclaim, ReclaimOptions, Reclaimed, Refusal,
    Step,
};
pub use remove::{Outcome, Taken};
pub use root::Mode;
pub use stock::Holding;
pub use write_off::WrittenOff;

/// The context of a CPU that works on a map: its interface to the module, and the host's frames.
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

/// Properties of the TD and the machine that a map needs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Guest-physical addresses that can be private memory are below this.
    pub limit: u64,
    /// Number of S-EPT levels, as in EPTP_CONTROLS of the TD's parameters.
    pub levels: Levels,
    /// Position of the KeyID in a physical address.
    pub keyid: KeyIdPosition,
    /// Maximum number of S-EPT pages below the root. It bounds the memory that the TD's tables take, in the module and
    /// here.
    pub sept_limit: u64,
}

/// A TD's private memory.
pub struct PrivateMap {
    root: RootLock,
    mirror: Mirror,
    tracker: Tracker,
    stock: Stock,
    /// True if a block is noted that may be made one page.
    joinable: AtomicBool,
    keyid: KeyIdPosition,
    clearing: Clearing,
}

/// A map without a TD, for a caller that allocates the map before it creates the TD.
#[derive(Debug)]
pub struct Unowned {
    mirror: Mirror,
    keyid: KeyIdPosition,
    sept_limit: u64,
    clearing: Clearing,
}

impl Unowned {
    /// Creates a map without a TD. This is the only fallible part of creating a map.
    ///
    /// # Errors
    /// As [`PrivateMap::new`].
    pub fn new(settings: Settings) -> Result<Self, Error> {
        Ok(Self {
            mirror: Mirror::new(settings.limit, settings.levels)?,
            keyid: settings.keyid,
            sept_limit: settings.sept_limit,
            clearing: Clearing::Clear,
        })
    }

    /// Sets what happens to the content of pages that the TD loses while it has its key. By default they are cleared.
    #[must_use]
    pub fn clearing(self, clearing: Clearing) -> Self {
        Self { clearing, ..self }
    }

    /// Returns the map of `tdr`, a TD that owns no private page yet.
    #[must_use]
    pub fn owned_by(self, tdr: Tdr<Keyed>) -> PrivateMap {
        PrivateMap {
            root: RootLock::new(tdr),
            mirror: self.mirror,
            tracker: Tracker::new(),
            stock: Stock::new(self.sept_limit),
            joinable: AtomicBool::new(false),
            keyid: self.keyid,
            clearing: self.clearing,
        }
    }
}

impl PrivateMap {
    /// Creates the map of a TD that owns no private page yet.
    ///
    /// # Errors
    /// [`Error::NoHeap`]; [`Error::BadRange`] when the limit is beyond the reach of the levels. The TD is returned to
    /// the caller.
    pub fn new(tdr: Tdr<Keyed>, settings: Settings) -> Result<Self, (Error, Tdr<Keyed>)> {
        match Unowned::new(settings) {
            Ok(map) => Ok(map.owned_by(tdr)),
            Err(error) => Err((error, tdr)),
        }
    }

    /// Returns how memory can be taken back now.
    pub fn mode(&self) -> Mode {
        self.root.mode()
    }

    /// Returns the memory that the TD owns, by size. The result is exact when no CPU works on the map.
    pub fn holding(&self) -> Holding {
        self.stock.holding()
    }

    /// Calls `work` with the TD while it has its key, which it cannot lose meanwhile.
    ///
    /// # Errors
    /// [`Error::Terminated`], and the errors of `work`.
    pub fn keyed<R>(&self, work: impl FnOnce(&Tdr<Keyed>) -> Result<R, Error>) -> Result<R, Error> {
        self.root.keyed(|live| work(live.tdr()))
    }

    /// Calls `work` with the TD after its key is gone.
    ///
    /// # Errors
    /// [`Error::NotKeyless`], and the errors of `work`.
    pub fn keyless<R>(
        &self,
        work: impl FnOnce(&Tdr<Keyless>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.root.keyless(work)
    }

    /// TDH.MR.FINALIZE: closes the measurement. From now on, pages are blocked and tracked before the TD loses them.
    ///
    /// # Errors
    /// [`Error::Terminated`]; [`Error::Finalized`] when it was closed before; [`Error::Busy`] while a CPU works on the
    /// map; [`Error::Seam`].
    pub fn finalize<C: SeamCall, W: Wait>(&self, tdh: &Tdh<'_, C, W>) -> Result<(), Error> {
        self.root.finalize(tdh)
    }

    /// Moves the map from keyed to releasing. From now on nothing is mapped, linked, changed or removed. While a CPU
    /// still works on the map, `pause` is called with the number of tries so far, and new work is refused. Repeating
    /// the call is harmless.
    ///
    /// # Errors
    /// [`Error::Busy`] when `pause` gave up; the map is unchanged.
    pub fn close(&self, pause: impl FnMut(u32) -> ControlFlow<()>) -> Result<(), Error> {
        self.root.close(pause)
    }

    /// Moves the map back from releasing to keyed, as long as TDH.MNG.VPFLUSHDONE has not been done.
    /// [`Self::run_queued`] frees the ranges queued meanwhile.
    ///
    /// # Errors
    /// [`Error::Terminated`] after TDH.MNG.VPFLUSHDONE: there is no way back.
    pub fn reopen(&self) -> Result<(), Error> {
        self.root.reopen()
    }

    /// TDH.MNG.VPFLUSHDONE, in mode releasing: the point of no return. Repeating the call is harmless.
    ///
    /// # Errors
    /// [`Error::Busy`] when the map is not closed; [`Error::Seam`], and the TD is unchanged.
    pub fn flush_done<C: SeamCall, W: Wait>(&self, tdh: &Tdh<'_, C, W>) -> Result<(), Error> {
        self.root.flush_done(tdh)
    }

    /// TDH.MNG.KEY.FREEID: moves the map from releasing to keyless. Returns the HKID, or `None` if it was returned
    /// before.
    ///
    /// # Errors
    /// [`Error::Busy`] before [`Self::flush_done`]; [`Error::Seam`], and the TD keeps its HKID and memory.
    pub fn free_hkid<C: SeamCall, W: Wait>(
        &self,
        tdh: &Tdh<'_, C, W>,
    ) -> Result<Option<Hkid>, Error> {
        self.root.free_hkid(tdh)
    }

    /// Takes the root page, once nothing else is left. The map is of no use afterwards.
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

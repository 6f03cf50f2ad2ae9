//! TLB tracking, which ensures that no CPU uses blocked memory.

use seam::abi::{Leaf as SeamLeaf, Status};
use seam::call::SeamCall;
use seam::error::Recovery;
use seam::retry::Wait;
use seam::tdh::Tdh;

use super::error::Error;
use super::kick::Kick;
use super::mirror::Epoch;
use super::root::Live;
use sync::atomic::{AtomicU32, Ordering::SeqCst};

/// The tracking rounds of one TD.
#[derive(Debug)]
pub(super) struct Tracker {
    /// Number of the next round, and epoch of anything blocked now.
    next: AtomicU32,
    /// Number of the last completed round.
    done: AtomicU32,
}

impl Tracker {
    pub const fn new() -> Self {
        Self {
            next: AtomicU32::new(1),
            done: AtomicU32::new(0),
        }
    }

    /// Returns the epoch of something that has just been blocked.
    pub fn now(&self) -> Epoch {
        Epoch(self.next.load(SeqCst))
    }

    /// Returns whether no CPU uses memory that was blocked at `since`.
    pub fn is_tracked(&self, since: Epoch) -> bool {
        since.is_covered_by(Epoch(self.done.load(SeqCst)))
    }

    /// Performs one round: TDH.MEM.TRACK, then a kick of all vCPUs. After it, no CPU uses memory that was blocked
    /// before it.
    ///
    /// # Errors
    /// [`Error::Seam`], [`Error::NoAnswer`].
    pub fn round<C: SeamCall, W: Wait>(
        &self,
        tdh: &Tdh<'_, C, W>,
        live: &Live,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        // Take the number before the call: memory that another CPU blocks meanwhile gets a later one.
        let round = self.next.fetch_add(1, SeqCst);
        if let Err(error) = tdh.once().mem_track(live.tdr()) {
            debug_assert_eq!(error.leaf(), SeamLeaf::MemTrack);
            if error.is(Status::PREVIOUS_TLB_EPOCH_BUSY) {
                // A vCPU has been in the guest since before the previous round.
                kick.kick()?;
            } else if error.recovery() != Recovery::Retry {
                return Err(error.into());
            }
            tdh.mem_track(live.tdr())?;
        }
        kick.kick()?;
        // Rounds of several CPUs may end in any order.
        let later = |done| Epoch(done).is_covered_by(Epoch(round)).then_some(round);
        _ = self.done.fetch_update(SeqCst, SeqCst, later);
        Ok(())
    }
}

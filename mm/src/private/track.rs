//! TLB tracking: making sure that no CPU uses what was blocked.

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

/// The rounds of one TD.
#[derive(Debug)]
pub(super) struct Tracker {
    /// What is blocked now gets this; the next round has this number.
    next: AtomicU32,
    /// The last round that ended.
    done: AtomicU32,
}

impl Tracker {
    pub const fn new() -> Self {
        Self {
            next: AtomicU32::new(1),
            done: AtomicU32::new(0),
        }
    }

    /// The time of something that has just been blocked.
    pub fn now(&self) -> Epoch {
        Epoch(self.next.load(SeqCst))
    }

    /// Whether no CPU uses what was blocked at `since`.
    pub fn is_tracked(&self, since: Epoch) -> bool {
        since.is_covered_by(Epoch(self.done.load(SeqCst)))
    }

    /// One round: TDH.MEM.TRACK, and every vCPU out of the guest once. No CPU uses, after it, what was blocked before.
    ///
    /// # Errors
    /// [`Error::Seam`], [`Error::NoAnswer`].
    pub fn round<C: SeamCall, W: Wait>(
        &self,
        tdh: &Tdh<'_, C, W>,
        live: &Live,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        // First the number, then the call: what was blocked by another CPU meanwhile has a later one.
        let round = self.next.fetch_add(1, SeqCst);
        if let Err(error) = tdh.once().mem_track(live.tdr()) {
            debug_assert_eq!(error.leaf(), SeamLeaf::MemTrack);
            if error.is(Status::PREVIOUS_TLB_EPOCH_BUSY) {
                // Somebody is in the guest since before the round before this one.
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

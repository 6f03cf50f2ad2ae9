//! Context of a change of a map.

use seam::call::SeamCall;
use seam::retry::Wait;

use super::error::Error;
use super::mirror::Epoch;
use super::pool::Pool;
use super::root::Live;
use super::{Cpu, Kick, PrivateMap};

/// A change of a map by one CPU, while the TD has its key and cannot lose it.
pub(super) struct Op<'a, C, W, P> {
    /// The map.
    pub map: &'a PrivateMap,
    /// The CPU that makes the change.
    pub cpu: Cpu<'a, C, W, P>,
    /// The TD.
    pub live: &'a Live,
    /// Gets the TD's vCPUs out of the guest. A change that only adds memory does not need it.
    pub kick: &'a dyn Kick,
}

impl PrivateMap {
    /// Makes a change while the TD has its key.
    ///
    /// # Errors
    /// [`Error::Terminated`], and the errors of `work`.
    pub(super) fn change<C: SeamCall, W: Wait, P: Pool, R>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        kick: &dyn Kick,
        work: impl FnOnce(Op<'_, C, W, P>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.root.keyed(|live| {
            work(Op {
                map: self,
                cpu,
                live,
                kick,
            })
        })
    }
}

impl<C: SeamCall, W: Wait, P: Pool> Op<'_, C, W, P> {
    /// Ensures that no CPU uses memory that was blocked at `since`.
    pub fn track(&self, since: Option<Epoch>) -> Result<(), Error> {
        let tracker = &self.map.tracker;
        match since {
            Some(since) if !tracker.is_tracked(since) => {
                tracker.round(self.cpu.tdh, self.live, self.kick)
            }
            _ => Ok(()),
        }
    }
}

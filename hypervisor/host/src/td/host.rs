//! What TDs stand on: the machine, its HKIDs, what its module can do; and who runs their vCPUs.

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;

use mm::private::{Clearing, Clock, Cpu};
use seam::address::KeyIdPosition;
use vcpu::Wiring;

use super::{Td, capabilities::Capabilities, params::Native};
use crate::{
    platform::{CpuPlace, Platform},
    tdx::release::Coordinator,
};

/// What all TDs of a host have in common.
pub struct Host<'h, P> {
    /// The machine.
    pub platform: &'h P,
    /// Who hands out HKIDs and takes them back.
    pub coordinator: &'h Coordinator,
    /// What the module lets a host choose.
    pub capabilities: Capabilities,
    /// What a TD has of this machine where the operator leaves it open.
    pub native: &'h (dyn Native + Sync),
    /// Where the KeyID is in a physical address.
    pub keyid: KeyIdPosition,
    /// The module's own HKID.
    pub global_hkid: u16,
    /// What is done with the content of a page that comes back.
    pub clearing: Clearing,
    /// Microseconds that a CPU has to let go of a vCPU.
    pub stop_us: u64,
    /// Who runs vCPUs.
    pub runner: &'h (dyn Runner + Sync),
}

impl<P> fmt::Debug for Host<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

impl<P: Platform> Host<'_, P> {
    /// Works with the calling CPU.
    pub fn with_cpu<R>(&self, work: impl FnOnce(OnCpu<'_, P>) -> R) -> R {
        with_cpu(self.platform, work)
    }

    /// Whether the TDX module has shut down.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.platform.shutdown().is_down()
    }

    /// One CPU of each package, the calling one among them.
    pub fn leaders(&self) -> Vec<u32> {
        let me = self.platform.this_cpu();
        let places = self.platform.cpus();
        let own = places.iter().filter(|place| place.cpu == me);
        let mut leaders: Vec<CpuPlace> = Vec::new();
        for place in own.chain(places) {
            if leaders.iter().all(|leader| leader.package != place.package) {
                leaders.push(*place);
            }
        }
        leaders.into_iter().map(|place| place.cpu).collect()
    }
}

/// The calling CPU, as a TD's map works with it.
pub type OnCpu<'a, P> =
    Cpu<'a, <P as Platform>::Call, <P as Platform>::Wait, <P as Platform>::Pool>;

/// Works with the calling CPU of a machine.
pub fn with_cpu<P: Platform, R>(platform: &P, work: impl FnOnce(OnCpu<'_, P>) -> R) -> R {
    let tdh = platform.tdh();
    work(Cpu {
        tdh: &tdh,
        pool: platform.pool(),
    })
}

/// A machine's clock.
pub struct Time<'a, P>(pub &'a P);

impl<P: Platform> Clock for Time<'_, P> {
    fn ns(&self) -> u64 {
        self.0.now_us() * 1000
    }
}

/// How a TD's guest has come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// It switched itself off, or asked for a reset: that is being seen to.
    Orderly,
    /// It can't go on, for this reason.
    Failed(String),
}

/// Who runs vCPUs. Nothing here waits for a vCPU.
pub trait Runner {
    /// Gets ready what a TD's vCPUs need beside the module, before they are made.
    ///
    /// # Errors
    /// One sentence; nothing was taken.
    fn prepare(&self, td: &Td) -> Result<(), String>;

    /// What vCPU `index` of a TD that was prepared is told.
    fn wiring(&self, td: &Td, index: u16) -> Option<Wiring>;

    /// The TD's vCPUs may run from now on.
    fn start(&self, td: &Arc<Td>);

    /// The TD's vCPUs will never run again: what [`Self::prepare`] took goes back. It may not have been called.
    fn end(&self, td: &Td);

    /// The TD has less memory from now on ([`Td::layout`]): none of its vCPUs gets any beyond that. `false` when one is at it
    /// right now: then the same is asked again.
    fn shrunk(&self, td: &Td) -> bool {
        let _ = td;
        true
    }

    /// Why the TD's guest has come to its end, if it has. It is not entered again in this life.
    fn guest_end(&self, td: &Td) -> Option<GuestEnd> {
        let _ = td;
        None
    }

    /// There is work for CPUs that have time: [`super::registry::Tds::work`].
    fn work_waits(&self) {}
}

/// For a host that only builds TDs and takes them down.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRunner;

impl Runner for NoRunner {
    fn prepare(&self, _: &Td) -> Result<(), String> {
        Ok(())
    }

    fn wiring(&self, _: &Td, _: u16) -> Option<Wiring> {
        None
    }

    fn start(&self, _: &Arc<Td>) {}

    fn end(&self, _: &Td) {}
}

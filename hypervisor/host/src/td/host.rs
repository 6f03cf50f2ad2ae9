//! The environment of TDs: the machine, its HKIDs, the capabilities of its module, and the runner of their vCPUs.

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

/// The environment that all TDs of a host share.
pub struct Host<'h, P> {
    /// The machine.
    pub platform: &'h P,
    /// Allocates and releases HKIDs.
    pub coordinator: &'h Coordinator,
    /// The choices that the module leaves to the host.
    pub capabilities: Capabilities,
    /// Values of this machine for settings that the operator leaves open.
    pub native: &'h (dyn Native + Sync),
    /// Position of the KeyID in a physical address.
    pub keyid: KeyIdPosition,
    /// The module's own HKID.
    pub global_hkid: u16,
    /// The way to clear the content of reclaimed pages.
    pub clearing: Clearing,
    /// Microseconds that a CPU has to release a vCPU.
    pub stop_us: u64,
    /// Runs vCPUs.
    pub runner: &'h (dyn Runner + Sync),
}

impl<P> fmt::Debug for Host<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

impl<P: Platform> Host<'_, P> {
    /// Runs `work` with the calling CPU's resources.
    pub fn with_cpu<R>(&self, work: impl FnOnce(OnCpu<'_, P>) -> R) -> R {
        with_cpu(self.platform, work)
    }

    /// Returns whether the TDX module has shut down.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.platform.shutdown().is_down()
    }

    /// Returns one CPU of each package, including the calling one.
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

/// The calling CPU's resources for operations on a TD's map.
pub type OnCpu<'a, P> =
    Cpu<'a, <P as Platform>::Call, <P as Platform>::Wait, <P as Platform>::Pool>;

/// Runs `work` with the calling CPU's resources on a machine.
pub fn with_cpu<P: Platform, R>(platform: &P, work: impl FnOnce(OnCpu<'_, P>) -> R) -> R {
    let tdh = platform.tdh();
    work(Cpu {
        tdh: &tdh,
        pool: platform.pool(),
    })
}

/// Adapts a machine's clock to [`Clock`].
pub struct Time<'a, P>(pub &'a P);

impl<P: Platform> Clock for Time<'_, P> {
    fn ns(&self) -> u64 {
        self.0.now_us() * 1000
    }
}

/// The end of a TD's guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// The guest powered off or asked for a reset, which is being handled.
    Orderly,
    /// The guest can't continue, for this reason.
    Failed(String),
}

/// A guest's attention to its power button.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listens {
    /// It does.
    Yes,
    /// It has not enabled the button, and can't see that it is pressed.
    No,
}

/// Runs vCPUs. No method waits for a vCPU.
pub trait Runner {
    /// Prepares what a TD's vCPUs need outside the module, before they are created.
    ///
    /// # Errors
    /// A sentence; nothing was taken.
    fn prepare(&self, td: &Td) -> Result<(), String>;

    /// Returns the wiring of vCPU `index` of a prepared TD.
    fn wiring(&self, td: &Td, index: u16) -> Option<Wiring>;

    /// Lets the TD's vCPUs run from now on.
    fn start(&self, td: &Arc<Td>);

    /// Returns what [`Self::prepare`] took, which may not have been called. The TD's vCPUs will never run again.
    fn end(&self, td: &Td);

    /// Notes that the TD's memory has shrunk ([`Td::layout`]): its vCPUs get no memory beyond it from now on. Returns
    /// `false` if a vCPU is getting some right now; the caller then tries again.
    fn shrunk(&self, td: &Td) -> bool;

    /// Returns why the TD's guest has ended, if it has. It is not entered again in this life.
    fn guest_end(&self, td: &Td) -> Option<GuestEnd>;

    /// Notes that there is work for CPUs that have time: [`super::registry::Tds::work`].
    fn work_waits(&self);

    /// Presses the power button of a TD's guest. By default no guest listens.
    fn press_power_button(&self, td: &Td) -> Listens {
        let _ = td;
        Listens::No
    }

    /// Gives a TD the shares and the cap of this configuration from now on. By default there is nothing to share.
    fn set_portion(&self, id: u32, config: &config::Td) {
        let _ = (id, config);
    }

    /// Returns whether there is a network of this name. By default there is none.
    fn has_network(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Forgets a TD without a life, whose number no TD will have again. By default nothing is kept of such a TD.
    fn forget(&self, id: u32) {
        let _ = id;
    }
}

/// The runner of a host that only builds TDs and tears them down.
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

    fn shrunk(&self, _: &Td) -> bool {
        true
    }

    fn guest_end(&self, _: &Td) -> Option<GuestEnd> {
        None
    }

    // No CPU waits for work.
    fn work_waits(&self) {}
}

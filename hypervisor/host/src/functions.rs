//! Physical functions of the machine that a TD has: how the host gets and returns them.

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};
use core::fmt;

use devices::{Message, pci::Physical};
use mm::shared::Mirror;
use vcpu::Executor;

/// The machine's functions, as TDs get them. The hypervisor implements it.
pub trait Functions: Sync {
    /// Takes functions for a life of the TD `td`: checks that it may have them, resets them, and confines them to
    /// nothing. `devices` are the texts of the configuration (`device` of `[[td.pci]]`).
    ///
    /// # Errors
    /// A sentence for the operator; nothing was taken.
    fn take(&self, td: &str, devices: &[String]) -> Result<Box<dyn Taken>, String>;
}

/// The functions that a life of a TD has. They are in one domain of the VT-d units, which is empty at first.
pub trait Taken: fmt::Debug + Send + Sync {
    /// Returns the functions, in the order of the configuration.
    fn functions(&self) -> Vec<Arc<dyn Physical>>;

    /// Returns the domain that follows the TD's shared memory.
    fn mirror(&self) -> Arc<dyn Mirror>;

    /// Passes interrupts to `sink` from now on, until [`Self::give_back`] has succeeded. Before, they are lost.
    fn connect(&self, sink: Arc<dyn Sink>);

    /// Returns why the TD must end, if one of its functions has had a serious error.
    fn problem(&self) -> Option<String>;

    /// Returns how often interrupts of a function had to rest because the TD's functions interrupted too often. `function`
    /// is its index in [`Self::functions`].
    fn rests(&self, function: usize) -> u64 {
        let _ = function;
        0
    }

    /// Stops the functions for good: they are not bus masters, reach nothing, and raise no interrupt; no CPU delivers
    /// one of theirs any more. Then they are reset, and keep the label of this TD. May be called again.
    ///
    /// # Errors
    /// A sentence: functions may still reach the TD's shared memory, whose frames must not be freed.
    fn give_back(&self) -> Result<(), String>;
}

/// Receives the interrupts of a TD's physical functions. It is called in interrupt handlers, and takes no lock.
pub trait Sink: fmt::Debug + Send + Sync {
    /// Delivers a message of a function to the TD's vCPUs, which `executor` runs: the scheduler. `function` is the
    /// function's index in [`Taken::functions`].
    fn deliver(&self, function: usize, message: Message, executor: &dyn Executor);
}

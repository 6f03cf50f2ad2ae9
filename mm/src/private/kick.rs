//! Interrupting the vCPUs of a TD. The hypervisor implements it.

use core::fmt;

/// Makes every vCPU of one TD that is in the guest leave it, by interrupting the CPU on which it runs. The hypervisor
/// implements it.
pub trait Kick {
    /// Returns once each vCPU that was in the guest at the call has left it at least once. It may have entered again.
    ///
    /// # Errors
    /// [`NoAnswer`] when a vCPU did not leave within the time that the hypervisor allows.
    fn kick(&self) -> Result<(), NoAnswer>;
}

/// The kick of a TD none of whose vCPUs runs, because it is being built or is paused.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoneRuns;

impl Kick for NoneRuns {
    fn kick(&self) -> Result<(), NoAnswer> {
        Ok(())
    }
}

/// A CPU that did not leave the guest in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswer {
    /// The number of the CPU.
    pub cpu: u32,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPU {} did not leave the guest in time", self.cpu)
    }
}

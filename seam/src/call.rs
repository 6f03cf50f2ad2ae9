//! The one trait for all SEAMCALLs, at register level.

use crate::abi::Gprs;

/// A failure of the instruction itself, before any module handled the call.
///
/// Source: SEAMCALL in the Intel TDX CPU architectural extensions; `host-hardware`, detection step 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// CF = 1 (VMfailInvalid): the module that this leaf belongs to is not loaded, or has shut down.
    NotLoaded,
    /// #GP(0): SEAM is not enabled on this CPU.
    NotEnabled,
    /// #UD: the CPU is not in VMX operation, or does not support SEAMCALL.
    NotVmx,
}

/// An executor of SEAMCALLs on the calling logical processor: the instruction, or an emulated module.
pub trait SeamCall {
    /// Executes one SEAMCALL. RAX holds the leaf on entry and the status on return. Output registers that the leaf
    /// documents are written back; the others are unchanged.
    ///
    /// # Errors
    /// A [`Fault`] if no module answered; `regs` is then unchanged.
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault>;

    /// Called after each call on this CPU that fails as calls do after the module has shut down: with SYS_SHUTDOWN, or
    /// with a fault. A failure while the module is being brought up does not mean a shutdown.
    fn note_shutdown(&self);
}

impl<C: SeamCall + ?Sized> SeamCall for &C {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        (**self).seamcall(regs)
    }

    fn note_shutdown(&self) {
        (**self).note_shutdown();
    }
}

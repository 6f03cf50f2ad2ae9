//! The one trait through which SEAMCALLs go, at the level of registers.

use crate::abi::Gprs;

/// Why the instruction itself failed, before any module looked at it.
///
/// Source: SEAMCALL in the Intel TDX CPU architectural extensions; `host-hardware`, detection step 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// CF = 1 (VMfailInvalid): no module is loaded behind this leaf, or it shut itself down.
    NotLoaded,
    /// #GP(0): SEAM is not enabled on this CPU.
    NotEnabled,
    /// #UD: the CPU is not in VMX operation, or does not know SEAMCALL.
    NotVmx,
}

/// Something that executes SEAMCALL for the logical processor that it is called on: the instruction, or an
/// emulated module.
pub trait SeamCall {
    /// Executes one SEAMCALL. RAX holds the leaf on entry and the status on return; every register that the leaf
    /// documents as an output is written back, the others are unchanged.
    ///
    /// # Errors
    /// A [`Fault`] when no module answered; `regs` is then unchanged.
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault>;

    /// Learns that a call of this CPU failed as calls do once a module that worked has shut down: with SYS_SHUTDOWN, or in
    /// the instruction. It comes after each such call; one that fails so while the module is being brought up is none.
    fn note_shutdown(&self) {}
}

impl<C: SeamCall + ?Sized> SeamCall for &C {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        (**self).seamcall(regs)
    }

    fn note_shutdown(&self) {
        (**self).note_shutdown();
    }
}

//! TDH.MR.*: the measurement of a TD while it is built.

use super::td::{Keyed, Tdr};
use super::{Tdh, rcx, rcx_rdx};
use crate::abi::Leaf;
use crate::address::Gpa;
use crate::call::SeamCall;
use crate::error::Error;
use crate::retry::Wait;

impl<C: SeamCall, W: Wait> Tdh<'_, C, W> {
    /// TDH.MR.EXTEND: measures the content of 256 bytes of the TD's memory at `gpa`, aligned to 256.
    ///
    /// # Errors
    /// EPT_ENTRY_NOT_PRESENT if no page was added there.
    pub fn mr_extend(&self, tdr: &Tdr<Keyed>, gpa: Gpa) -> Result<(), Error> {
        self.run(Leaf::MrExtend, rcx_rdx(gpa.0, tdr.hpa().0))?;
        Ok(())
    }

    /// TDH.MR.FINALIZE: completes the measurement. The TD can run from now on, and no page can be added any more.
    ///
    /// # Errors
    /// NO_VCPUS if no vCPU was initialised.
    pub fn mr_finalize(&self, tdr: &Tdr<Keyed>) -> Result<(), Error> {
        self.run(Leaf::MrFinalize, rcx(tdr.hpa().0))?;
        Ok(())
    }
}

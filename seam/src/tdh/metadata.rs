//! TDH.SYS.RD, TDH.SYS.RDALL, TDH.MNG.RD, TDH.MNG.WR, TDH.VP.RD, TDH.VP.WR: fields of the module, a TD, a vCPU.

use super::td::{Keyed, Tdr, Tdvpr};
use super::{Tdh, rcx_rdx};
use crate::abi::metadata::FieldId;
use crate::abi::{Gprs, Leaf};
use crate::address::Hpa;
use crate::call::SeamCall;
use crate::error::Error;
use crate::retry::Wait;

/// The result of a read that also walks the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Value of the field. It is meaningless for [`FieldId::NULL`], whose next field is the first one.
    pub value: u64,
    /// The next field; `None` after the last one.
    pub next: Option<FieldId>,
}

impl<C: SeamCall, W: Wait> Tdh<'_, C, W> {
    /// TDH.SYS.RD: reads a field of the module, on a CPU that has done TDH.SYS.LP.INIT.
    ///
    /// # Errors
    /// METADATA_FIELD_ID_INCORRECT if this module does not have the field. Read TDX_FEATURES0 or walk the fields with
    /// [`Self::sys_rd_next`] to find out.
    pub fn sys_rd(&self, field: FieldId) -> Result<u64, Error> {
        Ok(self.sys_rd_next(field)?.value)
    }

    /// TDH.SYS.RD: reads a field of the module and returns the next field too.
    ///
    /// # Errors
    /// As [`Self::sys_rd`].
    pub fn sys_rd_next(&self, field: FieldId) -> Result<Next, Error> {
        let operands = Gprs {
            rdx: field.0,
            ..Gprs::default()
        };
        let regs = self.run(Leaf::SysRd, operands)?.regs;
        Ok(Next {
            value: regs.r8,
            next: present(regs.rdx),
        })
    }

    /// TDH.SYS.RDALL: writes a list of the module's fields from `first` on to the 4 KiB page at `list` in host memory.
    /// Returns the field to continue with, or `None` after the last one.
    ///
    /// # Errors
    /// OPERAND_INVALID on RDX if `list` is not usable.
    pub fn sys_rdall(&self, list: Hpa, first: FieldId) -> Result<Option<FieldId>, Error> {
        let operands = Gprs {
            rdx: list.0,
            r8: first.0,
            ..Gprs::default()
        };
        let regs = self.run(Leaf::SysRdall, operands)?.regs;
        Ok(present(regs.r8))
    }

    /// TDH.MNG.RD: reads a field of the TD.
    ///
    /// # Errors
    /// METADATA_FIELD_NOT_READABLE if only the TD itself, or the host of a debuggable TD, may read the field.
    pub fn mng_rd(&self, tdr: &Tdr<Keyed>, field: FieldId) -> Result<u64, Error> {
        let done = self.run(Leaf::MngRd, rcx_rdx(tdr.hpa().0, field.0))?;
        Ok(done.regs.r8)
    }

    /// TDH.MNG.WR: writes the bits `mask` of a field of the TD and returns the old value.
    ///
    /// # Errors
    /// METADATA_FIELD_NOT_WRITABLE, METADATA_WR_MASK_NOT_VALID, METADATA_FIELD_VALUE_NOT_VALID.
    pub fn mng_wr(
        &self,
        tdr: &Tdr<Keyed>,
        field: FieldId,
        value: u64,
        mask: u64,
    ) -> Result<u64, Error> {
        self.write_field(Leaf::MngWr, written(tdr.hpa(), field, value, mask))
    }

    /// TDH.VP.RD: reads a field of the vCPU. Associates the vCPU with the calling CPU.
    ///
    /// # Errors
    /// VCPU_ASSOCIATED if the vCPU is associated with another CPU.
    pub fn vp_rd(&self, tdvpr: &Tdvpr, field: FieldId) -> Result<u64, Error> {
        let done = self.run_here(Leaf::VpRd, 0, rcx_rdx(tdvpr.hpa().0, field.0))?;
        Ok(done.regs.r8)
    }

    /// TDH.VP.WR: writes the bits `mask` of a field of the vCPU and returns the old value. Associates the vCPU with the
    /// calling CPU.
    ///
    /// # Errors
    /// As [`Self::mng_wr`]; VCPU_ASSOCIATED if the vCPU is associated with another CPU.
    pub fn vp_wr(
        &self,
        tdvpr: &Tdvpr,
        field: FieldId,
        value: u64,
        mask: u64,
    ) -> Result<u64, Error> {
        self.write_field(Leaf::VpWr, written(tdvpr.hpa(), field, value, mask))
    }

    fn write_field(&self, leaf: Leaf, operands: Gprs) -> Result<u64, Error> {
        Ok(self.run(leaf, operands)?.regs.r8)
    }
}

/// Returns the operands that write the bits `mask` of a field of the page `of`.
fn written(of: Hpa, field: FieldId, value: u64, mask: u64) -> Gprs {
    Gprs {
        r8: value,
        r9: mask,
        ..rcx_rdx(of.0, field.0)
    }
}

fn present(id: u64) -> Option<FieldId> {
    Some(FieldId(id)).filter(|id| !id.is_null())
}
